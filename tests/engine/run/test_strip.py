"""bench/strip.py: that it measures what it says, and that its judgement can be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.strip import TENTHS, Strip, drift, judged, make_strip, run_strip, tenths
from tests.engine.analytic import write_analytic


def result(resident: list[float], rates: list[float], tiles: int = 100) -> dict[str, object]:
    return {
        "tiles": tiles,
        "tenths": [{"resident_mb": r, "hr_mpix_per_s": v} for r, v in zip(resident, rates, strict=True)],
    }


def test_tenths_come_from_the_events_and_the_sizes() -> None:
    said = [{"event": "started", "time": "2026-01-01T00:00:00.000+00:00"}]
    for k in range(20):  # a tile of 25 LR pixels every two seconds
        time = f"2026-01-01T00:00:{2 * (k + 1):02d}.000+00:00"
        said.append({"event": "tile", "time": time, "height": 5, "width": 5})
    epoch = 1767225600.0  # 2026-01-01 UTC
    parts = tenths(said, [(epoch - 1, 9_000_000), (epoch + 3, 1_000_000), (epoch + 39, 2_000_000)])
    assert len(parts) == TENTHS
    assert all(p["seconds"] == 4 and p["hr_mpix_per_s"] == pytest.approx(0.0008) for p in parts)
    assert [p["resident_mb"] for p in parts] == [1, *[0] * 8, 2]


def test_a_steady_run_passes_and_others_do_not() -> None:
    flat, noisy = [400.0] * 10, [0.2, 1.02, 0.97, 1.0, 1.05, 0.96, 1.01, 0.99, 1.03, 0.98]
    assert judged(result(flat, noisy)) == []
    assert judged(result([300.0, *flat[1:]], noisy)) == []
    grows = judged(result([400.0 + 10 * k for k in range(10)], noisy))
    assert len(grows) == 1 and grows[0].startswith("memory grew from 440.0 to 490.0 MB")
    slows = judged(result(flat, [1.0 - 0.03 * k for k in range(10)]))
    assert len(slows) == 1 and "the rate changed by -28%" in slows[0]
    assert "too few" in judged(result(flat, noisy, tiles=39))[0]


def test_drift_of_a_line_is_exact() -> None:
    change, error = drift([9.0, 9.5, 10.0, 10.5, 11.0])
    assert change == pytest.approx(0.2) and error == pytest.approx(0, abs=1e-12)
    assert drift([9.0, 11.0, 9.0, 11.0])[1] > 0.1


def test_a_small_strip_is_made_once_and_run(tmp_path: Path) -> None:
    strip = Strip(country=48, rows=8)
    rasters = make_strip(strip, tmp_path)
    written = (rasters / "ntl.tif").stat().st_mtime_ns
    assert make_strip(strip, tmp_path) == rasters
    assert (rasters / "ntl.tif").stat().st_mtime_ns == written
    got = run_strip(rasters, tmp_path, str(write_analytic(tmp_path / "model")), "4")
    assert got["tiles"] == 24 and len(got["tenths"]) == TENTHS
    assert sum(p["hr_mpix"] for p in got["tenths"]) == pytest.approx(48 * 8 * 64 / 1e6, abs=1e-3)
    assert max(p["resident_mb"] for p in got["tenths"]) <= got["report"]["peak_memory_bytes"] / 1e6 + 1
    assert got["report"]["status"] == "complete" and got["report"]["grid"]["lr"] == [8, 48]
    assert "too few" in judged(got)[0]
    json.dumps(got)
