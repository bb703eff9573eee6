"""Minutes of work: memory stays flat and throughput constant along a strip of a country. Run with -m soak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case, write_case
from bench.strip import run_strip

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_strip(benchmark: BenchmarkFixture, model: str, tmp_path: Path) -> None:
    """64 tiles of 128 LR pixels."""
    scene = write_case(tmp_path / "strip", Case(128, 8192))
    result = benchmark.pedantic(run_strip, args=(scene, model, tmp_path / "o.tif", 128), rounds=1)
    benchmark.extra_info.update(result)
    print(json.dumps(result, indent=1))
    sizes = [t["resident_mb"] for t in result["tenths"]]
    rates = [t["hr_mpix_per_s"] for t in result["tenths"]]
    assert result["tiles"] == 64 and result["hr_mpix"] == pytest.approx(128 * 8192 * 64 / 1e6)
    # GDAL's block cache of 256 MB may still fill in the first half
    assert max(sizes[5:]) <= 1.1 * max(sizes[2:5]), sizes
    # a shared machine: the second half's median against the first's
    assert np.median(rates[5:]) > 0.7 * np.median(rates[1:5]), rates
    decoded = {k: v["bytes_read"] / v["bytes"] for k, v in result["report"]["inputs"].items()}
    assert all(v < 1.15 for v in decoded.values()), decoded
