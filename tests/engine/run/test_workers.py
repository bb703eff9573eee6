"""Workers of Ray on one host: whatever becomes of them, the output has the bytes of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run.pipeline import infer
from tests.engine.run.rays import Led, alive, kill, lead, wait_for
from tests.engine.run.wholes import PACKS, Whole

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for process in psutil.Process().children(recursive=True):
        kill(process)


def finished(led: Led, whole: Whole) -> str:
    text = led.end()
    assert whole.request.out.read_bytes() == whole.expected
    assert not parts_folder(whole.request.out).exists()
    led.check_alone()
    return text


@pytest.mark.parametrize("count", [1, 2])
def test_workers_make_the_file_of_one_process(whole: Whole, tmp_path: Path, count: int) -> None:
    report, events = tmp_path / "run.json", tmp_path / "e.jsonl"
    more = ("--report", str(report), "--events", str(events))
    led = lead(whole, tmp_path, *more, workers=f"local:{count}", gate_at=0)
    led.wait_at_gate(0, count)
    led.open_gate()
    finished(led, whole)
    found = json.loads(report.read_text())
    assert found["packs"] == {"written": PACKS, "all_nodata": 0, "kept_from_earlier_run": 0}
    assert sum(w["packs"] for w in found["workers"]) == PACKS and len(found["workers"]) == count
    assert all(w["busy"]["write"] > 0 for w in found["workers"])
    told = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert told.count("pack") == PACKS and told[0] == "started" and told[-1] == "finished"


SOAKED = [pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 20)]


@pytest.mark.parametrize("seed", [0, 1, *SOAKED])
def test_a_worker_killed_at_a_random_pack(whole: Whole, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    at = rng.randrange(PACKS - 1)
    led = lead(whole, tmp_path, gate_at=at)
    kill(rng.choice(led.wait_at_gate(at, 1)))
    led.wait(lambda: "was lost" in led.said())
    led.open_gate()
    text = finished(led, whole)
    assert "was lost: its process or its host has ended" in text and "raylet" not in text


def test_all_workers_killed(whole: Whole, tmp_path: Path) -> None:
    led = lead(whole, tmp_path, gate_at=1)
    for worker in led.wait_at_gate(1, 2):
        kill(worker)
    led.wait(lambda: led.said().count("was lost") >= 2)
    led.open_gate()
    assert finished(led, whole).count("was lost") >= 2


def test_the_leading_process_killed_and_the_run_resumed_at_once(whole: Whole, tmp_path: Path) -> None:
    old = lead(whole, tmp_path, gate_at=1)
    workers = old.wait_at_gate(1, 2)
    folder = old.ray_folder()
    old.process.kill()
    old.process.wait()
    led = lead(whole, tmp_path, "--resume")
    led.open_gate()
    assert "resuming: " in finished(led, whole)
    wait_for(lambda: not any(map(alive, workers)))
    shutil.rmtree(folder)


def test_a_pack_that_kills_its_worker_is_given_up_alone(whole: Whole, tmp_path: Path) -> None:
    led = lead(whole, tmp_path, poison="0,2")
    text = led.end(1)
    assert "1 packs could not be computed (row 0 column 2)" in text and not whole.request.out.exists()
    assert led.packs() == {f"00000_{col:05d}.pack" for col in range(PACKS) if col != 2}
    led.check_alone()
    infer(whole.last)  # one process goes on where several were
    assert whole.request.out.read_bytes() == whole.expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_run_within_three_seconds(
    whole: Whole, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored, which processes inherit
    try:
        led = lead(whole, tmp_path, gate_at=1)
    finally:
        signal.signal(number, before)
    led.wait_at_gate(1, 2)
    began = time.monotonic()
    # a terminal that is closed tells all its processes
    (os.killpg if number == signal.SIGHUP else os.kill)(led.process.pid, number)
    text = led.end(128 + number)
    took = time.monotonic() - began
    led.check_alone()
    assert (
        text.count("error: ") == 1
        and "received" not in text
        and f"interrupted by {number.name}" in text
        and "--resume" in text
    )
    print(f"{number.name}: {took:.1f} s")
    led.open_gate()
    infer(whole.last)  # one process goes on where several were
    assert whole.request.out.read_bytes() == whole.expected


def test_a_second_run_on_the_same_output_is_refused(whole: Whole, tmp_path: Path) -> None:
    led = lead(whole, tmp_path, gate_at=1)
    led.wait_at_gate(1, 2)
    assert "another run is writing" in lead(whole, tmp_path, "--resume").end(2)
    led.open_gate()
    finished(led, whole)


@pytest.mark.parametrize("hold", ["head", "finisher", "other"])
@pytest.mark.parametrize("fault", ["worker", "command"])
def test_stopped_while_the_output_is_assembled(whole: Whole, tmp_path: Path, fault: str, hold: str) -> None:
    """A worker is killed: another assembles, or copies its part again. The command is interrupted: packs are left."""
    led = lead(whole, tmp_path, hold=hold, gate_at=1)
    led.wait_at_gate(1, 2)  # both are there when the packs are done
    led.open_gate()
    held = tmp_path / "held"
    led.wait(held.exists)
    assert list(tmp_path.glob(".o.tif.*.tmp"))
    worker = psutil.Process(int(held.read_text()))
    if fault == "worker":
        kill(worker)
        text = finished(led, whole)
        assert ("the worker that assembled the output was lost" in text) == (hold != "other")
        assert "was lost: its process or its host has ended" in text
        return
    led.process.send_signal(signal.SIGTERM)
    led.end(128 + signal.SIGTERM)
    led.check_alone()
    assert not list(tmp_path.glob(".o.tif.*")) and len(led.packs()) == PACKS
    infer(whole.last)
    assert whole.request.out.read_bytes() == whole.expected
