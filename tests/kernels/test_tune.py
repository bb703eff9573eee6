"""Choosing configurations: right before fast, within the time, written so that the table reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_the_fastest_that_is_right_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = first_of("fuse")
    every = tune.candidates("fuse")
    wrong, broken = {every[-1]}, {every[-2]}
    clock = times(monkeypatch, wrong, broken)
    found = list(tune.trials(expected.filled(ready, "cpu"), every, clock))
    best = tune.best(found)
    assert best is not None and best.ready.config == every[-3]
    by_config = {t.ready.config: t for t in found}
    assert "wrong values" in by_config[every[-1]].problem and by_config[every[-1]].ms is None
    assert by_config[every[-2]].problem == "does not run: out of resource: shared memory"
    assert all(t.ms is not None for c, t in by_config.items() if c not in wrong | broken)


def test_a_launch_that_no_configuration_gets_right_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = times(monkeypatch, set(tune.candidates("fuse")), set())
    said: list[str] = []
    assert tune.tune([(SIDE, first_of("fuse"))], CPU, 60, said.append, clock) == {}
    assert said[-1].endswith("no configuration is right") and all(
        "wrong values" in line for line in said[:-1]
    )


def test_what_there_is_no_time_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    launches = [(SIDE, first_of("fuse")), (SIDE, first_of("align"))]
    assert tune.tune(launches, CPU, -1, said.append, times(monkeypatch, set(), set())) == {}
    assert said == ["no time was left for 2 of 2 launches: give more --seconds"]


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


@pytest.mark.parametrize(("kernel", "place"), [("refine", 0), ("finish", 0), ("finish", 1)])
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
