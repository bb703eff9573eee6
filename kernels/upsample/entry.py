"""×2 upsampling: plans of both kernels, custom operator, gradient, checked entry point."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.launch import (
    Launch,
    arch_of,
    ceil_div,
    channels_last,
    dot_precision,
    like_channels_last,
    next_power,
    ready,
    run,
)
from deeplight.kernels.table import Config, configuration
from deeplight.kernels.upsample import reference

GEMM_INPUTS, GEMM_OUTPUTS = 64, 64
"""The largest K and 4C for which our own kernel computes the convolution. Such a convolution is limited by memory, and
our kernel does not write and read its output in between. Larger ones are limited by computation, for which the
library's convolution is hard to beat (docs/kernels.md)."""


def phase_order(t: Tensor) -> Tensor:
    """Reorder axis 0 from PixelShuffle's c·4 + s to s·C + c (phase order), where each of four phases is contiguous."""
    return ready(t.reshape(-1, 4, *t.shape[1:]).transpose(0, 1).flatten(0, 1))


def plan_epilogue(
    y: Tensor, bias: Tensor, skip: Tensor | None, out: Tensor, config: Config | None = None
) -> Launch:
    """The launch for the convolution's output y, (B, 4C, H, W) in channels-last memory. y, bias: in phase order."""
    (b, _, h, w), c = y.shape, y.shape[1] // 4
    config = config or configuration("upsample_epilogue", arch_of(y.device), 0, w, y.itemsize)
    return Launch(
        "upsample_epilogue",
        b * h * ceil_div(w * 2 * c, config.block),
        {"y": y, "bias": bias, "skip": out if skip is None else skip, "out": out, "width": w},
        {"C": c, "HAS_SKIP": skip is not None},
        config,
    )


def plan_conv(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, out: Tensor, config: Config | None = None
) -> Launch:
    """The launch for x, (B, K, H, W) in channels-last memory. weight (9, K, 4C), bias (4C,): in phase order."""
    (b, k, h, w), c4 = x.shape, weight.shape[2]
    block_n = min(64, next_power(c4))
    config = config or configuration("upsample_conv", arch_of(x.device), next_power(k), w, x.itemsize)
    return Launch(
        "upsample_conv",
        b * h * ceil_div(w, config.block) * ceil_div(c4, block_n),
        {
            "x": x,
            "weight": weight,
            "bias": bias,
            "skip": out if skip is None else skip,
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "K": k,
            "C": c4 // 4,
            "KP": next_power(k),
            "BLOCK_N": block_n,
            "HAS_SKIP": skip is not None,
            "PRECISION": dot_precision(x.dtype),
        },
        config,
    )


def gemm_weight(weight: Tensor) -> Tensor:
    """Weights (4C, K, 3, 3) → (9, K, 4C) in phase order."""
    return phase_order(weight).permute(2, 3, 1, 0).flatten(0, 1).contiguous()


@torch.library.custom_op("deeplight::upsample", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    if not dispatch.operator_runs_kernel(x.device):
        out = reference.upsample(x, weight.to(x.dtype), bias.to(x.dtype), skip)
        return out.contiguous(memory_format=torch.channels_last)
    return _run(x, weight, bias, skip, gemm=prefers_gemm(x.shape[1], weight.shape[0]))


def prefers_gemm(k: int, c4: int) -> bool:
    """Whether our implicit GEMM computes the convolution; if not, PyTorch does, followed by the epilogue kernel."""
    return k <= GEMM_INPUTS and c4 <= GEMM_OUTPUTS


def _run(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, *, gemm: bool) -> Tensor:
    b, _, h, w = x.shape
    out = like_channels_last(x, b, weight.shape[0] // 4, 2 * h, 2 * w)
    x = channels_last(x)
    skip = None if skip is None else channels_last(skip)
    shift = phase_order(bias)
    if gemm:
        run(plan_conv(x, gemm_weight(weight.to(x.dtype)), shift, skip, out))
    else:
        y = F.conv2d(x, phase_order(weight.to(x.dtype)), padding=1)
        run(plan_epilogue(channels_last(y), shift, skip, out))
    return out


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    b, _, h, w = x.shape
    return like_channels_last(x, b, weight.shape[0] // 4, 2 * h, 2 * w)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, skip = inputs
    ctx.has_skip = skip is not None
    ctx.save_for_backward(x, weight, bias, *([] if ctx.has_skip else [output]))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x, weight, bias, *kept = ctx.saved_tensors
    # the output shows where ReLU was active, but not if a skip was added
    activated = kept[0] if kept else reference.upsample(x, weight.to(x.dtype), bias.to(x.dtype))
    g = F.pixel_unshuffle(torch.where(activated > 0, grad, torch.zeros_like(grad)), 2)
    g_x, g_weight, g_bias = torch.ops.aten.convolution_backward(
        g, x, weight.to(x.dtype), [g.shape[1]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    return g_x, g_weight.to(weight.dtype), g_bias.to(bias.dtype), grad if ctx.has_skip else None


torch.library.register_autograd("deeplight::upsample", _backward, setup_context=_setup)


def upsample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None = None,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """×2 upsampling: out = PixelShuffle₂(ReLU(conv3×3(x, weight) + bias)) + skip.

    x: (B, K, H, W), float32, float16 or bfloat16. weight: (4C, K, 3, 3) and bias: (4C,), in PixelShuffle's channel
    order, of x's dtype or float32 (then used in x's dtype, the bias in float32). skip: (B, C, 2H, 2W) of x's dtype.
    The padding is zero. The reference takes float64 too. Features have no units.

    Returns (B, C, 2H, 2W) of x's dtype; results of the kernels are in channels-last memory. For few channels one kernel
    computes everything and never writes the 4C channels; for many, PyTorch's convolution and an epilogue kernel run.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    dispatch.check_shape("upsample", "x", x, (None, None, None, None))
    b, k, h, w = x.shape
    c4 = weight.shape[0]
    dispatch.check_shape("upsample", "weight", weight, (None, k, 3, 3))
    if c4 % 4 or c4 == 0:
        raise ValueError(f"upsample: weight must have a multiple of 4 output channels, not {c4}")
    dispatch.check_shape("upsample", "bias", bias, (c4,))
    for name, t in (("weight", weight), ("bias", bias)):
        dispatch.check_dtype("upsample", name, t, (x.dtype, torch.float32))
    dispatch.check_together("upsample", {"x": x, "weight": weight, "bias": bias}, dtype=False)
    if skip is not None:
        dispatch.check_shape("upsample", "skip", skip, (b, c4 // 4, 2 * h, 2 * w))
        dispatch.check_together("upsample", {"x": x, "skip": skip})
    if not dispatch.use_kernel("upsample", implementation, [x, weight, bias, skip], differentiable=True):
        return reference.upsample(x, weight.to(x.dtype), bias.to(x.dtype), skip)
    dispatch.check_dtype("upsample", "x", x, dispatch.ACTIVATIONS)
    result: Tensor = _op(x, weight, bias, skip)
    return result
