"""Checkpoints that are damaged, or whose card describes no network, are refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.checkpoint import check_start, load_checkpoint, save_checkpoint, shipped
from deeplight.train.fit.run_folder import CARD, WEIGHTS

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4, 4), localise_width=8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run", DeepLightSR(SMALL), {"step": 0})
    return tmp_path / "run"


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08" + b"\0" * 7 + b"{not it}"])
def test_weights_that_are_no_safetensors(run: Path, content: bytes) -> None:
    (run / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file") as e:
        load_checkpoint(run)
    assert "\n" not in str(e.value)


def test_weights_cut_short(run: Path) -> None:
    whole = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_checkpoint(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("main", [8, 8, 4]),
        ("main", [8, 8, 4, 0]),
        ("aux", [8, 4, 4, "4"]),
        ("aux", 8),
        ("main", [8, 8, 4, True]),
        ("refine", [1, 1]),
        ("refine", [1, 1, -1]),
        ("refine", [1, 1, 0.5]),
        ("body", -1),
        ("localise_width", 8.0),
        ("d_max", float("nan")),
        ("preset", None),
        ("normalisation", {"dmo_mean": [0.1]}),
        ("normalisation", {"dem_std": "500"}),
    ],
)
def test_a_card_that_describes_no_network(run: Path, field: str, value: object) -> None:
    card = run / CARD
    values = json.loads(card.read_text())
    values["model"][field] = value
    card.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"not a checkpoint card of this version: {field}.* must be ") as e:
        load_checkpoint(run)
    assert "\n" not in str(e.value)


def test_a_built_in_model_is_a_checkpoint_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped() == ["deeplight-tiny"]
    model, card = load_checkpoint(Path("deeplight-tiny"))
    assert model.config.preset == "tiny" and card["data"]["kind"] == "synthetic"
    save_checkpoint(tmp_path / "deeplight-tiny", DeepLightSR(SMALL), {"step": 0})
    assert load_checkpoint(Path("deeplight-tiny"))[0].config == SMALL, "a path comes first"
    for name in ("deeplight-huge", "weights/deeplight-tiny", "deeplight-tiny/gone"):
        with pytest.raises(
            InputError, match=r"is not there; give .* deeplight-train wrote, or one of deeplight-tiny"
        ):
            load_checkpoint(Path(name))


def test_training_goes_on_from_a_checkpoint_of_the_same_network_only(run: Path) -> None:
    check_start(run, load_checkpoint(run)[0].config, SMALL)
    with pytest.raises(InputError, match=r"of another network \(body 2, not 3\); start from one like"):
        check_start(run, SMALL, replace(SMALL, body=3))
