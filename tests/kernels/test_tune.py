"""Choosing configurations: right before fast, within the time, written so that the table reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight.engine.network import kernel_tuning
from deeplight.engine.network.config import PRESETS
from deeplight.kernels import expected, launch, table, tune
from deeplight.kernels.launch import Launch
from deeplight.kernels.table import Config
from deeplight.kernels.variants import variants

CPU = torch.device("cpu")
SIDE = 16


def first_of(kernel: str) -> Launch:
    return next(v for v in variants(PRESETS["tiny"], torch.float16, side=SIDE) if v.kernel == kernel)


def test_another_block_needs_another_grid() -> None:
    for ready in variants(PRESETS["tiny"], torch.float16):
        for config in tune.candidates(ready.kernel):
            there_and_back = tune.with_config(tune.with_config(ready, config), ready.config)
            assert there_and_back.programs == ready.programs


def test_measured_configurations_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps([tune._json(("fuse", 90, 16, 256), Config(512, 8, 3))]))
    monkeypatch.setattr(table, "MEASURED_FILE", file)
    table.measured.cache_clear()
    try:
        assert table.configuration("fuse", 90, 16, 200, 2) == Config(512, 8, 3)
        assert table.configuration("fuse", 90, 16, 60, 2) == table.REASONED["fuse", 16]
        assert table.configuration("fuse", 80, 16, 200, 2) == table.REASONED["fuse", 16]
        with_rows = {arch: table.digest(arch) for arch in (80, 90)}
        file.write_text("[]")
        table.measured.cache_clear()
        assert with_rows[80] == table.digest(80) and with_rows[90] != table.digest(90)
    finally:
        table.measured.cache_clear()


def times(monkeypatch: pytest.MonkeyPatch, wrong: set[Config], broken: set[Config]) -> Any:
    """In place of the device: right values but for some configurations; a clock by which wrong ones are fastest."""
    now: list[Config] = []

    def run(ready: Launch) -> None:
        now[:] = [ready.config]
        if ready.config in broken:
            raise RuntimeError("out of resource: shared memory\nmore")
        for output, right in expected.expected(ready).items():
            ready.arguments[output].copy_(right)  # type: ignore[union-attr]
            if ready.config in wrong:
                ready.arguments[output][..., -1, -1] += 1e3  # type: ignore[union-attr]

    def clock(call: Any) -> float:
        call()
        return 0.01 if now[0] in wrong else 1.0 / (now[0].block + now[0].warps)

    monkeypatch.setattr(launch, "run", run)
    return clock


def test_what_is_wrong_or_does_not_run_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = first_of("fuse")
    every = tune.candidates("fuse")
    wrong, broken = {every[-1]}, {every[-2]}
    clock = times(monkeypatch, wrong, broken)
    found = list(tune.trials(expected.filled(ready, "cpu"), every, clock))
    by_config = {t.ready.config: t for t in found}
    assert "wrong values" in by_config[every[-1]].problem and by_config[every[-1]].ms is None
    assert by_config[every[-2]].problem == "does not run: out of resource: shared memory"
    assert all(t.ms is not None for c, t in by_config.items() if c not in wrong | broken)


def test_a_launch_that_no_configuration_gets_right_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = times(monkeypatch, set(tune.candidates("fuse")), set())
    said: list[str] = []
    assert tune.tune([(SIDE, first_of("fuse"))], CPU, 60, said.append, clock) == {("fuse", 0, 64, 64): None}
    assert said[-1].endswith("no configuration is right in all 1 launches")
    assert all("wrong values" in line for line in said[:-1])


def test_a_row_that_nothing_is_right_for_goes_and_one_that_was_not_reached_stays() -> None:
    rows = {("fuse", 90, width, 0): Config(32, 4) for width in (16, 32, 64)}
    found = {("fuse", 90, 16, 0): Config(64, 4), ("fuse", 90, 32, 0): None}
    assert tune.merged(rows, found) == {
        ("fuse", 90, 16, 0): Config(64, 4),
        ("fuse", 90, 64, 0): Config(32, 4),
    }


def test_what_there_is_no_time_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    launches = [(SIDE, first_of("fuse")), (SIDE, first_of("align"))]
    assert tune.tune(launches, CPU, -1, said.append, times(monkeypatch, set(), set())) == {}
    assert said == ["no time was left for 2 of 2 rows of the table: give more --seconds"]


def in_both_types() -> list[tuple[int, Launch]]:
    """Two launches that get one row of the table."""
    types = (torch.float16, torch.bfloat16)
    found = [next(variants(PRESETS["tiny"], dtype, side=SIDE)) for dtype in types]
    return [(SIDE, ready) for ready in found]


def type_of(ready: Launch) -> torch.dtype:
    main = ready.arguments["main"]
    assert isinstance(main, Tensor)
    return main.dtype


FUSE = ("fuse", 0, 64, 64)


@pytest.mark.parametrize("wrong_in", [torch.float16, torch.bfloat16])
def test_what_is_wrong_in_one_launch_of_a_row_is_not_chosen(
    wrong_in: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tune.candidates("fuse")[-1]
    clock = times(monkeypatch, set(), set())
    right = launch.run

    def run(ready: Launch) -> None:
        right(ready)
        if ready.config == last and type_of(ready) == wrong_in:
            ready.arguments["out"][..., -1, -1] += 1e3  # type: ignore[index]

    monkeypatch.setattr(launch, "run", run)
    said: list[str] = []
    found = tune.tune(in_both_types(), CPU, 60, said.append, clock)
    assert found == {FUSE: Config(256, 8, 2)}, "the fastest of the others"
    assert "wrong values" in said[0] and len(said) == 2


def test_the_least_time_of_all_launches_of_a_row_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is best for the first, or for the last, is not best for both."""
    ms = {Config(32, 4): (1.0, 9.0), Config(64, 4): (9.0, 1.0), Config(128, 4): (3.0, 3.0)}
    times(monkeypatch, set(), set())
    right, now = launch.run, [0.0]

    def run(ready: Launch) -> None:
        right(ready)
        now[0] = ms.get(ready.config, (10.0, 10.0))[type_of(ready) == torch.bfloat16]

    def clock(call: Any) -> float:
        call()
        return now[0]

    monkeypatch.setattr(launch, "run", run)
    said: list[str] = []
    assert tune.tune(in_both_types(), CPU, 60, said.append, clock) == {FUSE: Config(128, 4)}
    assert said == [f"{FUSE}: {Config(128, 4)}, 6.0000 ms in 2 launches"]


