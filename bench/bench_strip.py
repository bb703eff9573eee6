"""Memory stays flat and throughput constant along a strip of a country. It takes minutes; run it with -m soak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.strip import Strip, judged, make_strip, run_strip

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_strip(benchmark: BenchmarkFixture, model: str, tmp_path: Path) -> None:
    """A strip of 128 tiles of 64 LR pixels, across the whole width of a country of 8192."""
    strip = Strip(rows=64)
    rasters = make_strip(strip, tmp_path)
    result = benchmark.pedantic(run_strip, args=(rasters, tmp_path, model, "64"), rounds=1)
    benchmark.extra_info.update(result)
    print(json.dumps(result, indent=1))
    assert result["tiles"] == 128
    assert sum(p["hr_mpix"] for p in result["tenths"]) == pytest.approx(64 * 8192 * 64 / 1e6, rel=1e-3)
    assert judged(result) == []
    decoded = {k: v["bytes_read"] / v["bytes"] for k, v in result["report"]["inputs"].items()}
    assert all(v < 1.15 for v in decoded.values()), decoded
