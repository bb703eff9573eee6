"""The last refinement: plan of the launch, custom operator, checked entry point. No gradient: it is for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from deeplight.kernels.refine import reference
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.table import Config, configuration

MAX_CHANNELS = {2: 128, 4: 64}
"""Most channels by the bytes of a feature: a program keeps one tap's weights, of all channels, in shared memory."""
NARROW = 16
"""Most channels for which one kernel computes everything: a program keeps all channels of pixels of three rows."""
ROWS = 4
"""Rows that a program of that kernel computes. It reads six, two of which other programs read too."""


def plan(
    x: Tensor,
    level: Tensor,
    weight: Tensor,
    vectors: Sequence[Tensor],
    range: Radiance,
    radiance: Tensor,
    config: Config | None = None,
    coarse: Coarse | None = None,
) -> Launch:
    """The launch of the last block for channels-last x with the embedding added. weight: (9, C, C). vectors: the
    block's bias, the residual's weight and bias, one axis each. coarse: with it, `level` is the base's radiance."""
    b, c, h, w = x.shape
    cp = next_power(c)
    config = config or configuration("refine", arch_of(x.device), cp, w, x.itemsize)
    return Launch(
        "refine",
        b * h * ceil_div(w, config.block),
        {
            "x": x,
            **_under(level, coarse),
            "weight": weight,
            **dict(zip(("bias", "residual_weight", "residual_bias"), vectors, strict=True)),
            "radiance": radiance,
            **_scalars(x, range),
        },
        {"C": c, "CP": cp, "WHOLE": coarse is not None, "PRECISION": dot_precision(x.dtype)},
        config,
    )


def plan_narrow(
    x: Tensor,
    level: Tensor,
    weight: Tensor,
    vectors: Sequence[Tensor],
    range: Radiance,
    radiance: Tensor,
    isp: Tensor,
    config: Config | None = None,
    coarse: Coarse | None = None,
) -> Launch:
    """The launch that computes everything, for channels-last x of at most NARROW channels. weight: (9, C, C). vectors:
    bias, the ISP head's weight and bias, embed, the residual's weight and bias, one axis each. coarse: see `plan`."""
    b, c, h, w = x.shape
    cp = next_power(c, least=8)
    config = config or configuration("refine_narrow", arch_of(x.device), cp, w, x.itemsize)
    names = ("bias", "isp_weight", "isp_bias", "embed", "residual_weight", "residual_bias")
    return Launch(
        "refine_narrow",
        b * ceil_div(h, ROWS) * ceil_div(w, config.block - RIM),
        {
            "x": x,
            **_under(level, coarse),
            "weight": weight,
            **dict(zip(names, vectors, strict=True)),
            "radiance": radiance,
            "isp": isp,
            **_scalars(x, range),
        },
        {
            "C": c,
            "CP": cp,
            "KP": next_power(3 * c),
            "ROWS": ROWS,
            "WHOLE": coarse is not None,
            "PRECISION": dot_precision(x.dtype),
        },
        config,
    )


RIM = 2
"""How many pixels of a block are only read: other programs write their results."""


Coarse = tuple[Tensor, Tensor]
"""What the kernels enlarge themselves: the residual of the coarser scales (B, 1, H/2, W/2) and the shares of the
refined radiance on the lights' grid (B, 1, H/8, W/8), both float32."""


def _under(level: Tensor, coarse: Coarse | None) -> dict[str, Tensor]:
    carried, trust = coarse or (level, level)
    return {"level": level, "carried": carried, "trust": trust}


def _scalars(x: Tensor, range: Radiance) -> dict[str, int | float]:
    return {
        "height": x.shape[2],
        "width": x.shape[3],
        "unit": float(range.unit),
        "gain": float(range.gain),
        "top": range.top,
        "ceiling": float(range.ceiling),
    }


def gemm_weight(weight: Tensor) -> Tensor:
    """Weights (C, C, 3, 3), output channels first → (9, C, C), input channels first."""
    return weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()


@torch.library.custom_op("deeplight::refine", mutates_args=())
def _op(
    x: Tensor,
    level: Tensor,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    unit: float,
    gain: float,
    ceiling: float,
) -> tuple[Tensor, Tensor]:
    range = Radiance(unit, gain, ceiling)
    if not dispatch.operator_runs_kernel(x.device):
        heads = [isp_weight, isp_bias, embed, residual_weight, residual_bias]
        return _reference(x, level, heads, weights, biases, range)
    heads = [isp_weight, isp_bias, embed]
    return launched(x, ready(level.float()), heads, weights, biases, [residual_weight, residual_bias], range)


def launched(
    x: Tensor,
    level: Tensor,
    heads: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tail: Sequence[Tensor],
    range: Radiance,
    coarse: Coarse | None = None,
) -> tuple[Tensor, Tensor]:
    """Radiance and probabilities, by the kernels. level: contiguous, float32. heads: the ISP head's weight and bias and
    its embedding. tail: the residual's weight and bias. coarse: see `plan`."""
    weights, biases = [t.to(x.dtype) for t in weights], [t.to(x.dtype) for t in biases]
    radiance, isp = outputs(x)
    weight = gemm_weight(weights[-1])
    if len(weights) == 1 and x.shape[1] <= NARROW:
        vectors = [ready(t.flatten()) for t in (biases[0], *heads, *tail)]
        run(plan_narrow(channels_last(x), level, weight, vectors, range, radiance, isp, coarse=coarse))
        return radiance, isp
    logits, x = reference.embed_isp(x, *(t.to(x.dtype) for t in heads))
    isp.copy_(torch.sigmoid(logits.float()))
    for last, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = reference.residual_block(x, last, bias)
    vectors = [ready(t.flatten()) for t in (biases[-1], *tail)]
    run(plan(channels_last(x), level, weight, vectors, range, radiance, coarse=coarse))
    return radiance, isp


