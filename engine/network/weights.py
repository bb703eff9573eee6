"""DeepLightSR from a configuration and weights, and its weights as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR


def build(configuration: Mapping[str, Any], weights: bytes, where: str) -> DeepLightSR:
    """The network in float32 and eval mode.

    configuration: as ModelConfig.to_dict gives it. weights: a safetensors file. where: names both in errors.
    Raises ArtifactError where either is not such, or they do not belong together (naming the fields that differ).
    """
    try:
        config = ModelConfig.from_dict(dict(configuration))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ArtifactError(f"the configuration of {where} is not one of this version: {e}") from e
    try:
        tensors = load(weights)
    except SafetensorError as e:
        raise ArtifactError(f"the weights of {where} are not a whole safetensors file: {_one_line(e)}") from e
    misfit = f"the weights of {where} do not fit its configuration"
    # before anything of that configuration's size is allocated
    if told := _differences(config, tensors):
        raise ArtifactError(f"{misfit}: {'; '.join(told)}")
    model = DeepLightSR(config)
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as e:
        raise ArtifactError(f"{misfit}: {_one_line(e)[:300]}") from e
    return model.eval()


def to_safetensors(model: DeepLightSR) -> bytes:
    """The weights and buffers in float32; every precision takes them from here."""
    return save({name: t.detach().float().contiguous().cpu() for name, t in model.state_dict().items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _differences(config: ModelConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """Which fields of the configuration the shapes of the weights contradict."""
    made = _widths(tensors)
    return [
        f"{f.name} is {given} there, {made[f.name]} in the weights"
        for f in fields(ModelConfig)
        for given in [getattr(config, f.name)]
        if f.name in made and made[f.name] != given
    ]


def _widths(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The fields of ModelConfig that the shapes of weights tell; without those whose tensors are not there."""

    def channels(name: str, divisor: int = 1) -> int:
        return tensors[name].shape[0] // divisor if name in tensors else 0

    def layers(prefix: str) -> int:
        return sum(k.startswith(prefix) and k.endswith(".weight") for k in tensors)

    ups = (channels(f"ups.{s}.weight", 4) for s in range(3))
    down = (channels(f"dmo_encoder.down.{s}.weight") for s in (1, 0))
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