def test_a_row_of_which_a_launch_was_not_reached_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = times(monkeypatch, set(), set())
    now = iter([0.0, 0.0, 100.0])  # the start, the first launch, the second
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    said: list[str] = []
    assert tune.tune(in_both_types(), CPU, 60, said.append, clock) == {}
    assert said == ["no time was left for 1 of 1 rows of the table: give more --seconds"]


def test_what_the_device_cannot_hold_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = times(monkeypatch, set(), set())
    filled = expected.filled

    def too_large(ready: Launch, device: str) -> Launch:
        if ready.kernel == "fuse":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return filled(ready, device)

    monkeypatch.setattr(expected, "filled", too_large)
    said: list[str] = []
    found = tune.tune(
        [(SIDE, first_of("fuse")), (SIDE, first_of("refine_narrow"))], CPU, 60, said.append, clock
    )
    assert [key[0] for key in found] == ["refine_narrow"] and "too little memory" in said[0]


def test_the_command_measures_what_all_users_of_a_row_launch() -> None:
    """Both presets, both two-byte types and a width of every bucket; each row once, the wide ones first."""
    asked = list(kernel_tuning.launches())
    rows = tune.by_key(asked, 90)
    assert {bucket for *_, bucket in rows} == {*table.BUCKETS, 0}
    assert next(iter(rows))[3] == 0
    for width in kernel_tuning.SIDES:
        for preset in PRESETS.values():
            for dtype in (torch.float16, torch.bfloat16):
                for ready in variants(preset, dtype, side=width):
                    group = rows[ready.kernel, 90, tune.channels_of(ready), table.bucket(width)]
                    assert ready.key in {other.key for other in group}
    fuse = rows["fuse", 90, 32, 0]
    assert len({(r.constants["CP"], r.constants["AP"], r.key) for r in fuse}) == 4
    align = rows["align", 90, 8, 0]
    # two types of features, four of raw pixels in two strides, and the normalised bands with their mask
    assert len(align) == 2 * 9, "both presets launch the same, which is measured once"


def test_rows_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    rows = tune.tune([(64, first_of("fuse"))], CPU, 60, said.append, times(monkeypatch, set(), set()))
    tune.write(rows, tmp_path / "measured.json")
    monkeypatch.setattr(table, "MEASURED_FILE", tmp_path / "measured.json")
    table.measured.cache_clear()
    try:
        assert table.measured() == rows == {("fuse", 0, 64, 64): Config(256, 8)}
    finally:
        table.measured.cache_clear()


@pytest.mark.parametrize(("kernel", "place"), [("refine_narrow", 0), ("finish", 0), ("finish", 1)])
def test_in_the_interpreter_another_configuration_computes_the_same(
    device: str, kernel: str, place: int
) -> None:
    launches = variants(PRESETS["tiny"], torch.float16, side=SIDE)
    ready = expected.filled([v for v in launches if v.kernel == kernel][place], device)
    configs = [c for c in tune.candidates(kernel) if c.stages == 2 and c.warps == 8]
    for trial in tune.trials(ready, configs[:2], lambda run: 1.0):
        assert trial.ms == 1.0 and trial.error is not None and trial.error <= 1, trial.problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        kernel_tuning.main([])
    assert stop.value.code == 2 and "no CUDA GPU" in capsys.readouterr().err
