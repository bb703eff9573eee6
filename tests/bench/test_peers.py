"""bench/peers: the tools' windows, the comparison, and two of the tools for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import rasterio

from bench import network
from bench.cases import Case, ntl_grid, write_raster
from bench.peers import job as jobs
from bench.peers.job import WHOLE, PeerJob, allowed, difference, interpreter, make_job, run_tool
from bench.peers.tool import NEEDS, TOOLS, windows
from bench.results import peer_table


@pytest.mark.parametrize(("size", "core", "halo"), [((20, 33), 8, 3), ((7, 5), 8, 3), ((16, 16), 8, 18)])
def test_windows_of_the_loop_cover_the_scene_once(size: tuple[int, int], core: int, halo: int) -> None:
    seen = np.zeros(size, int)
    for (row, col, height, width), (top, left, h, w) in windows(size, core, halo):
        assert row >= 0 and col >= 0 and row + height <= size[0] and col + width <= size[1]
        r, c = row + top, col + left
        seen[r : r + h, c : c + w] += 1
        assert row == max(0, r - halo) and row + height == min(size[0], r + core + halo)
        assert col == max(0, c - halo) and col + width == min(size[1], c + core + halo)
    assert (seen == 1).all()


def test_the_difference_leaves_out_the_rim(tmp_path: Path) -> None:
    grid = ntl_grid(Case(8, 8)).finer()
    want = np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)
    got = want.copy()
    got[0, :8] += 1.0
    got[0, 30, 30] += 0.25
    a, b = (write_raster(tmp_path / f"{n}.tif", grid, x, "zstd") for n, x in (("a", got), ("b", want)))
    assert difference(a, b, 1) == pytest.approx(0.25 / want[0, 8:-8, 8:-8].max(), rel=1e-5)
    assert difference(b, b, 1) == 0


def test_tools_that_are_absent_have_no_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.delenv(jobs.VARIABLE, raising=False)
    # rows of ours that name a runtime need it, and a CPU for its precision
    everywhere = [tool for tool in PeerJob().tools() if "--backend" not in tool]
    assert all(bool(interpreter(tool)) == (tool not in NEEDS) for tool in everywhere)
    assert list(NEEDS) == [tool for tool in TOOLS if tool not in (WHOLE, "rasterio loop")]


def test_the_table_is_relative_to_ours() -> None:
    rows = [
        {"tool": "MONAI", "seconds": 6.0, "cpu_s": 9.0, "peak_memory_bytes": 2e9, "difference": 0.2},
        {
            "tool": "deeplight-infer --tiles 8",
            "seconds": 4.0,
            "cpu_s": 7.0,
            "peak_memory_bytes": 1e9,
            "difference": None,
        },
    ]
    lines = peer_table(rows).splitlines()
    assert lines[2] == "| MONAI | 6.00 | 1.50 | 9.00 | 2000 | 2.0e-01 |"
    assert lines[3] == "| deeplight-infer --tiles 8 | 4.00 | 1.00 | 7.00 | 1000 | – |"


def test_random_weights_are_the_same_and_none_is_idle() -> None:
    first, second = network.random_model(), network.random_model()
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert a.equal(b) and a.any(), name


def test_an_interpreter_without_the_package_finds_its_source(tmp_path: Path) -> None:
    """As that of the peers' environment: without `site` the links to editable installations are not followed."""
    jobs.link_source(tmp_path)
    program = "from deeplight.train.fit.checkpoint import load_checkpoint as f; print(f.__code__.co_filename)"
    places = os.pathsep.join([str(tmp_path), str(jobs.ROOT), *sysconfig.get_paths().values()])
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": places}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr


@pytest.mark.slow
def test_tools_agree_on_a_small_job(tmp_path: Path) -> None:
    """Each in a process of its own, with weights exported for ours; those of the peers' environment where it is."""
    job = PeerJob(size=48, core=24)
    home = make_job(job, tmp_path / "job", tmp_path)
    for tool in job.tools():
        if not interpreter(tool):
            continue
        out = tmp_path / f"{tool.replace(' ', '-')}.tif"
        took = run_tool(tool, home, out)
        assert took["seconds"] > 0 and took["cpu_s"] > 0 and took["peak_memory_bytes"] > 1e8
        with rasterio.open(out) as d:
            assert d.shape == (8 * 48, 8 * 48)
        if tool not in NEEDS:
            assert difference(out, tmp_path / f"{WHOLE.replace(' ', '-')}.tif", 18) <= allowed(tool)
    shutil.rmtree(home)
    with pytest.raises(RuntimeError, match="rasterio loop failed"):
        run_tool("rasterio loop", home, tmp_path / "x.tif")
