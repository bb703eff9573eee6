"""A further date of a stack: its time and what it reads, beside a run over one date."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, Case, write_case
from deeplight.engine.raster.scene import SceneOptions
from tests.engine.analytic import write_analytic

DATES = 6
FORMS = {"reading": CASES["host"], "network": Case(96, 96)}
"""What is the limit → the scene: with a model that does almost nothing, and with the one to measure."""


def run_apart(scene: SceneOptions, model: str, out: Path, ntl: str) -> dict[str, Any]:
    """run.json of a run in a process of its own. ntl: a file, or a pattern of dates."""
    report = out.with_suffix(".json")
    command = [sys.executable, "-m", "deeplight.engine.cli", "--ntl", ntl, "--dmo", str(scene.dmo), "--dem"]
    command += [str(scene.dem), "--model", model, "--out", str(out), "--report", str(report), "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)
    result: dict[str, Any] = json.loads(report.read_text())
    return result


@pytest.mark.benchmark(group="stack")
@pytest.mark.parametrize("limit", FORMS)
def test_further_dates(benchmark: BenchmarkFixture, model: str, tmp_path: Path, limit: str) -> None:
    """The lights of all dates are the same, which no date can know."""
    model = str(write_analytic(tmp_path / "model")) if limit == "reading" else model
    scene = write_case(tmp_path / "scene", FORMS[limit])
    for month in range(1, DATES + 1):
        os.link(scene.ntl, tmp_path / f"ntl-2020-{month:02}.tif")
    one = run_apart(scene, model, tmp_path / "one.tif", str(tmp_path / "ntl-2020-01.tif"))
    pattern = str(tmp_path / "ntl-*.tif")
    stack = benchmark.pedantic(run_apart, args=(scene, model, tmp_path / "lights", pattern), rounds=1)
    first, *further = (date["run"] for date in stack["dates"])
    assert len(further) == DATES - 1
    for date in further:
        assert date["inputs"]["dmo"]["bytes_read"] == date["inputs"]["dem"]["bytes_read"] == 0
    seconds = statistics.median(date["seconds"]["total"] for date in further)
    benchmark.extra_info.update(
        one_s=one["seconds"]["total"],
        further_s=seconds,
        further_over_one=seconds / one["seconds"]["total"],
        model_s=statistics.median(date["load"]["infer"] * date["seconds"]["stream"] for date in further),
        one_bytes_read=one["bytes_read"],
        further_bytes_read=statistics.median(date["bytes_read"] for date in further),
        first_bytes_read=first["bytes_read"],
        peak_memory_bytes=(one["peak_memory_bytes"], stack["peak_memory_bytes"]),
    )
    print(json.dumps(benchmark.extra_info, indent=1))
