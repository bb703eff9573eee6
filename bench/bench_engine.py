"""The streaming engine on CPU: wall time over bare model calls, and memory that does not grow with the scene."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, write_case
from deeplight.engine.artifact import load_artifact
from deeplight.engine.backends import open_backend
from deeplight.engine.machine import available_cpus
from deeplight.engine.options import RunOptions
from deeplight.engine.parts import Mode
from deeplight.engine.pipeline import infer
from deeplight.engine.scene import Scene, SceneOptions
from deeplight.engine.tiles import Window
from deeplight.engine.tiling import TileRequest, tile_window
from tests.engine.analytic import write_analytic

WALL_OVER_BARE, MEMORY_OF_FOUR_TIMES = 1.15, 1.1
CALLS = 5


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    return write_case(tmp_path_factory.mktemp("engine"), CASES["engine"])


def bare_call_s(scene: SceneOptions, model: str, core: int, halo: int) -> tuple[float, float, np.ndarray]:
    """Median seconds and CPU seconds of the model alone on one tile, and its radiance over the core."""
    artifact = load_artifact(model)
    with (
        Scene.open(scene) as s,
        open_backend("auto", artifact, threads=available_cpus()) as backend,
    ):
        window = tile_window(Window(core, core, core, core), halo, artifact.manifest)
        inputs = s.read_inputs(window)
        took = []
        for _ in range(CALLS + 1):
            start, cpu = time.perf_counter(), time.process_time()
            result = backend.run(inputs)["ntl_hr"][0, 0]
            took.append((time.perf_counter() - start, time.process_time() - cpu))
    wall_s, cpu_s = np.median(took[1:], axis=0)
    return float(wall_s), float(cpu_s), result[8 * halo : 8 * (halo + core), 8 * halo : 8 * (halo + core)]


def test_wall_time_over_bare_calls(
    benchmark: BenchmarkFixture, scene: SceneOptions, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "o.tif"
    request = RunOptions(scene, out, model, TileRequest(), mode=Mode.OVERWRITE)
    cpu = time.process_time()
    report = benchmark.pedantic(infer, args=(request,), rounds=1, warmup_rounds=0)
    cpu = time.process_time() - cpu
    core, halo = report.tiles["core"], report.tiles["halo"]
    bare_s, bare_cpu_s, wanted = bare_call_s(scene, model, core, halo)
    with rasterio.open(out) as d:
        got = d.read(1, window=((8 * core, 16 * core), (8 * core, 16 * core)))
    # float32 sums in another order, relative to the range
    np.testing.assert_allclose(got, wanted[: got.shape[0]], rtol=0, atol=1e-5 * wanted.max())
    ratio = report.seconds["stream"] / (report.tiles["computed"] * bare_s)
    benchmark.extra_info.update(
        wall_over_bare=ratio,
        with_assembly=report.seconds["total"] / (report.tiles["computed"] * bare_s),
        bare_call_s=bare_s,
        # on a busy machine the calls alone and those of the run get different shares of it; CPU time is fairer
        cpu_over_bare=cpu / (report.tiles["computed"] * bare_cpu_s),
        core_share=report.tiles["core_share"],
        hr_mpix_per_s=report.hr_mpix_per_s,
        load=report.load,
        bottleneck=report.bottleneck,
        decoded={k: v["bytes_read"] / v["bytes"] for k, v in report.inputs.items()},
        peak_memory_bytes=report.peak_memory_bytes,
    )
    print(json.dumps(benchmark.extra_info, indent=1))
    assert report.tiles["core_share"] >= 0.6
    assert ratio <= WALL_OVER_BARE


def run_apart(scene: SceneOptions, model: str, folder: Path) -> dict[str, Any]:
    """run.json of a run in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "deeplight.engine.cli", "--ntl", scene.ntl, "--dmo", str(scene.dmo)]
    command += ["--dem", str(scene.dem), "--model", model, "--tiles", "128", "--out", str(folder / "o.tif")]
    command += ["--report", str(folder / "run.json"), "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)
    result: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return result


def test_memory_of_a_scene_four_times_as_large(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """With a model that takes next to no memory itself, so that none of it hides what grows."""
    model = str(write_analytic(tmp_path / "model"))
    reports = {}
    for name in ("small", "four times"):
        files = write_case(tmp_path / name, CASES[name])
        if name == "small":
            reports[name] = run_apart(files, model, tmp_path)
        else:
            reports[name] = benchmark.pedantic(run_apart, args=(files, model, tmp_path), rounds=1)
        case = CASES[name]
        assert reports[name]["grid"]["hr"] == [8 * case.height, 8 * case.width]
        assert reports[name]["status"] == "complete"
    peaks = {name: r["peak_memory_bytes"] for name, r in reports.items()}
    benchmark.extra_info.update(
        peaks=peaks,
        estimates={name: r["tiles"]["memory_estimate_bytes"] for name, r in reports.items()},
        ratio=peaks["four times"] / peaks["small"],
    )
    print(json.dumps(benchmark.extra_info, indent=1))
    assert peaks["four times"] <= MEMORY_OF_FOUR_TIMES * peaks["small"]
