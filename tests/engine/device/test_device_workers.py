"""Workers that have a device each, which is a stand-in: the file of one process, and what is told of their devices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.output.parts import Mode, claimed_parts
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import paths
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.run.workers import site
from deeplight.engine.run.workers.affinity import gpu_place
from deeplight.engine.run.workers.messages import Computed, Done, Proposal, Told, Trouble
from deeplight.engine.run.workers.relay import Relay
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import OnDevice, analytic, run
from tests.engine.device.standin import StandIn
from tests.engine.run.test_affinity import FOUR, host
from tests.scenes import write_raster


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's process is its own; this one is not."""
    monkeypatch.setattr(Relay, "listen", lambda self: None)
    monkeypatch.chdir(Path.cwd())
    yield


def test_two_workers_with_a_device_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (8, 600)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))
    model = str(write_model(tmp_path / "analytic", onnx_bytes(), halo_lr=4))
    alone = run(monkeypatch, scene, model, tmp_path / "alone.tif", StandIn(), core=64)
    bound: list[object] = []
    monkeypatch.setattr(site, "bind", bound.append)
    root = host(tmp_path / "host", FOUR)
    monkeypatch.setattr(site, "gpu_place", partial(gpu_place, root=root))
    monkeypatch.setattr(site.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    options = RunOptions(
        scene=scene, out=tmp_path / "o.tif", model=model, tiles=TileRequest(64), threads=2, beside=4
    )
    workers = []
    for number in ("1", "2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", number)
        monkeypatch.setattr(paths, "open_model", lambda *_: OnDevice(analytic, StandIn()))
        workers.append(site.Site(options, str(Path.cwd()), gpu=True))
        assert workers[-1].open() == workers[-1].name
    assert bound == [frozenset(range(16, 32)), frozenset(range(32, 48))]
    proposal = workers[0].propose()
    assert isinstance(proposal, Proposal)
    with claimed_parts(options.out, proposal.record, Mode.NEW, stay=True):
        assert [worker.begin(proposal.record, proposal.digests) for worker in workers] == [None, None]
    for keys, worker in (([(0, 0), (0, 1)], workers[0]), ([(0, 2)], workers[1])):
        found = worker.compute(keys)
        assert isinstance(found, Computed) and not any(made.error for made in found.packs)
    told = [worker.told() for worker in workers]
    assert all(isinstance(each, Told) for each in told)
    report = workers[0].finish(Done(told, [], kept=0, stream_s=2.0), 3.0)
    assert report is not None and not isinstance(report, Trouble)
    assert options.out.read_bytes() == (tmp_path / "alone.tif").read_bytes()
    assert report.device is not None and alone.device is not None
    assert (report.device["count"], alone.device["count"]) == (2, 1)
    for name in ("bytes_up", "bytes_down"):
        assert report.device[name] == alone.device[name] > 0
    assert report.load.keys() == alone.load.keys()
    assert [(w["device"], w["cpus"]) for w in report.workers] == [
        ("cpu at 0000:65:00.0", "16-31"),
        ("cpu at 0000:ca:00.0", "32-47"),
    ]
