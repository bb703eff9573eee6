"""A stack killed with SIGKILL while a later date is at work, then resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.engine.analytic import write_analytic
from tests.scenes import write_raster

DATES, HELD_DATE, HELD_PACK = 6, 5, 2
PACKS = 3
PATIENCE_S = 60.0
HOLD = """
import os, threading, time
from pathlib import Path
from deeplight.engine import cli
from deeplight.engine.output import packs
write, stored, one = packs.PackStore.write, [], threading.Lock()
def hold(self, *a):
    with one:
        write(self, *a)
        stored.append(1)
        if len(stored) == int(os.environ["HELD_AFTER"]):
            Path(os.environ["HELD"]).touch()
            time.sleep(600)
packs.PackStore.write = hold
cli.main()
"""
"""deeplight-infer that stays where it is once so many packs are stored, and says that it is there."""
HOLD_SHARD = """
import os, time
from pathlib import Path
import zarr.storage._local as local
from deeplight.engine import cli
put, stored = local._put, []
def hold(path, value, exclusive=False):
    if "c" in path.parts and "ntl" in path.parts:
        stored.append(1)
        if len(stored) == int(os.environ["HELD_AFTER"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            Path(os.environ["HELD"]).touch()
            time.sleep(600)
    return put(path, value, exclusive)
local._put = hold
cli.main()
"""
"""The same once so many shards of lights are written into a Zarr group, and half of the next."""


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "--ntl", str(folder / "ntl-*.tif"), "--out", str(out), "--model", str(folder / "analytic"),
        "--tiles", "128", "--threads", "1", *more,
    ]  # fmt: skip


def finish(arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deeplight.engine.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def write_dates(folder: Path, count: int) -> None:
    random = np.random.default_rng(5)
    for date in range(1, count + 1):
        lights = random.gamma(0.5, 8.0, (3, 2 * 256 + 20)).astype(np.float32)
        write_raster(folder / f"ntl-2020-{date:02}.tif", lights)
    write_analytic(folder / "analytic")


def killed(program: str, arguments: list[str], held: Path, after: int) -> None:
    """Run `program` until it says that it is held, then end it with SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "HELD": str(held), "HELD_AFTER": str(after)},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not held.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert held.exists()


@pytest.mark.slow
def test_killed_in_the_fifth_date(tmp_path: Path) -> None:
    write_dates(tmp_path, DATES)
    out, plain, held = tmp_path / "out", tmp_path / "plain", tmp_path / "held"
    finish(command(tmp_path, plain))
    after = PACKS * (HELD_DATE - 1) + HELD_PACK
    killed(HOLD, command(tmp_path, out), held, after)
    maps = {path.name: path for path in out.glob("*.tif")}
    assert sorted(maps) == [f"2020-0{date}.tif" for date in range(1, HELD_DATE)]
    packs = {p: p.stat().st_ino for p in (out / f"2020-0{HELD_DATE}.tif.parts").rglob("*.pack")}
    assert HELD_PACK <= len(packs) < PACKS
    before = {name: path.stat().st_mtime_ns for name, path in maps.items()}
    told = finish(command(tmp_path, out, "--resume"))
    assert told.count("is complete already") == HELD_DATE - 1
    assert f"2020-0{HELD_DATE} ({HELD_DATE} of {DATES}): resuming" in told
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    dates = json.loads((out / "run.json").read_text())["dates"]
    kept = [date["run"]["packs"]["kept_from_earlier_run"] for date in dates]
    assert kept == [0] * (HELD_DATE - 1) + [len(packs)] + [0] * (DATES - HELD_DATE)
    assert {p.name for p in out.iterdir()} == {p.name for p in plain.iterdir()}
    for path in plain.iterdir():
        if path.name != "run.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "after"), [(HOLD, PACKS + HELD_PACK), (HOLD_SHARD, PACKS + 2)], ids=["pack", "shard"]
)
def test_a_zarr_group_killed_in_the_second_date(tmp_path: Path, program: str, after: int) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    write_dates(tmp_path, 3)
    out, plain = tmp_path / "out.zarr", tmp_path / "plain.zarr"
    finish(command(tmp_path, plain))
    killed(program, command(tmp_path, out), tmp_path / "held", after)
    assert not out.exists()
    first = tmp_path / "out.zarr.parts" / "store" / "ntl" / "c" / "0" / "0" / "0"
    before = first.stat().st_mtime_ns
    told = finish(command(tmp_path, out, "--resume"))
    assert told.count("is complete already") == 1 + (program == HOLD_SHARD)
    assert (out / "ntl" / "c" / "0" / "0" / "0").stat().st_mtime_ns == before
    assert not (tmp_path / "out.zarr.parts").exists()
    files = {p.relative_to(plain) for p in plain.rglob("*") if p.is_file()}
    assert {p.relative_to(out) for p in out.rglob("*") if p.is_file()} == files
    for file in files:
        assert (out / file).read_bytes() == (plain / file).read_bytes(), file
