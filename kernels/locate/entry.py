"""The estimate of the offset: plans of both launches, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.launch import Launch, arch_of, ceil_div, next_power, ready, run
from deeplight.kernels.locate import reference
from deeplight.kernels.locate.reference import Layer, Weights
from deeplight.kernels.table import Config, configuration

LAYERS = (2, 3)
"""How many layers `certainty` and `correct` must have for the kernel."""
MAX_WINDOW, MAX_HIDDEN = 17, 128
"""Limits of the kernels: a program holds 32 × 32 pixels of a window sum, and all channels of a layer for its pixels."""


def plan_residuals(
    ntl: Tensor,
    lattice: Tensor,
    mean: Tensor,
    variance: Tensor,
    window: Tensor,
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors. lattice: from `half_pixels`. out: (B, n², h, w)."""
    b, shifts, h, w = out.shape
    config = config or configuration("residuals", arch_of(ntl.device), 0, w, 2)
    side, taps = round(shifts**0.5), window.shape[0]
    return Launch(
        "residuals",
        b * side * ceil_div(h, config.block) * ceil_div(w, config.block),
        {
            "ntl": ntl,
            "lattice": lattice,
            "mean": mean,
            "variance": variance,
            "window": window,
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "N": side,
            "WINDOW": taps,
            "SPAN": next_power(config.block + taps - 1),
        },
        config,
    )


