"""The last step: plans of its launches, custom operator, checked entry point. There is no gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.agree import entry as agree_entry
from deeplight.kernels.agree.entry import columns_of
from deeplight.kernels.agree.reference import BLUR_REACH, Sensor
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, next_power, ready, run
from deeplight.kernels.settle import reference
from deeplight.kernels.settle.reference import Belief
from deeplight.kernels.table import Config, configuration

ROWS = 8
"""LR rows of a program of `look`; it reads six more, of other programs. Reads take long to arrive, so there are twice
as many programs that wait for them as where one image is seen."""


class Looked(NamedTuple):
    """What `look` writes and `decide` reads, (B,1,h,w) each. seen: what the sensor sees of start, and gained: how much
    more of refined. reached, raised: the same for what changes reach."""

    seen: Tensor
    gained: Tensor
    reached: Tensor
    raised: Tensor


def plan_believe(
    refined: Tensor, sensor: Sensor, psf: Tensor, belief: Belief, root: Tensor, config: Config | None = None
) -> Launch:
    """The launch for contiguous float32 tensors. The sensor's noise: (B,)."""
    b, _, h, w = root.shape
    config = config or configuration("believe", arch_of(refined.device), 0, w, 2)
    columns = columns_of(config.block)
    numbers = {"height": h, "width": w, "gap": belief.gap, "noises": belief.noises}
    return Launch(
        "believe",
        b * ceil_div(h, agree_entry.ROWS) * ceil_div(w, columns),
        {"refined": refined, **sensor._asdict(), "psf": psf, "root": root, **numbers},
        {"REACH": BLUR_REACH, "ROWS": agree_entry.ROWS, "OUTP": next_power(columns)},
        config,
    )


def plan_look(
    refined: Tensor, start: Tensor, sensor: Sensor, looked: Looked, config: Config | None = None
) -> Launch:
    """The launch for contiguous float32 tensors."""
    b, _, h, w = looked.seen.shape
    config = config or configuration("look", arch_of(refined.device), 0, w, 2)
    columns = columns_of(config.block)
    images = {"refined": refined, "start": start, "rows": sensor.rows, "columns": sensor.columns}
    return Launch(
        "look",
        b * ceil_div(h, ROWS) * ceil_div(w, columns),
        {**images, **looked._asdict(), "height": h, "width": w},
        {"REACH": BLUR_REACH, "ROWS": ROWS, "OUTP": next_power(columns)},
        config,
    )


