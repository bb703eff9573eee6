"""Agreement with the sensor: plans of both launches, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.agree import reference
from deeplight.kernels.agree.reference import BLUR_REACH, STEPS, Sensor
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, next_power, ready, run
from deeplight.kernels.table import Config, configuration

ROWS, ROWS_READ = 16, 8
"""LR rows of a program, where the radiance is made and where it is read: it computes or reads six more, of other
programs. Reads take long to arrive, so there are twice as many programs that wait for them."""


def plan_observe(
    image: Tensor | Sequence[Tensor],
    sensor: Sensor,
    power: Tensor | None,
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors. image: radiance on the HR grid; or the changes, at most one, by which
    y, enlarged, has grown, (B, 1, h, w) each. The sensor's noise: (B,). power: (1,)."""
    b, _, h, w = out.shape
    config = config or configuration("observe", arch_of(out.device), 0, w, 2)
    made = -1 if isinstance(image, Tensor) else len(image)
    radiance = image if isinstance(image, Tensor) else sensor.y
    change = sensor.y if isinstance(image, Tensor) else next(iter(image), sensor.y)
    rows = ROWS_READ if isinstance(image, Tensor) else ROWS
    return Launch(
        "observe",
        b * ceil_div(h, rows) * ceil_div(w, columns_of(config.block)),
        {
            "radiance": radiance,
            "change": change,
            **sensor._asdict(),
            "power": sensor.noise if power is None else power,
            "out": out,
            "height": h,
            "width": w,
        },
        {
            "REACH": BLUR_REACH,
            "ROWS": rows,
            "OUTP": next_power(columns_of(config.block)),
            "POWERED": power is not None,
            "MADE": made,
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
    sensor = _ready(Sensor(y, known, saturated, rows, columns, noise))
    change = torch.empty(y.shape, device=x.device)
    run(plan_observe(x, sensor, None if power is None else power.reshape(1), change))
    run(plan_rescale(x, change, out))
    return out


def _ready(sensor: Sensor) -> Sensor:
    return Sensor(*map(ready, sensor._replace(noise=sensor.noise.flatten())))


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
    dispatch.check_shape("agree", "x", x, (None, 1, None, None))
    b, _, height, width = x.shape
    if not dispatch.exporting() and (height % SCALE or width % SCALE):
        raise ValueError(
            f"agree: height and width of x must be multiples of {SCALE}, not {height} and {width}"
        )
    _check("agree", {"x": x}, sensor, (b, 1, height // SCALE, width // SCALE), linear, power)
    scale = power if isinstance(power, Tensor) else None
    tensors, limit = [x, *sensor, scale], _limit(x)
    if not dispatch.use_kernel(
        "agree", implementation, tensors, differentiable=False, limit=limit, exported=False
    ):
        return reference.agree(x, sensor, linear, power)
    if scale is None and power != 1.0:
        scale = x.new_tensor(power)
    result: Tensor = _op(x, *sensor, linear, scale)
    return result


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
    sensor = _ready(sensor)
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
def _(
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
    return _enlarged_like(y)


def base(
    sensor: Sensor,
    cubic: Tensor,
    linear: Tensor,
    power: float | Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Radiance from what the sensor saw alone: y enlarged by cubic convolution, then two steps of `agree`.

        x = max(y enlarged, 0);  x ← agree(x, sensor, power), STEPS times

    sensor, linear and power: as for `agree`. cubic: (8, 5), `interpolation_line(SCALE, "cubic")`.

    Returns (B, 1, 8h, 8w) in the unit of y. The kernels read maps on the lights' grid alone and write the result once.
    They have no gradient: where one is needed, and in exported graphs, "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    dispatch.check_shape("base", "y", sensor.y, (None, 1, None, None))
    dispatch.check_shape("base", "cubic", cubic, (SCALE, 5))
    _check("base", {"cubic": cubic}, sensor, tuple(sensor.y.shape), linear, power)
    tensors = [*sensor, power if isinstance(power, Tensor) else None]
    limit = _limit(sensor.y)
    if not dispatch.use_kernel(
        "base", implementation, tensors, differentiable=False, limit=limit, exported=False
    ):
        return reference.base(sensor, cubic, linear, power)
    scale = power if isinstance(power, Tensor) else sensor.y.new_tensor(power)
    result: Tensor = _base_op(*sensor, cubic, linear, scale)
    return result


def _limit(x: Tensor) -> str | None:
    return None if x.dtype == torch.float32 else f"the kernel takes float32, not {str(x.dtype)[6:]}"


def _check(
    op: str,
    given: dict[str, Tensor | None],
    sensor: Sensor,
    shape: tuple[int, ...],
    linear: Tensor,
    power: float | Tensor,
) -> None:
    """shape: of the maps on the lights' grid. given: a tensor by name, of whose device and type all others are."""
    if not dispatch.exporting():
        for name in ("y", "known", "saturated"):
            dispatch.check_shape(op, name, getattr(sensor, name), shape)
    for name in ("rows", "columns"):
        dispatch.check_shape(op, name, getattr(sensor, name), (shape[0], 2 * BLUR_REACH + 1, SCALE))
    dispatch.check_shape(op, "noise", sensor.noise, (shape[0], 1, 1, 1))
    dispatch.check_shape(op, "linear", linear, (SCALE, 3))
    given = {**given, "linear": linear, **sensor._asdict()}
    if isinstance(power, Tensor):
        dispatch.check_shape(op, "power", power, ())
        given["power"] = power
    dispatch.check_together(op, given)
