"""The last refinement with its base: custom operator, checked entry point. The kernels are those of `refine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import ready
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.restore import reference
from deeplight.kernels.restore.reference import Base


@torch.library.custom_op("deeplight::restore", mutates_args=())
def _op(
    x: Tensor,
    start: Tensor,
    carried: Tensor,
    trust: Tensor,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    cubic: Tensor,
    linear: Tensor,
    unit: float,
    gain: float,
    ceiling: float,
) -> tuple[Tensor, Tensor]:
    range = Radiance(unit, gain, ceiling)
    heads = [isp_weight, isp_bias, embed]
    if not dispatch.operator_runs_kernel(x.device):
        parameters = (isp_weight, isp_bias, embed, weights, biases, residual_weight, residual_bias)
        return _reference(x, Base(start, carried, trust), parameters, cubic, linear, range, "reference")
    tail = [residual_weight, residual_bias]
    coarse = ready(carried), ready(trust)
    return refine_entry.launched(x, ready(start), heads, weights, biases, tail, range, coarse)


def _reference(
    x: Tensor,
    base: Base,
    parameters: refine_entry.Parameters,
    cubic: Tensor,
    linear: Tensor,
    range: Radiance,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    """Around `refine`, which may be an operator of the exported graph."""
    level = reference.level(base, cubic, range)
    refined, isp = refine_entry.refine(x, level, *parameters, range=range, implementation=implementation)
    return reference.blended(refined, base, linear), isp


@_op.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return refine_entry.outputs(x)


def restore(
    x: Tensor,
    base: Base,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    *,
    cubic: Tensor,
    linear: Tensor,
    range: Radiance | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The last refinement together with what it is added to, and how far it is trusted.

        level = log1p(clip(start, 0, ceiling) / unit) / gain + carried, enlarged by cubic convolution
        refined, s = refine(x, level, …)
        radiance = start + (refined − start) · trust, enlarged linearly

    x, weights and range: as for `refine`. base: see Base, float32; H and W are multiples of 8. cubic: (4, 1, 5, 5),
    `interpolation_kernel(2, "cubic")`. linear: (8, 3), `interpolation_line(8, "linear")`.

    Returns radiance and s, both float32 (B, 1, H, W). The kernels have the limits of those of `refine`, read `carried`
    and `trust` at their own scales and need no map of full size besides `start`. There is no gradient. Exported graphs
    have the definition in them, with `refine` as an operator.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    range = range or Radiance()
    _check(x, base, cubic, linear)
    parameters = (isp_weight, isp_bias, embed, weights, biases, residual_weight, residual_bias)
    flat = [isp_weight, isp_bias, embed, *weights, *biases, residual_weight, residual_bias]
    limit = refine_entry.limit_of(x, weights)
    if not dispatch.use_kernel(
        "restore", implementation, [x, *base, *flat], differentiable=False, limit=limit, exported=False
    ):
        return _reference(x, base, parameters, cubic, linear, range, implementation)
    refine_entry.check("restore", x, parameters)
    pair: tuple[Tensor, Tensor] = _op(
        x, *base, isp_weight, isp_bias, embed, list(weights), list(biases), residual_weight, residual_bias,
        cubic, linear, range.unit, range.gain, range.ceiling,
    )  # fmt: skip
    return pair


def _check(x: Tensor, base: Base, cubic: Tensor, linear: Tensor) -> None:
    dispatch.check_shape("restore", "x", x, (None, None, None, None))
    b, _, h, w = x.shape
    if not dispatch.exporting():
        if h % SCALE or w % SCALE:
            raise ValueError(f"restore: height and width of x must be multiples of {SCALE}, not {h} and {w}")
        for name, side in (("start", 1), ("carried", 2), ("trust", SCALE)):
            dispatch.check_shape("restore", name, getattr(base, name), (b, 1, h // side, w // side))
    for name, tensor in base._asdict().items():
        dispatch.check_dtype("restore", name, tensor, (torch.float32, torch.float64))
    dispatch.check_shape("restore", "cubic", cubic, (4, 1, 5, 5))
    dispatch.check_shape("restore", "linear", linear, (SCALE, 3))
    given: dict[str, Tensor | None] = {"x": x, **base._asdict(), "cubic": cubic, "linear": linear}
    dispatch.check_together("restore", given, dtype=False)