def plan_decide(
    root: Tensor,
    looked: Looked,
    sensor: Sensor,
    belief: Belief,
    spread: Tensor,
    change: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors. The sensor's noise: (B,)."""
    b, _, h, w = change.shape
    config = config or configuration("decide", arch_of(change.device), 0, w, 2)
    maps = {"root": root, **looked._asdict(), **sensor._asdict(), "spread": spread, "change": change}
    numbers = {"height": h, "width": w, "last": belief.last}
    return Launch("decide", b * h * ceil_div(w, config.block), {**maps, **numbers}, {}, config)


def plan_settle(
    refined: Tensor,
    start: Tensor,
    spread: Tensor,
    change: Tensor,
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous float32 tensors."""
    b, _, h, w = spread.shape
    config = config or configuration("settle", arch_of(out.device), 0, w, 2)
    images = {"refined": refined, "start": start, "spread": spread, "change": change, "out": out}
    programs = b * h * ceil_div(SCALE * w, config.block)
    return Launch("settle", programs, {**images, "height": h, "width": w}, {}, config)


@torch.library.custom_op("deeplight::settle", mutates_args=())
def _op(
    refined: Tensor,
    start: Tensor,
    y: Tensor,
    known: Tensor,
    saturated: Tensor,
    rows: Tensor,
    columns: Tensor,
    noise: Tensor,
    psf: Tensor,
    linear: Tensor,
    gap: float,
    noises: float,
    last: float,
) -> Tensor:
    sensor, belief = Sensor(y, known, saturated, rows, columns, noise), Belief(gap, noises, last)
    if not dispatch.operator_runs_kernel(refined.device):
        return reference.settle(refined, start, sensor, psf, linear, belief).contiguous()
    refined, start, out = ready(refined), ready(start), _like(refined)
    sensor = agree_entry.sensor_ready(sensor)
    looked = Looked(*(_like(sensor.y) for _ in Looked._fields))
    root, spread, change = (_like(sensor.y) for _ in range(3))
    run(plan_believe(refined, sensor, ready(psf), belief, root))
    run(plan_look(refined, start, sensor, looked))
    run(plan_decide(root, looked, sensor, belief, spread, change))
    run(plan_settle(refined, start, spread, change, out))
    return out


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, device=x.device)


@_op.register_fake
def _(refined: Tensor, *_: Any) -> Tensor:
    return _like(refined)


def settle(
    refined: Tensor,
    start: Tensor,
    sensor: Sensor,
    psf: Tensor,
    linear: Tensor,
    belief: Belief,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Believe the refined radiance as far as the lights do, and move the mixture one step towards them.

        root = S √(spared / (spared + gap²))
        gap = N refined − y where y is known, at most 0 where it is saturated
        spared = belief.gap² · (N refined + noise) · (y + noise) + belief.noises · noise²
        mixed = A start + (A refined − A start) · root²
        change = known · (clip((y + n) / (mixed + n), ¼, 4) − 1), where n = belief.last · noise; where y is saturated
                 at least 0
        change ← clip(change · (mixed + n) / (reached + n), −¾, 3)
        result = (start + (refined − start) · root²) · (1 + change), root and change interpolated linearly

    A is the blur by `rows` and `columns`, followed by the 8×8 area mean; beyond the edge the outermost blocks are
    repeated. N is A with the middle five of its blocks alone, scaled to sum to 1. S is the mean of 3×3 LR pixels by
    what A gathers from each, at most 1.
    reached is made as mixed, with the mean by the weights of linear interpolation in place of A: so what is added has
    the sum of what the sensor missed. Where the blur is not known (psf below 0), root is 1.

    refined, start: (B, 1, 8h, 8w), float32, radiance ≥ 0. sensor: see Sensor, float32. psf: (B, 2), FWHM in LR pixels,
    float32. linear: (8, 3), `interpolation_line(SCALE, "linear")`. belief: see Belief. The reference takes float64 too.

    Returns (B, 1, 8h, 8w) in the unit of refined. The kernels read both images twice and write one. They have no
    gradient: where one is needed, and in exported graphs, "auto" takes the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    _check(refined, start, sensor, psf, linear)
    tensors, limit = [refined, start, *sensor, psf], agree_entry.limit_of(refined)
    if not dispatch.use_kernel(
        "settle", implementation, tensors, differentiable=False, limit=limit, exported=False
    ):
        return reference.settle(refined, start, sensor, psf, linear, belief)
    result: Tensor = _op(refined, start, *sensor, psf, linear, *belief)
    return result


def _check(refined: Tensor, start: Tensor, sensor: Sensor, psf: Tensor, linear: Tensor) -> None:
    dispatch.check_shape("settle", "refined", refined, (None, 1, None, None))
    b, _, height, width = refined.shape
    if not dispatch.exporting():
        if height % SCALE or width % SCALE:
            raise ValueError(
                f"settle: height and width of refined must be multiples of {SCALE}, not {height} and {width}"
            )
        dispatch.check_shape("settle", "start", start, (b, 1, height, width))
    dispatch.check_shape("settle", "psf", psf, (b, 2))
    given: dict[str, Tensor | None] = {"refined": refined, "start": start, "psf": psf}
    agree_entry.check("settle", given, sensor, (b, 1, height // SCALE, width // SCALE), linear)
