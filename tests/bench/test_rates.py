"""bench/rates.py and bench/results.py: rates with units, medians over laps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bench.machine import Limits
from bench.rates import Work, hr_mpix, km2_per_hr_mpix, rates
from bench.results import load
from deeplight.engine.core.errors import InputError
from tests.bench import runs


def test_rates_have_units() -> None:
    work = asdict(Work("align", "x", 4.0, flops=8e9, bytes=200e6, limit="copy_one"))
    found = rates(work, 0.5, Limits(copy_one=1e9))
    assert found["hr_mpix_per_s"] == 8 and found["bytes_per_hr_px"] == 50
    assert found["gb_per_s"] == 0.4 and found["gflop_per_s"] == 16
    assert found["limit_fraction"] == pytest.approx(0.4)
    assert found["km2_per_s"] == pytest.approx(8 * km2_per_hr_mpix())


def test_a_fraction_is_of_the_amount_that_is_named() -> None:
    work = asdict(Work("model", "x", 1.0, flops=50e9, bytes=1e9, limit="matmul", amount="flops"))
    assert rates(work, 1.0, Limits(matmul=100e9))["limit_fraction"] == 0.5


def test_what_is_not_known_is_left_out() -> None:
    found = rates(asdict(Work("x", "y", 0.0, bytes=1e9)), 1.0, Limits())
    assert set(found) == {"gb_per_s"}


def test_ground_of_hr_pixels() -> None:
    # 15″ / 8 are 57.9 m along a meridian, times the cosine of 21.3° along the parallel
    assert km2_per_hr_mpix() == pytest.approx(0.0579**2 * 0.9316 * 1e6, rel=3e-3)
    assert hr_mpix(2, 100) == 1.28


def test_limits_keep_the_best_of_each() -> None:
    best = Limits(matmul=1, copy=5).best(Limits(matmul=3, copy=2))
    assert (best.matmul, best.copy) == (3, 5)


def test_laps_become_medians(tmp_path: Path) -> None:
    run = load(runs.write(tmp_path))
    assert len(run.rows) == len(runs.STAGES) and run.laps == 3
    row = run.find("decode", "zstd")
    assert row is not None and row.seconds == pytest.approx(0.2) and row.spread == pytest.approx(0.2)
    assert row.rate("hr_mpix_per_s") == pytest.approx(20.0)
    assert row.rate("limit_fraction") == pytest.approx(0.14)
    batch = run.find("model", "onnx", batch=2)
    assert batch is not None and batch.tile == 100
    assert [m["scene_hr_mpix"] for m in run.memory] == [4.2, 16.8, 67.1]
    assert [p["tool"] for p in run.peers][-1].startswith("deeplight-infer")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"deeplight": {}, "machine_info": {"deeplight": {}}, "benchmarks": []}']
)
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a result of `make bench`") as caught:
        load(path)
    assert "\n" not in str(caught.value)