def plan_posterior(
    residual: Tensor,
    mean: Tensor,
    variance: Tensor,
    shift_xy: Tensor,
    strength: Tensor,
    certainty: Sequence[Tensor],
    correct: Sequence[Tensor],
    out: Tensor,
    d_max: float,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors. certainty, correct: alternately weights (O, I) and biases (O,)."""
    b, shifts, h, w = residual.shape
    sure, hidden = certainty[1].shape[0], correct[1].shape[0]
    hp = next_power(hidden)
    config = config or configuration("posterior", arch_of(residual.device), hp, w, 2)
    names = (
        "sure_weight", "sure_bias", "sure_head", "sure_head_bias",
        "first_weight", "first_bias", "second_weight", "second_bias", "head", "head_bias",
    )  # fmt: skip
    return Launch(
        "posterior",
        b * ceil_div(h * w, config.block),
        {
            "residual": residual,
            "mean": mean,
            "variance": variance,
            "shift_xy": shift_xy,
            "strength": strength,
            **dict(zip(names, [*certainty, *correct], strict=True)),
            "out": out,
            "pixels": h * w,
            "d_max": float(d_max),
        },
        {
            "S": shifts,
            "SP": next_power(shifts),
            "SURE": sure,
            "SUREP": next_power(sure),
            "H": hidden,
            "HP": hp,
        },
        config,
    )


@torch.library.custom_op("deeplight::locate", mutates_args=())
def _op(
    ntl: Tensor,
    lights: Tensor,
    window: Tensor,
    shifts: Tensor,
    shift_xy: Tensor,
    sharpness: Tensor,
    prior: Tensor,
    certainty: list[Tensor],
    correct: list[Tensor],
    d_max: float,
) -> Tensor:
    if not dispatch.operator_runs_kernel(ntl.device):
        weights = Weights(sharpness, prior, _layers(certainty), _layers(correct))
        return reference.locate(ntl, lights, window, shifts, shift_xy, weights, d_max).contiguous()
    ntl, lights = ready(ntl), ready(lights)
    # PyTorch computes three maps of one channel; everything with a channel for each shift is left to the kernels
    sums = reference.window_mean(torch.cat([ntl, ntl * ntl, lights], dim=1).contiguous(), window)
    mean = ready(sums[:, :1])
    variance = ready((sums[:, 1:2] - mean * mean).clamp(min=0.0))
    b, _, h, w = ntl.shape
    residual = torch.empty((b, shifts.shape[0], h, w), device=ntl.device)
    out = _offset(ntl)
    lattice = ready(half_pixels(torch.cat([lights, sums[:, 2:]], dim=1), shifts.shape[-1] // 2))
    run(plan_residuals(ntl, lattice, mean, variance, ready(window), residual))
    strength = torch.stack([sharpness, prior])
    sure, fix = ([ready(t.flatten(1) if t.ndim == 4 else t) for t in group] for group in (certainty, correct))
    run(plan_posterior(residual, mean, variance, ready(shift_xy), strength, sure, fix, out, d_max))
    return out


def half_pixels(x: Tensor, radius: int) -> Tensor:
    """x (B,C,h,w) at every half pixel up to `radius` pixels beyond the image: (B, C, 2h + 4·radius − 1, 2w + …)."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    size = 2 * (h + 2 * radius) - 1, 2 * (w + 2 * radius) - 1
    # with aligned corners every second place is a pixel, so that all weights are exactly ½ or 1
    return F.interpolate(padded, size=size, mode="bilinear", align_corners=True)


def _layers(flat: list[Tensor]) -> list[Layer]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _offset(ntl: Tensor) -> Tensor:
    b, _, h, w = ntl.shape
    return torch.empty((b, 2, h, w), device=ntl.device)


@_op.register_fake
def _(ntl: Tensor, *_: Any) -> Tensor:
    return _offset(ntl)


def locate(
    ntl: Tensor,
    lights: Tensor,
    window: Tensor,
    shifts: Tensor,
    shift_xy: Tensor,
    weights: Weights,
    d_max: float,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Estimate how far `lights` must be moved to lie on `ntl`, as the mean of a lattice of shifts, each weighted by how
    well it fits.

        m_s = lights at p + s, interpolated linearly with repeated edges, for every shift s of `shift_xy`
        r_s = var(ntl) + g·(g·var(m_s) − 2·cov(ntl, m_s)),  g = clip(cov / (var(m_s) + 1e-3), 0, 3)
        state = log(var(ntl) + 1e-3), log(min r_s + 1e-3), mean(ntl)
        share_s ∝ exp(−exp(sharpness + 2·tanh(certainty(state)))·r_s − exp(prior)·|s|²)
        offset = Σ share_s·s + correct(5·share, state);  result = d_max·tanh(offset / d_max)

    Means, variances and covariances are taken over the separable window; the window mean of m_s is the moved window
    mean of `lights`. Of all values with a channel for each shift, the kernels store only r_s in memory.

    ntl, lights: (B, 1, h, w), float32, log radiance. window: (W,), W odd, with the sum 1. shifts: (n², 1, K, K) and
    shift_xy: (2, n², 1, 1), (x, y) in pixels, both from `half_pixel_shifts`. weights: see Weights, float32. d_max:
    bound of the result in pixels, above 0. The reference takes float64 too.

    Returns (B, 2, h, w), (x, y) in pixels, |·| ≤ d_max. The kernel takes two layers of `certainty`, three of `correct`
    with at most 128 channels, and windows of at most 17 pixels, and it has no gradient. Beyond that, and in exported
    graphs, "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    _check(ntl, lights, window, shifts, shift_xy, weights, d_max)
    flat = [[t for layer in group for t in layer] for group in (weights.certainty, weights.correct)]
    tensors = [ntl, lights, window, shift_xy, weights.sharpness, weights.prior, *flat[0], *flat[1]]
    chosen = dispatch.use_kernel(
        "locate", implementation, tensors, differentiable=False, limit=_limit(ntl, window, weights),
        exported=False,
    )  # fmt: skip
    if not chosen:
        return reference.locate(ntl, lights, window, shifts, shift_xy, weights, d_max)
    result: Tensor = _op(
        ntl, lights, window, shifts, shift_xy, weights.sharpness, weights.prior, *flat, float(d_max)
    )
    return result


def _limit(ntl: Tensor, window: Tensor, weights: Weights) -> str | None:
    if ntl.dtype != torch.float32:
        return f"the kernel takes float32, not {str(ntl.dtype).removeprefix('torch.')}"
    layers = len(weights.certainty), len(weights.correct)
    if layers != LAYERS:
        return f"the kernel takes {LAYERS[0]} layers of certainty and {LAYERS[1]} of correct, not {layers}"
    if window.shape[0] > MAX_WINDOW:
        return f"the kernel takes windows of at most {MAX_WINDOW}, not {window.shape[0]}"
    first, second = (bias.shape[0] for _, bias in weights.correct[:2])
    if first != second:
        return f"the kernel's hidden layers of correct are equally wide, not {first} and {second}"
    widest = max(weights.certainty[0][1].shape[0], weights.correct[0][1].shape[0])
    return f"the kernel takes at most {MAX_HIDDEN} channels, not {widest}" if widest > MAX_HIDDEN else None


def _check(
    ntl: Tensor,
    lights: Tensor,
    window: Tensor,
    shifts: Tensor,
    shift_xy: Tensor,
    weights: Weights,
    d_max: float,
) -> None:
    dispatch.check_shape("locate", "ntl", ntl, (None, 1, None, None))
    dispatch.check_shape("locate", "lights", lights, tuple(ntl.shape))
    dispatch.check_shape("locate", "window", window, (None,))
    if window.shape[0] % 2 == 0:
        raise ValueError(f"locate: window must have an odd length, not {window.shape[0]}")
    taps = shifts.shape[-1]
    count = (2 * taps - 1) ** 2
    dispatch.check_shape("locate", "shifts", shifts, (count, 1, taps, taps))
    dispatch.check_shape("locate", "shift_xy", shift_xy, (2, count, 1, 1))
    if not d_max > 0:
        raise ValueError(f"locate: d_max must be above 0, not {d_max}")
    given: dict[str, Tensor | None] = {"ntl": ntl, "lights": lights, "window": window}
    given |= {"shifts": shifts, "shift_xy": shift_xy, "sharpness": weights.sharpness, "prior": weights.prior}
    for name, first, last in (("certainty", 3, 1), ("correct", count + 3, 2)):
        channels = first
        layers = getattr(weights, name)
        for i, (weight, bias) in enumerate(layers):
            out = last if i == len(layers) - 1 else bias.shape[0]
            dispatch.check_shape("locate", f"{name}[{i}] weight", weight, (out, channels, 1, 1))
            dispatch.check_shape("locate", f"{name}[{i}] bias", bias, (out,))
            given |= {f"{name}[{i}] weight": weight, f"{name}[{i}] bias": bias}
            channels = out
    dispatch.check_together("locate", given)
