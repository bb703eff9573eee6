"""The whole engine on a strip of a synthetic country, from GeoTIFF to GeoTIFF, and its memory by scene size."""

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

from bench.cases import CASES, layers_in, write_case
from bench.conftest import OUT, Measure
from bench.network import RUNTIMES
from bench.rates import Work
from bench.strip import Strip, make_strip
from bench.traffic import network as traffic_of
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.report import RunReport
from deeplight.engine.run.tiling import TileRequest, tile_window
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from tests.engine.analytic import write_analytic

STRIP = Strip(country=2048, rows=256)
CALLS = 3


@pytest.fixture(scope="session")
def strip() -> SceneOptions:
    """The rasters of the strip, which are kept for the next run."""
    return layers_in(make_strip(STRIP, OUT))


def bare_call(request: RunOptions, core: int, halo: int) -> tuple[float, float, np.ndarray]:
    """Median seconds and CPU seconds of the model alone on one tile, and its radiance over the core."""
    artifact = load_artifact(request.model)
    with (
        Scene.open(request.scene) as s,
        open_backend(
            request.backend, artifact, precision=request.precision, threads=available_cpus()
        ) as backend,
    ):
        at = Window(0, core, min(core, s.grid.height), core)
        inputs = s.read_inputs(window := tile_window(at, halo, artifact.manifest, s.grid.shape))
        took = []
        for _ in range(CALLS + 1):
            start, cpu = time.perf_counter(), time.process_time()
            result = backend.run(inputs)["ntl_hr"][0, 0]
            took.append((time.perf_counter() - start, time.process_time() - cpu))
    wall_s, cpu_s = np.median(took[1:], axis=0)
    return float(wall_s), float(cpu_s), result[at.scaled(SCALE).slices_in(window.scaled(SCALE))]


def same_as_bare(out: Path, core: int, want: np.ndarray) -> None:
    """Check that the second tile of the output is what the model alone gives, except for the order of float32 sums."""
    with rasterio.open(out) as d:
        got = d.read(1, window=((0, want.shape[0]), (SCALE * core, SCALE * core + want.shape[1])))
    valid = np.isfinite(got)
    assert valid.any()
    np.testing.assert_allclose(got[valid], want[valid], rtol=0, atol=1e-5 * want.max())


@pytest.mark.benchmark(group="engine")
@pytest.mark.parametrize("variant", RUNTIMES)
def test_strip(
    measure: Measure,
    benchmark: BenchmarkFixture,
    strip: SceneOptions,
    model: str,
    tmp_path: Path,
    variant: str,
) -> None:
    runtime, precision = variant.split()
    try:
        open_backend(runtime, load_artifact(model), precision=precision).close()
    except InputError as e:
        pytest.skip(str(e))
    out = tmp_path / "o.tif"
    request = RunOptions(
        strip, out, model, TileRequest(), backend=runtime, precision=precision, mode=Mode.OVERWRITE
    )
    with Scene.open(strip) as scene:
        lr = scene.grid
    mpix, cost = lr.height * lr.width * SCALE**2 / 1e6, traffic_of("tiny")["network"].flops
    flops = cost * mpix * 1e6
    limit = "matmul_bf16" if precision == "bf16" else "matmul"
    work = Work("engine", variant, mpix, flops, 0, limit, "flops", available_cpus())
    bare: dict[str, Any] = {}

    def check(report: RunReport) -> None:
        core, halo = report.tiles["core"], report.tiles["halo"]
        bare["wall"], bare["cpu"], want = bare_call(request, core, halo)
        same_as_bare(out, core, want)

    before = time.process_time()
    report = measure(lambda: infer(request), check, work, rounds=1)
    # this includes both runs and the calls of the model alone between them; see CALLS
    cpu_s = (time.process_time() - before - (CALLS + 1) * bare["cpu"]) / 2
    tiles = report.tiles["computed"]
    benchmark.extra_info.update(
        wall_over_bare=report.seconds["stream"] / (tiles * bare["wall"]),
        with_assembly=report.seconds["total"] / (tiles * bare["wall"]),
        # CPU time is fairer: on a busy machine the calls alone and the run get different shares of the CPU
        cpu_over_bare=cpu_s / (tiles * bare["cpu"]),
        bare_call_s=bare["wall"],
        core_share=report.tiles["core_share"],
        engine_km2_per_s=report.km2_per_s,
        stage_load=dict(report.load),
        bottleneck=report.bottleneck,
        decoded={k: v["bytes_read"] / v["bytes"] for k, v in report.inputs.items()},
        peak_memory_bytes=report.peak_memory_bytes,
    )
    print(json.dumps(benchmark.extra_info, indent=1))
    assert report.tiles["core_share"] >= 0.6


test_strip.laps = 2  # type: ignore[attr-defined]


def run_apart(scene: SceneOptions, model: str, folder: Path) -> dict[str, Any]:
    """run.json of a run in a process of its own, whose peak memory includes nothing else."""
    command = [sys.executable, "-m", "deeplight.engine.cli", "--ntl", scene.ntl, "--dmo", str(scene.dmo)]
    command += ["--dem", str(scene.dem), "--model", model, "--tiles", "128", "--out", str(folder / "o.tif")]
    command += ["--report", str(folder / "run.json"), "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)
    result: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return result


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("name", ["small", "middle", "four times"])
def test_memory(benchmark: BenchmarkFixture, tmp_path: Path, name: str) -> None:
    """The model takes hardly any memory here, so that it does not hide other memory that grows."""
    model = str(write_analytic(tmp_path / "model"))
    case = CASES[name]
    files = write_case(tmp_path / "scene", case)
    report = benchmark.pedantic(run_apart, args=(files, model, tmp_path), rounds=1)
    assert report["grid"]["hr"] == [SCALE * case.height, SCALE * case.width]
    assert report["status"] == "complete"
    benchmark.extra_info.update(
        scene_hr_mpix=case.hr_mpix,
        peak_memory_bytes=report["peak_memory_bytes"],
        memory_estimate_bytes=report["tiles"]["memory_estimate_bytes"],
    )
