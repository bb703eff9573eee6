"""Workers of Ray on several hosts, which are nodes of a cluster on this machine: lost, late, frozen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run.pipeline import infer
from tests.engine.run.rays import Led, alive, faults, lead, sites, wait_for
from tests.engine.run.wholes import Whole

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


class Hosts:
    """A Ray cluster whose head computes nothing."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def lose(self, node: Any) -> None:
        """End a node, with what its workers have in hand."""
        workers = sites(self.processes(node))
        self.cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: not any(map(alive, workers)))

    def processes(self, node: Any) -> list[psutil.Process]:
        """The node's own, and its workers."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        return [w for node in self.cluster.worker_nodes for w in sites(self.processes(node))]

    def lead(self, whole: Whole, *more: str, **how: Any) -> Led:
        return lead(whole, self.folder, *more, workers=f"ray:{self.cluster.address},2", **how)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    for name, value in faults(tmp_path, 1).items():
        monkeypatch.setenv(name, value)
    hosts = Hosts(tmp_path)
    try:
        yield hosts
    finally:
        hosts.cluster.shutdown()


def finished(led: Led, whole: Whole) -> str:
    text = led.end()
    assert whole.request.out.read_bytes() == whole.expected
    assert not parts_folder(whole.request.out).exists()
    return text


def test_a_host_lost_without_a_spare_one(whole: Whole, hosts: Hosts) -> None:
    lost = [hosts.add(), hosts.add()][0]
    led = hosts.lead(whole, gate_at=1)
    led.wait_at_gate(1, 2)
    hosts.lose(lost)
    # the other host may be done with all packs before Ray tells the leader
    led.wait(lambda: "was lost" in led.said())
    led.open_gate()
    assert "was lost" in finished(led, whole)


def test_a_host_that_comes_late_takes_part(whole: Whole, hosts: Hosts, tmp_path: Path) -> None:
    hosts.add()
    report = tmp_path / "run.json"
    led = hosts.lead(whole, "--report", str(report), gate_at=1)
    led.wait_at_gate(1, 1)
    hosts.add()
    led.wait_at_gate(1, 2)
    led.open_gate()
    finished(led, whole)
    assert len(json.loads(report.read_text())["workers"]) == 2


def test_all_hosts_lost_and_one_comes_later(whole: Whole, hosts: Hosts) -> None:
    nodes = [hosts.add(), hosts.add()]
    led = hosts.lead(whole, gate_at=1)
    led.wait_at_gate(1, 2)
    for node in nodes:
        hosts.lose(node)
    led.wait(lambda: led.said().count("was lost") >= 2)
    led.open_gate()
    hosts.add()
    assert finished(led, whole).count("was lost") >= 2


@contextlib.contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that do nothing until the block is over."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_frozen_host_is_done_without_and_changes_nothing_when_it_thaws(whole: Whole, hosts: Hosts) -> None:
    nodes = [hosts.add(), hosts.add()]
    led = hosts.lead(whole, gate_at=1)
    led.wait_at_gate(1, 2)
    processes = hosts.processes(nodes[0])
    with frozen(processes):
        led.open_gate()
        finished(led, whole)
    wait_for(lambda: not any(map(alive, sites(processes))))
    assert whole.request.out.read_bytes() == whole.expected
    assert not parts_folder(whole.request.out).exists()


@pytest.mark.parametrize(
    "changes", [(), ("--overwrite", "--dtype", "uint16")], ids=["resumed", "other options"]
)
def test_the_leading_process_killed_while_old_workers_live(
    whole: Whole, hosts: Hosts, changes: tuple[str, ...]
) -> None:
    """A frozen host has one of them, which goes on to store its packs when the new run is at work."""
    nodes = [hosts.add(), hosts.add()]
    old = hosts.lead(whole, gate_at=1)
    old.wait_at_gate(1, 2)
    processes = hosts.processes(nodes[0])
    (worker,) = sites(processes)
    with frozen(processes):
        old.process.kill()
        old.process.wait()
        led = hosts.lead(whole, *(changes or ("--resume",)), gate_at=0)
        led.wait_at_gate(0, 1)
        assert alive(worker)
        led.open_gate()
    if not changes:
        finished(led, whole)
    else:
        led.end()
        calm = dataclasses.replace(whole.request, out=hosts.folder / "calm.tif", dtype="uint16")
        infer(calm)
        assert whole.request.out.read_bytes() == calm.out.read_bytes()
        assert not parts_folder(whole.request.out).exists()
    wait_for(lambda: not hosts.workers())