def _reference(
    x: Tensor,
    level: Tensor,
    heads: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    range: Radiance,
) -> tuple[Tensor, Tensor]:
    """Compute the definition with all weights in the dtype of x."""
    isp_weight, isp_bias, embed, residual_weight, residual_bias = (t.to(x.dtype) for t in heads)
    blocks = [t.to(x.dtype) for t in weights], [t.to(x.dtype) for t in biases]
    return reference.refine(
        x, level, isp_weight, isp_bias, embed, *blocks, residual_weight, residual_bias, range
    )


def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for radiance and probabilities."""
    b, _, h, w = x.shape
    radiance = torch.empty((b, 1, h, w), dtype=torch.float32, device=x.device)
    return radiance, torch.empty_like(radiance)


@_op.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return outputs(x)


def refine(
    x: Tensor,
    level: Tensor,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    *,
    range: Radiance | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The last refinement: ISP head with embedding, residual blocks, the NTL residual that is added to its base, and
    the radiance.

        s = sigmoid(isp_weight · x + isp_bias);  y = x + s·embed;  y ← y + ReLU(conv3×3(y)) for each block
        n = level + residual_weight · y + residual_bias
        radiance = unit · expm1(clip(gain·n, 0, log1p(ceiling / unit)))

    x: (B, C, H, W), float32, float16 or bfloat16. level: (B, 1, H, W), float32 or x's dtype, the base in the normalised
    domain. isp_weight, residual_weight: (1, C, 1, 1). isp_bias, residual_bias: (1,). embed: (C,). weights: (C, C, 3, 3)
    each and biases: (C,) each. All weights have x's dtype or float32. range: unit, gain and ceiling, by default those
    of the presets. Radiance and `ceiling` are in the input's unit. The reference takes float64 too.

    Returns radiance and s, both float32 (B, 1, H, W); `finish` makes output pixels of the radiance. With one block of
    at most 16 channels one kernel computes everything and reads x once from memory; else a kernel computes the last
    block. The kernels need at least one block, take at most 128 channels (64 of float32) and have no gradient; beyond
    that "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    range = range or Radiance()
    weights, biases = list(weights), list(biases)
    heads = [isp_weight, isp_bias, embed, residual_weight, residual_bias]
    check("refine", x, (isp_weight, isp_bias, embed, weights, biases, residual_weight, residual_bias))
    _check_level(x, level)
    tensors = [x, level, *heads, *weights, *biases]
    limit = limit_of(x, weights)
    if not dispatch.use_kernel("refine", implementation, tensors, differentiable=False, limit=limit):
        return _reference(x, level, heads, weights, biases, range)
    dispatch.check_dtype("refine", "x", x, dispatch.ACTIVATIONS)
    pair: tuple[Tensor, Tensor] = _op(
        x, level, isp_weight, isp_bias, embed, weights, biases, residual_weight, residual_bias,
        range.unit, range.gain, range.ceiling,
    )  # fmt: skip
    return pair


def limit_of(x: Tensor, weights: Sequence[Tensor]) -> str | None:
    """What the kernels require and these arguments do not meet, see dispatch.use_kernel."""
    c, most = x.shape[1], MAX_CHANNELS.get(x.itemsize)
    if most is not None and c > most:
        return f"the kernel takes at most {most} channels of {str(x.dtype).removeprefix('torch.')}, not {c}"
    return None if weights else "the kernel needs at least one residual block"


Parameters = tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor]
"""The parameters in the order of `refine`, from isp_weight to residual_bias."""


def check(op: str, x: Tensor, parameters: Parameters) -> None:
    """Raise ValueError, naming the tensor, where x or a parameter of `op` does not fit."""
    dispatch.check_shape(op, "x", x, (None, None, None, None))
    c = x.shape[1]
    isp_weight, isp_bias, embed, weights, biases, residual_weight, residual_bias = parameters
    if len(weights) != len(biases):
        raise ValueError(
            f"{op}: weights and biases must be equally many, not {len(weights)} and {len(biases)}"
        )
    given: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "isp_weight": (isp_weight, (1, c, 1, 1)),
        "isp_bias": (isp_bias, (1,)),
        "embed": (embed, (c,)),
        "residual_weight": (residual_weight, (1, c, 1, 1)),
        "residual_bias": (residual_bias, (1,)),
    }
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        given |= {f"weights[{i}]": (weight, (c, c, 3, 3)), f"biases[{i}]": (bias, (c,))}
    for name, (tensor, shape) in given.items():
        dispatch.check_shape(op, name, tensor, shape)
        dispatch.check_dtype(op, name, tensor, (x.dtype, torch.float32))
    dispatch.check_together(
        op, {"x": x, **{name: tensor for name, (tensor, _) in given.items()}}, dtype=False
    )


def _check_level(x: Tensor, level: Tensor) -> None:
    b, _, h, w = x.shape
    dispatch.check_shape("refine", "level", level, (b, 1, h, w))
    dispatch.check_dtype("refine", "level", level, (x.dtype, torch.float32))
    dispatch.check_together("refine", {"x": x, "level": level}, dtype=False)
