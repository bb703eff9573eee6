"""Checkpoints: weights as safetensors, everything else as JSON beside them. Never a pickle."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.run_folder import BEST_CARD, BEST_WEIGHTS, CARD, WEIGHTS

SHIPPED = Path(__file__).parent.parent / "weights"
"""Checkpoints that come with the package, by name: those of the built-in models."""


def save_checkpoint(run: Path, model: DeepLightSR, card: dict[str, Any], *, best: bool = False) -> None:
    """Write the weights and `card` (step, settings, data, history …) into `run`; each file by rename, never half.

    best: under the names of the best so far rather than of the last.
    """
    run.mkdir(parents=True, exist_ok=True)
    weights, text = (BEST_WEIGHTS, BEST_CARD) if best else (WEIGHTS, CARD)
    plain = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    write_file(run / weights, [save(plain)])
    values = {"schema": 1, "model": model.config.to_dict(), **card}
    write_file(run / text, [(json.dumps(values, indent=1) + "\n").encode()])


def load_checkpoint(path: Path) -> tuple[DeepLightSR, dict[str, Any]]:
    """The model (in eval mode) and its card from a run directory or a file in it. InputError names what is missing.

    A directory gives the last weights; its `best.safetensors` or `best.json`, the best. The name of a built-in model,
    where there is no such path, gives the weights that it was exported from.
    """
    if path.name == str(path) and not path.exists() and (SHIPPED / path).is_dir():
        path = SHIPPED / path
    if not path.exists():
        raise InputError(
            f"{path} is not there; give a checkpoint: a directory that deeplight-train wrote, or one of "
            f"{', '.join(shipped())}"
        )
    run = path if path.is_dir() else path.parent
    names = (BEST_WEIGHTS, BEST_CARD) if path.name in (BEST_WEIGHTS, BEST_CARD) else (WEIGHTS, CARD)
    weights, card = (run / name for name in names)
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
        tensors = load_file(weights)
    except SafetensorError as exc:
        raise InputError(
            f"{weights} is not a whole safetensors file ({' '.join(str(exc).split())}): train again or copy it anew"
        ) from exc
    except OSError as exc:
        raise InputError(f"{weights} cannot be read: {exc.strerror or exc}") from exc
    return _filled(DeepLightSR(config), tensors, weights, card.name).eval(), values


def shipped() -> list[str]:
    """Names of the checkpoints in the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir())


def check_start(path: Path, first: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse to train `wanted` from the weights of the checkpoint `path`, where its network `first` is another."""
    then, now = first.to_dict(), wanted.to_dict()
    told = "; ".join(f"{name} {then[name]}, not {now[name]}" for name in now if then[name] != now[name])
    if told:
        raise InputError(f"{path} is of another network ({told}); start from one like the settings'")


def _filled(model: DeepLightSR, tensors: dict[str, Tensor], weights: Path, card: str) -> DeepLightSR:
    """The model with these weights. InputError says which fields of its configuration they do not fit."""
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as exc:
        made = _widths(tensors)
        differ = [
            f"{f.name} is {given} there, {made[f.name]} in the weights"
            for f in fields(ModelConfig)
            for given in [getattr(model.config, f.name)]
            if f.name in made and made[f.name] != given
        ]
        reason = "; ".join(differ) or " ".join(str(exc).split())[:300]
        raise InputError(f"{weights} does not fit the architecture in {card}: {reason}") from exc
    return model


def _widths(tensors: dict[str, Tensor]) -> dict[str, object]:
    """The fields of ModelConfig that the shapes of weights tell; without those whose tensors are not there."""

    def channels(name: str, divisor: int = 1) -> int:
        return tensors[name].shape[0] // divisor if name in tensors else 0

    def layers(prefix: str) -> int:
        return sum(k.startswith(prefix) and k.endswith(".weight") for k in tensors)

    ups = (channels(f"ups.{s}.weight", 4) for s in range(3))
    down = (channels(f"dmo_encoder.down.{s}.weight") for s in (2, 1, 0))
    found: dict[str, object] = {
        "main": (channels("first.weight"), *ups),
        "aux": (*down, channels("dmo_encoder.first.weight")),
        "body": layers("body."),
        "refine": tuple(layers(f"refines.{s}.layers.") for s in range(3)),
        "localise_width": channels("localise.lights.0.weight"),
    }
    return {
        k: v for k, v in found.items() if v and not (isinstance(v, tuple) and k != "refine" and 0 in v)
    } | {"body": found["body"]}
