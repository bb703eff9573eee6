"""What is measured on a GPU runs, and the table of configurations is written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_measure
from bench.traffic import network
from deeplight.kernels import table, tune
from deeplight.kernels.table import Config
from deeplight.kernels.variants import PRESETS, variants


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_measured_cases_are_valid_calls(preset: str) -> None:
    names = []
    for name, op, args, moved in gpu_measure.op_cases(preset, torch.float32, 1, "cpu"):
        result: Any = op(*args, implementation="reference")
        first = result if isinstance(result, torch.Tensor) else result[0]
        assert torch.isfinite(first).all() and moved > 0
        names.append(name)
    assert names == ["fuse", "upsample", "align", "refine"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_table_of_traffic_never_promises_more_bytes(preset: str) -> None:
    for name, cost in network(preset).items():
        assert cost.fused <= cost.compiled <= cost.eager, name


def test_another_block_needs_another_grid() -> None:
    for ready in variants("tiny", torch.float16):
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
    finally:
        table.measured.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [tune.main, gpu_measure.main])
def test_without_a_gpu_it_says_so(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module(["--out", "x"] if module is gpu_measure.main else [])
    assert "no CUDA GPU" in capsys.readouterr().err
