"""A run on the device path killed with SIGKILL while tiles are on their way, or beside it, then resumed on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from tests.conftest import ROOT
from tests.engine.analytic import onnx_bytes, write_model
from tests.scenes import ARC, NORTH, WEST, write_raster

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import paths, pipeline
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import TileRequest
from tests.engine.device.runs import OnDevice, analytic
from tests.engine.device.standin import StandIn

folder, seed, held, beside = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "held", int(sys.argv[4])

def stored():
    return len(list(folder.glob("o.tif.parts/packs-*/*.pack")))

before, calls = stored(), []

def compute(inputs):
    if held and stored() > before:
        time.sleep(600)
    return [x * (1 + 2.0**-7) for x in analytic(inputs)]

def on_host(inputs):
    calls.append(0)
    if len(calls) == beside:
        (folder / f"held {seed}").touch()
        time.sleep(600)
    return analytic(inputs)

paths.open_model = lambda *_: OnDevice(on_host, StandIn(seed), compute)
layers = {name: str(folder / f"{name}.tif") for name in ("ntl", "dem") if (folder / f"{name}.tif").exists()}
bands = {slot: str(folder / f"{slot}.tif") for slot in ("red",) if (folder / f"{slot}.tif").exists()}
report = pipeline.infer(RunOptions(
    scene=SceneOptions(**layers, dmo_files=bands), out=folder / "o.tif", model=str(folder / "analytic"),
    tiles=TileRequest(16), threads=2, mode=Mode.RESUME, dtype="uint16",
))
(folder / "packs.json").write_text(json.dumps(report.packs))
(folder / "host_tiles.json").write_text(json.dumps(report.device["host_tiles"]))
"""
"""What is held goes no further than the first pack that it stores, or than a tile that the host makes: a busy machine
cannot miss it. The device's numbers are not the host's, so that bytes tell which one made a tile."""
PACKS, PATIENCE_S = 9, 120.0


def start(folder: Path, seed: int, how: str, beside: int = 0) -> subprocess.Popen[bytes]:
    """how: "held" at the first pack that it stores, or "free". beside: the tile of the host's at which it is held,
    counted from 1; 0: at none."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seed), how, str(beside)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def finish(folder: Path, seed: int) -> dict[str, int]:
    """A run that nobody disturbs; what its report says of packs."""
    process = start(folder, seed, "free")
    said = process.communicate(timeout=PATIENCE_S)[1].decode()
    assert process.returncode == 0, said
    packs: dict[str, int] = json.loads((folder / "packs.json").read_text())
    return packs


def stored(folder: Path) -> dict[str, int]:
    """Pack → when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("o.tif.parts/packs-*/*.pack")}


def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=PATIENCE_S)[1].decode()
    assert process.returncode == -signal.SIGKILL, said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_between_packs_and_resumed_on_the_device(tmp_path: Path) -> None:
    """In each round the stand-in does what is asked of it in another order."""
    ntl = np.random.default_rng(5).gamma(0.5, 8.0, (3, 8 * 256 + 20)).astype(np.float32)
    write_raster(tmp_path / "ntl.tif", ntl)
    write_model(tmp_path / "analytic", onnx_bytes(), halo_lr=4)
    assert finish(tmp_path, 0)["written"] == PACKS
    expected = (tmp_path / "o.tif").read_bytes()
    (tmp_path / "o.tif").unlink()
    kept: dict[str, int] = {}
    for seed in (1, 2, 3):
        process = start(tmp_path, seed, "held")
        until = time.monotonic() + PATIENCE_S
        while len(stored(tmp_path)) == len(kept) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        killed(process)
        now = stored(tmp_path)
        assert len(now) > len(kept) and kept.items() <= now.items(), "no pack is lost or written twice"
        assert not (tmp_path / "o.tif").exists()
        kept = now
    done = finish(tmp_path, 4)
    assert done == {"written": PACKS - len(kept), "all_nodata": 0, "kept_from_earlier_run": len(kept)}
    assert (tmp_path / "o.tif").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_while_the_host_makes_a_tile_beside_the_device(tmp_path: Path) -> None:
    """Ends of a layer overlap in the second pack, those of another in the sixth; killed at one, then at the other."""
    ntl = np.random.default_rng(5).gamma(0.5, 8.0, (3, 8 * 256 + 20)).astype(np.float32)
    write_raster(tmp_path / "ntl.tif", ntl)
    for name, col, scale in (("red", 400.3, 1e-4), ("dem", 1424.3, 1.0)):
        place = Affine(0.1, 0, WEST + col * ARC - 0.1, 0, -0.1, NORTH + 0.5)
        values = np.random.default_rng(6).integers(1, 3000, (12, 3600)).astype(np.int16)
        values = np.pad(values, ((0, 0), (1, 1)), "wrap")
        write_raster(tmp_path / f"{name}.tif", values, transform=place, scales=[scale])
    write_model(tmp_path / "analytic", onnx_bytes(), halo_lr=4)
    assert finish(tmp_path, 0)["written"] == PACKS
    tiles = int((tmp_path / "host_tiles.json").read_text())
    assert tiles >= 4 and tiles % 2 == 0, "as many at either place"
    expected = (tmp_path / "o.tif").read_bytes()
    (tmp_path / "o.tif").unlink()
    kept: dict[str, int] = {}
    for seed, beside, packs in ((1, 2, 1), (2, tiles // 2 + 1, 3)):
        process = start(tmp_path, seed, "free", beside)
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < until:
            if (tmp_path / f"held {seed}").exists() and len(stored(tmp_path)) >= packs:
                break
            time.sleep(0.002)
        killed(process)
        now = stored(tmp_path)
        assert packs <= len(now) < PACKS and kept.items() <= now.items()
        kept = now
    done = finish(tmp_path, 3)
    assert done == {"written": PACKS - len(kept), "all_nodata": 0, "kept_from_earlier_run": len(kept)}
    assert 0 < int((tmp_path / "host_tiles.json").read_text()) <= tiles // 2, (
        "those of the second pack are kept"
    )
    assert (tmp_path / "o.tif").read_bytes() == expected
