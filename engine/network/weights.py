"""DeepLightSR from a configuration and weights, and its weights as bytes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR


def build(configuration: Mapping[str, Any], weights: bytes, where: str) -> DeepLightSR:
    """The network in float32 and eval mode.

    configuration: as ModelConfig.to_dict gives it. weights: a safetensors file. where: names both in errors.
    Raises ArtifactError where either is not such, or they do not belong together (naming what differs), before
    anything of the configuration's size is allocated.
    """
    try:
        config = ModelConfig.from_dict(dict(configuration))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ArtifactError(f"the configuration of {where} is not one of this version: {e}") from e
    try:
        tensors = load(weights)
    except SafetensorError as e:
        raise ArtifactError(f"the weights of {where} are not a whole safetensors file: {_one_line(e)}") from e
    if told := _differences(config, tensors) or _misfits(config, tensors):
        raise ArtifactError(f"the weights of {where} do not fit its configuration: {'; '.join(told)}")
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ArtifactError(
            f"the weights of {where} hold NaN or infinity in {_some(broken)}: copy or train the model again"
        )
    model = DeepLightSR(config)
    model.load_state_dict(tensors)
    return model.eval()


def to_safetensors(model: DeepLightSR) -> bytes:
    """The weights and buffers in float32; every precision takes them from here."""
    return save({name: t.detach().float().contiguous().cpu() for name, t in model.state_dict().items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(reprlib.repr(name) for name in names[:3]) + more


def _differences(config: ModelConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """Which fields of the configuration the weights contradict: widths by shapes, normalisation by its constants."""
    made = _widths(tensors)
    widths = [
        f"{f.name} is {given} there, {made[f.name]} in the weights"
        for f in fields(ModelConfig)
        for given in [getattr(config, f.name)]
        if f.name in made and made[f.name] != given
    ]
    constants = asdict(config.normalisation)
    return widths + [
        f"normalisation.{field} is {constants[field]} there and something else in the weights"
        for name, tensor in tensors.items()
        for field in [name.rpartition(".")[2]]
        if field in constants
        and not torch.equal(tensor.float().flatten(), torch.tensor(constants[field]).flatten())
    ]


def _misfits(config: ModelConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is not as in the network of this configuration, found without memory of its size."""
    try:
        with torch.device("meta"):
            wanted = DeepLightSR(config).state_dict()
    except RuntimeError as e:  # sizes that no memory has
        return [_one_line(e)[:300]]
    told = []
    if missing := [name for name in wanted if name not in tensors]:
        told.append(f"they lack {_some(missing)}")
    if extra := [name for name in tensors if name not in wanted]:
        told.append(f"the network has no {_some(extra)}")
    for name in (n for n in wanted if n in tensors):
        need, given = f"float32 {tuple(wanted[name].shape)}", _described(tensors[name])
        if need != given:
            told.append(f"{name} is {given}, not {need}")
    return told[:3]


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _widths(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The fields of ModelConfig that the shapes of weights tell; without those whose tensors are not there."""

    def channels(name: str, divisor: int = 1) -> int:
        return tensors[name].shape[0] // divisor if name in tensors and tensors[name].ndim else 0

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
