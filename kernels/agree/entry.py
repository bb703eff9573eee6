"""The base: plans of its launches, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.agree import reference
from deeplight.kernels.agree.reference import BLUR_REACH, STEPS, Sensor
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, next_power, ready, run
from deeplight.kernels.table import Config, configuration

ROWS = 16
"""LR rows of a program of `observe`; it makes six more, of other programs."""


def plan_observe(
    changes: Sequence[Tensor],
    sensor: Sensor,
    power: Tensor,
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors. changes: those, at most one, by which y, enlarged, has grown,
    (B, 1, h, w) each. The sensor's noise: (B,). power: (1,)."""
    b, _, h, w = out.shape
    config = config or configuration("observe", arch_of(out.device), 0, w, 2)
    return Launch(
        "observe",
        b * ceil_div(h, ROWS) * ceil_div(w, columns_of(config.block)),
        {
            "change": next(iter(changes), sensor.y),
            **sensor._asdict(),
            "power": power,
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "REACH": BLUR_REACH,
            "ROWS": ROWS,
            "OUTP": next_power(columns_of(config.block)),
            "MADE": len(changes),
        },
        config,
    )


def columns_of(block: int) -> int:
    """How many LR columns a program computes that reads `block` HR pixels of a row."""
    return block // SCALE - 2 * BLUR_REACH


def plan_start(y: Tensor, changes: Sequence[Tensor], out: Tensor, config: Config | None = None) -> Launch:
    """The launch for contiguous float32 tensors and two changes."""
    b, _, h, w = y.shape
    config = config or configuration("start", arch_of(y.device), 0, w, 2)
    return Launch(
        "start",
        b * h * ceil_div(SCALE * w, config.block),
        {"y": y, "change": changes[0], "second": changes[1], "out": out, "height": h, "width": w},
        {},
        config,
    )


def sensor_ready(sensor: Sensor) -> Sensor:
    """In the memory that the kernels read, the noise as (B,)."""
    return Sensor(*map(ready, sensor._replace(noise=sensor.noise.flatten())))


@torch.library.custom_op("deeplight::base", mutates_args=())
def _base_op(
    y: Tensor,
    known: Tensor,
    saturated: Tensor,
    rows: Tensor,
    columns: Tensor,
    noise: Tensor,
    cubic: Tensor,
    linear: Tensor,
    power: Tensor,
) -> Tensor:
    sensor = Sensor(y, known, saturated, rows, columns, noise)
    if not dispatch.operator_runs_kernel(y.device):
        return reference.base(sensor, cubic, linear, power).contiguous()
    sensor = sensor_ready(sensor)
    changes: list[Tensor] = []
    for _ in range(STEPS):
        change = torch.empty(y.shape, device=y.device)
        run(plan_observe(changes, sensor, power.reshape(1), change))
        changes.append(change)
    out = _enlarged_like(y)
    run(plan_start(sensor.y, changes, out))
    return out


def _enlarged_like(y: Tensor) -> Tensor:
    b, _, h, w = y.shape
    return torch.empty((b, 1, SCALE * h, SCALE * w), device=y.device)


@_base_op.register_fake
def _(y: Tensor, *_: Any) -> Tensor:
    return _enlarged_like(y)


def base(
    sensor: Sensor,
    cubic: Tensor,
    linear: Tensor,
    power: float | Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Radiance from what the sensor saw alone: y enlarged by cubic convolution, then two steps towards y.

        x = max(y enlarged, 0);  STEPS times:
        ratio = clip(((y + noise) / (A x + noise)) ^ power, ¼, 4)
        change = known · (ratio − 1), where y is saturated at least 0
        x ← x · (1 + change, interpolated linearly)

    A is the blur by `rows` and `columns`, followed by the 8×8 area mean; beyond the edge the outermost blocks are
    repeated.

    sensor: see Sensor, float32; y is (B, 1, h, w). cubic, linear: (8, 5) and (8, 3), `interpolation_line(SCALE, …)` of
    "cubic" and "linear". power: a number or a tensor (). The reference takes float64 too.

    Returns (B, 1, 8h, 8w) in the unit of y. The kernels read maps on the lights' grid alone and write the result once.
    They have no gradient: where one is needed, and in exported graphs, "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    dispatch.check_shape("base", "y", sensor.y, (None, 1, None, None))
    dispatch.check_shape("base", "cubic", cubic, (SCALE, 5))
    given: dict[str, Tensor | None] = {"cubic": cubic}
    if isinstance(power, Tensor):
        dispatch.check_shape("base", "power", power, ())
        given["power"] = power
    check("base", given, sensor, tuple(sensor.y.shape), linear)
    tensors = [*sensor, power if isinstance(power, Tensor) else None]
    limit = limit_of(sensor.y)
    if not dispatch.use_kernel(
        "base", implementation, tensors, differentiable=False, limit=limit, exported=False
    ):
        return reference.base(sensor, cubic, linear, power)
    scale = power if isinstance(power, Tensor) else sensor.y.new_full((), power)
    result: Tensor = _base_op(*sensor, cubic, linear, scale)
    return result


def limit_of(x: Tensor) -> str | None:
    """What the kernels cannot compute, as `dispatch.use_kernel` takes it."""
    return None if x.dtype == torch.float32 else f"the kernel takes float32, not {str(x.dtype)[6:]}"


def check(
    op: str, given: dict[str, Tensor | None], sensor: Sensor, shape: tuple[int, ...], linear: Tensor
) -> None:
    """Raise ValueError unless the tensors fit. shape: of the maps on the lights' grid. given: tensors by name; all
    others must be of the device and the element type of the first."""
    if not dispatch.exporting():
        for name in ("y", "known", "saturated"):
            dispatch.check_shape(op, name, getattr(sensor, name), shape)
    for name in ("rows", "columns"):
        dispatch.check_shape(op, name, getattr(sensor, name), (shape[0], 2 * BLUR_REACH + 1, SCALE))
    dispatch.check_shape(op, "noise", sensor.noise, (shape[0], 1, 1, 1))
    dispatch.check_shape(op, "linear", linear, (SCALE, 3))
    dispatch.check_together(op, {**given, "linear": linear, **sensor._asdict()})
