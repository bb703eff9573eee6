"""The suggested lights: plan of the launch, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.launch import (
    Launch,
    arch_of,
    ceil_div,
    channels_last,
    dot_precision,
    next_power,
    ready,
    run,
)
from deeplight.kernels.locate.reference import Layer
from deeplight.kernels.suggest import reference
from deeplight.kernels.suggest.reference import CELL
from deeplight.kernels.table import Config, configuration

LAYERS = 3
"""How many layers `impervious` and `lights` must have for the kernel."""
MAX_CHANNELS = 64
"""The most channels of a layer: a program keeps all channels of 128 pixels."""


def plan(
    aux: Tensor,
    impervious: Sequence[Tensor],
    lights: Sequence[Tensor],
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for channels-last aux. impervious, lights: weights and biases in turn, (O, I) and (O,) each."""
    (b, c, _, _), (_, _, h, w) = aux.shape, out.shape
    hidden, width = impervious[1].shape[0], lights[1].shape[0]
    config = config or configuration("suggest", arch_of(aux.device), next_power(width), w, 2)
    parts = ("weight1", "bias1", "weight2", "bias2", "head", "head_bias")
    return Launch(
        "suggest",
        b * h * ceil_div(w, config.block),
        {
            "aux": aux,
            **{f"share_{part}": t for part, t in zip(parts, impervious, strict=True)},
            **{f"light_{part}": t for part, t in zip(parts, lights, strict=True)},
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "C": c,
            "CP": next_power(c),
            "H": hidden,
            "HP": next_power(hidden),
            "W": width,
            "WP": next_power(width),
            "PRECISION": dot_precision(torch.float32),
        },
        config,
    )


@torch.library.custom_op("deeplight::suggest", mutates_args=())
def _op(aux: Tensor, impervious: list[Tensor], lights: list[Tensor]) -> Tensor:
    if not dispatch.operator_runs_kernel(aux.device):
        pairs = (list(zip(flat[::2], flat[1::2], strict=True)) for flat in (impervious, lights))
        return reference.suggest(aux, *pairs)[0].contiguous()
    out = _lights(aux)
    share, light = (
        [ready(t.flatten(1) if t.ndim == 4 else t) for t in flat] for flat in (impervious, lights)
    )
    run(plan(channels_last(aux), share, light, out))
    return out


def _lights(aux: Tensor) -> Tensor:
    b, _, h, w = aux.shape
    return torch.empty((b, 1, h // CELL, w // CELL), device=aux.device)


@_op.register_fake
def _(aux: Tensor, impervious: list[Tensor], lights: list[Tensor]) -> Tensor:
    return _lights(aux)


def suggest(
    aux: Tensor,
    impervious: Sequence[Layer],
    lights: Sequence[Layer],
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """The lights that the auxiliary layers suggest. Both networks are pointwise layers with ReLU between them:

        share = mean of sigmoid(impervious(aux)) over 4×4 pixels,  bands = mean of aux over them
        result = log1p(softplus(lights(share, bands))) / 2

    aux: (B, C, 4h, 4w), float32, normalised. impervious: layers C → 1, lights: layers C + 1 → 1, each (weight
    (O, I, 1, 1), bias (O,)), float32. The reference takes float64 too.

    Returns (B, 1, h, w), log radiance. The kernel stores nothing in between. It takes three layers in each network, the
    first two equally wide with at most 64 channels, and has no gradient. Beyond that, and in exported graphs, "auto"
    takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    _check(aux, impervious, lights)
    flat = [[t for layer in group for t in layer] for group in (impervious, lights)]
    chosen = dispatch.use_kernel(
        "suggest", implementation, [aux, *flat[0], *flat[1]], differentiable=False,
        limit=_limit(aux, impervious, lights), exported=False,
    )  # fmt: skip
    if not chosen:
        return reference.suggest(aux, impervious, lights)[0]
    result: Tensor = _op(aux, *flat)
    return result


def _limit(aux: Tensor, impervious: Sequence[Layer], lights: Sequence[Layer]) -> str | None:
    if aux.dtype != torch.float32:
        return f"the kernel takes float32, not {str(aux.dtype).removeprefix('torch.')}"
    for name, layers in (("impervious", impervious), ("lights", lights)):
        if len(layers) != LAYERS:
            return f"the kernel takes {LAYERS} layers of {name}, not {len(layers)}"
        first, second = (bias.shape[0] for _, bias in layers[:2])
        if first != second or first > MAX_CHANNELS:
            return f"the kernel's layers of {name} are equally wide, at most {MAX_CHANNELS}, not {first} and {second}"
    c = aux.shape[1]
    return f"the kernel takes at most {MAX_CHANNELS} channels, not {c}" if c > MAX_CHANNELS else None


def _check(aux: Tensor, impervious: Sequence[Layer], lights: Sequence[Layer]) -> None:
    dispatch.check_shape("suggest", "aux", aux, (None, None, None, None))
    _, c, h, w = aux.shape
    if not dispatch.exporting() and (h % CELL or w % CELL):
        raise ValueError(f"suggest: height and width of aux must be multiples of {CELL}, not {h} and {w}")
    given: dict[str, Tensor | None] = {"aux": aux}
    for name, channels, layers in (("impervious", c, impervious), ("lights", c + 1, lights)):
        for i, (weight, bias) in enumerate(layers):
            out = 1 if i == len(layers) - 1 else bias.shape[0]
            dispatch.check_shape("suggest", f"{name}[{i}] weight", weight, (out, channels, 1, 1))
            dispatch.check_shape("suggest", f"{name}[{i}] bias", bias, (out,))
            given |= {f"{name}[{i}] weight": weight, f"{name}[{i}] bias": bias}
            channels = out
    dispatch.check_together("suggest", given)
