"""Agreement with the sensor: plans of both launches, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.agree import reference
from deeplight.kernels.agree.reference import BLUR_REACH, Sensor
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, next_power, ready, run
from deeplight.kernels.table import Config, configuration

ROWS = 16
"""LR rows of a program. It reads 22, six of which other programs read too."""


def plan_observe(
    radiance: Tensor, sensor: Sensor, power: Tensor | None, out: Tensor, config: Config | None = None
) -> Launch:
    """The launch for contiguous float32 tensors. The sensor's noise: (B,). power: (1,)."""
    b, _, h, w = out.shape
    config = config or configuration("observe", arch_of(radiance.device), 0, w, 2)
    return Launch(
        "observe",
        b * ceil_div(h, ROWS) * ceil_div(w, columns_of(config.block)),
        {
            "radiance": radiance,
            **sensor._asdict(),
            "power": sensor.noise if power is None else power,
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "REACH": BLUR_REACH,
            "ROWS": ROWS,
            "OUTP": next_power(columns_of(config.block)),
            "POWERED": power is not None,
        },
        config,
    )


def columns_of(block: int) -> int:
    """How many LR columns a program computes that reads `block` HR pixels of a row."""
    return block // SCALE - 2 * BLUR_REACH


def plan_rescale(radiance: Tensor, change: Tensor, out: Tensor, config: Config | None = None) -> Launch:
    """The launch for contiguous float32 tensors."""
    b, _, h, w = change.shape
    config = config or configuration("rescale", arch_of(radiance.device), 0, w, 2)
    return Launch(
        "rescale",
        b * h * ceil_div(SCALE * w, config.block),
        {"radiance": radiance, "change": change, "out": out, "height": h, "width": w},
        {},
        config,
    )


@torch.library.custom_op("deeplight::agree", mutates_args=())
def _op(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    saturated: Tensor,
    rows: Tensor,
    columns: Tensor,
    noise: Tensor,
    linear: Tensor,
    power: Tensor | None,
) -> Tensor:
    if not dispatch.operator_runs_kernel(x.device):
        sensor = Sensor(y, known, saturated, rows, columns, noise)
        return reference.agree(x, sensor, linear, 1.0 if power is None else power).contiguous()
    x, out = ready(x), _like(x)
    sensor = Sensor(*map(ready, (y, known, saturated, rows, columns, noise.flatten())))
    change = torch.empty(y.shape, device=x.device)
    run(plan_observe(x, sensor, None if power is None else power.reshape(1), change))
    run(plan_rescale(x, change, out))
    return out


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, device=x.device)


@_op.register_fake
def _(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    saturated: Tensor,
    rows: Tensor,
    columns: Tensor,
    noise: Tensor,
    linear: Tensor,
    power: Tensor | None,
) -> Tensor:
    return _like(x)


def agree(
    x: Tensor,
    sensor: Sensor,
    linear: Tensor,
    power: float | Tensor = 1.0,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Move the radiance x one step towards a radiance of which the sensor would have seen y.

        ratio = clip(((y + noise) / (A x + noise)) ^ power, ¼, 4)
        change = known · (ratio − 1), where y is saturated at least 0
        result = x · (1 + change, interpolated linearly)

    A is the blur by `rows` and `columns`, followed by the 8×8 area mean; beyond the edge the outermost blocks are
    repeated.

    x: (B, 1, 8h, 8w), float32, radiance ≥ 0. sensor: see Sensor, float32. linear: (8, 3),
    `interpolation_line(SCALE, "linear")`. power: a number or a tensor (). The reference takes float64 too.

    Returns (B, 1, 8h, 8w) in the unit of x. The kernels read x twice and write it once. They have no gradient: where
    one is needed, and in exported graphs, "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    _check(x, sensor, linear, power)
    scale = power if isinstance(power, Tensor) else None
    limit = None
    if x.dtype != torch.float32:
        limit = f"the kernel takes float32, not {str(x.dtype).removeprefix('torch.')}"
    tensors = [x, *sensor, scale]
    if not dispatch.use_kernel(
        "agree", implementation, tensors, differentiable=False, limit=limit, exported=False
    ):
        return reference.agree(x, sensor, linear, power)
    if scale is None and power != 1.0:
        scale = x.new_tensor(power)
    result: Tensor = _op(x, *sensor, linear, scale)
    return result


def _check(x: Tensor, sensor: Sensor, linear: Tensor, power: float | Tensor) -> None:
    dispatch.check_shape("agree", "x", x, (None, 1, None, None))
    b, _, height, width = x.shape
    if not dispatch.exporting():
        if height % SCALE or width % SCALE:
            raise ValueError(
                f"agree: height and width of x must be multiples of {SCALE}, not {height} and {width}"
            )
        for name in ("y", "known", "saturated"):
            shape = (b, 1, height // SCALE, width // SCALE)
            dispatch.check_shape("agree", name, getattr(sensor, name), shape)
    for name in ("rows", "columns"):
        dispatch.check_shape("agree", name, getattr(sensor, name), (b, 2 * BLUR_REACH + 1, SCALE))
    dispatch.check_shape("agree", "noise", sensor.noise, (b, 1, 1, 1))
    dispatch.check_shape("agree", "linear", linear, (SCALE, 3))
    given: dict[str, Tensor | None] = {"x": x, "linear": linear}
    given |= dict(zip(sensor._fields, sensor, strict=True))
    if isinstance(power, Tensor):
        dispatch.check_shape("agree", "power", power, ())
        given["power"] = power
    dispatch.check_together("agree", given)
