"""bench/budget.py: the bottleneck by formula, the queues by simulation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.budget import (
    CORE,
    HALO,
    Costs,
    Machine,
    flow,
    gpu_model_s,
    measured_costs,
    nation_tiles,
    on,
    predict,
    simulate,
)
from bench.results import load
from deeplight.engine.core.windows import core_share
from deeplight.engine.run.tiling import TileRequest, plan_tiles
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from tests.bench import runs


def test_the_tile_is_the_one_that_auto_takes() -> None:
    manifest = load_artifact(DEFAULT_MODEL).manifest
    plan = plan_tiles(TileRequest(), manifest, 7500, 10_000, 1, 64 << 30)
    assert (plan.core, plan.halo) == (CORE, HALO)


def test_costs_count_the_halo_where_it_is_computed(tmp_path: Path) -> None:
    costs = measured_costs(load(runs.write(tmp_path)))
    assert costs is not None
    share = core_share(CORE, HALO)
    # decode 0.05 s per HR Mpix once, the rest of reading (0.1 − 0.05) and the model (1.0) again in every halo
    assert costs.read == pytest.approx(0.05 + 0.05 / share)
    assert costs.model == pytest.approx(1.0 / share)
    assert costs.write == pytest.approx(0.02) and costs.assemble == pytest.approx(0.01)


def test_without_a_device_everything_shares_the_cores() -> None:
    found = predict(Costs(read=0.2, model=0.7, write=0.1, assemble=0.05), Machine("m", 2))
    assert found.hr_mpix_per_s == pytest.approx(1 / (0.1 + 0.7 + 0.05 + 0.05))
    assert found.bottleneck == "model"


def test_with_devices_the_slower_side_decides() -> None:
    costs = Costs(read=0.032, model=0.0005, write=0.016, assemble=0.001)
    found = predict(costs, Machine("m", 16, 1))
    assert found.hr_mpix_per_s == pytest.approx(1 / (0.003 + 0.001)) and found.bottleneck == "read"
    slow = predict(Costs(0.016, 0.1, 0.0, 0.0), Machine("m", 16, 1))
    assert slow.hr_mpix_per_s == pytest.approx(10) and slow.bottleneck == "model"
    assert predict(Costs(0.016, 0.1, 0.0, 0.0), Machine("m", 16, 8)).hr_mpix_per_s == pytest.approx(80)


def test_another_machine_scales_the_model(tmp_path: Path) -> None:
    costs = Costs(0.1, 0.8, 0.1, 0.01)
    assert on(costs, Machine("m", 16), 2).model == pytest.approx(0.1)
    seconds, source = gpu_model_s(tmp_path)
    assert "not measured" in source and 1e3 < 1 / seconds < 1e4
    (tmp_path / "gpu-x-20260101").mkdir()
    (tmp_path / "gpu-x-20260101" / "network.json").write_text(
        '[{"what": "network", "preset": "tiny", "way": "both", "ms": 1.0, "hr_mpix_per_s": 500.0},'
        ' {"what": "network", "preset": "tiny", "way": "eager", "error": "RuntimeError: x"}, {"left_out": "y"}]'
    )
    assert gpu_model_s(tmp_path) == (0.002, "measured, gpu-x-20260101")


def test_flow_of_one_slow_stage() -> None:
    start = flow([[1.0, 3.0, 1.0]] * 4, [1, 1, 1])
    assert start[1] == [1.0, 4.0, 7.0, 10.0] and start[2] == [4.0, 7.0, 10.0, 13.0]


def test_a_full_queue_holds_the_stage_before_it() -> None:
    start = flow([[1.0, 10.0]] * 5, [1, 1], queue=2)
    # items 1 and 2 wait in the queue, item 3 is done at 4 but stays with its worker until item 1 is taken at 11
    assert start[0] == [0.0, 1.0, 2.0, 3.0, 11.0]
    assert start[1] == [1.0, 11.0, 21.0, 31.0, 41.0]


def test_two_workers_take_turns() -> None:
    start = flow([[2.0, 0.1]] * 4, [2, 1])
    assert start[0] == [0.0, 0.0, 2.0, 2.0]


def test_simulation_agrees_with_the_formula_where_nothing_waits_long() -> None:
    costs, machine = Costs(0.05, 1.0, 0.02, 0.01), Machine("m", 2)
    found = simulate(costs, machine, [(4.0, True)] * 50)
    assert found.hr_mpix_per_s == pytest.approx(predict(costs, machine).hr_mpix_per_s, rel=0.02)
    assert found.bottleneck == "model" and found.load["model"] > 0.9


def test_simulation_has_as_many_workers_as_the_engine() -> None:
    found = simulate(Costs(0.04, 0.001, 0.001, 0.0), Machine("g", 16, 1), [(4.0, True)] * 400)
    # four readers on sixteen cores
    assert found.bottleneck == "read" and found.hr_mpix_per_s == pytest.approx(100, rel=0.02)
    eight = simulate(Costs(0.04, 0.001, 0.001, 0.0), Machine("g", 128, 8), [(4.0, True)] * 3200)
    assert eight.hr_mpix_per_s == pytest.approx(800, rel=0.02)


def test_the_nation_has_its_size_and_its_land() -> None:
    tiles = list(nation_tiles())
    assert sum(mpix for mpix, _ in tiles) == pytest.approx(4800)
    assert len(tiles) == math.ceil(80_000 / 2048) * math.ceil(60_000 / 2048)
    land = sum(mpix for mpix, has in tiles if has)
    assert 2500 < land < 2500 * 1.15  # tiles on the border are whole


def test_the_nation_skips_what_has_no_data() -> None:
    found = simulate(Costs(0.05, 1.0, 0.02, 0.01), Machine("m", 2), list(nation_tiles()))
    assert found.tiles[0] + found.tiles[1] == 1200 and found.tiles[1] > 400
    assert 2500 < found.seconds < 4000
