"""deeplight-score: the model card's table, printed for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.cli import score_command
from deeplight.train.evaluation import scores
from deeplight.train.fit.checkpoint import save_checkpoint


@pytest.mark.slow
def test_the_table_of_the_card_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)
    save_checkpoint(tmp_path, DeepLightSR(config), {"step": 0})
    monkeypatch.setattr(scores, "HELD_OUT_SEEDS", range(910_600, 910_601))
    done = CliRunner().invoke(score_command, [str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| DMO + DEM", "| DMO", "| DEM", "| none", "| bicubic",
    ]  # fmt: skip
    # an untrained network adds nothing to its bicubic base, of log radiance rather than of radiance
    gains = [float(line.split(" | ")[2].split()[0]) for line in lines[2:6]]
    assert len(set(gains)) == 1 and abs(gains[0]) < 3


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(score_command, [str(tmp_path)])
    assert "unknown model" in str(done.exception)
