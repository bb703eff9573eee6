"""Checkpoints: weights as safetensors, everything else as JSON beside them. Never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from deeplight.engine.errors import InputError
from deeplight.train.config import ModelConfig
from deeplight.train.model import DeepLightSR
from deeplight.train.run_folder import CARD, WEIGHTS


def save_checkpoint(run: Path, model: DeepLightSR, card: dict[str, Any]) -> None:
    """Write the weights and `card` (step, objective, data, metrics …) into `run`; each file by rename, never half."""
    run.mkdir(parents=True, exist_ok=True)
    weights = run / (WEIGHTS + ".tmp")
    save_file({k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}, weights)
    weights.replace(run / WEIGHTS)
    text = run / (CARD + ".tmp")
    text.write_text(json.dumps({"schema": 1, "model": model.config.to_dict(), **card}, indent=1) + "\n")
    text.replace(run / CARD)


def load_checkpoint(path: Path) -> tuple[DeepLightSR, dict[str, Any]]:
    """The model (in eval mode) and its card from a run directory or a file in it. InputError names what is missing."""
    run = path if path.is_dir() else path.parent
    weights, card = run / WEIGHTS, run / CARD
    for file in (weights, card):
        if not file.is_file():
            raise InputError(
                f"{path} is not a checkpoint: {file.name} is missing; give a directory that deeplight-train wrote"
            )
    try:
        values = json.loads(card.read_text())
        config = ModelConfig.from_dict(values["model"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InputError(f"{card} is not a checkpoint card of this version: {exc}") from exc
    try:
        model = DeepLightSR(config)
        model.load_state_dict(load_file(weights))
    except SafetensorError as exc:
        raise InputError(
            f"{weights} is not a whole safetensors file ({' '.join(str(exc).split())}): train again or copy it anew"
        ) from exc
    except (RuntimeError, OSError, ValueError) as exc:
        raise InputError(
            f"{weights} does not fit the architecture in {CARD}: {str(exc).splitlines()[0]}"
        ) from exc
    return model.eval(), values
