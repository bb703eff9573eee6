"""The largest tile that a backend takes: engines of TensorRT have a profile, and fail on what is outside of it."""

from __future__ import annotations

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.run.tiling import TilePlan, fixed_window
from deeplight.engine.runtime.manifest import Manifest

Sides = tuple[int, int] | None
"""Height and width in LR pixels, halo included; None: any."""


def admits(largest: Sides, core: int, halo: int, manifest: Manifest, size: tuple[int, int]) -> bool:
    """Whether all tiles of this core, in a scene of `size` LR pixels, are at most as large as `largest`."""
    if largest is None:
        return True
    tile = _tile(core, halo, manifest, size)
    return tile[0] <= largest[0] and tile[1] <= largest[1]


def check_largest(largest: Sides, plan: TilePlan, manifest: Manifest, size: tuple[int, int]) -> None:
    """Raises InputError, naming the largest `tiles` that can be used, where those of a plan are too large."""
    core = max(size) if plan.core is None else plan.core
    if largest is None or admits(largest, core, plan.halo, manifest, size):
        return
    high, wide = _tile(core, plan.halo, manifest, size)
    what = "the whole scene" if plan.core is None else f"tiles of {core} LR pixels and a halo of {plan.halo}"
    fitting = (c for c in range(max(largest), 0, -1) if admits(largest, c, plan.halo, manifest, size))
    most = next(fitting, None)
    remedy = "use a smaller halo" if most is None else f"use `tiles` of at most {most}"
    raise InputError(
        f"{what} would be {high}×{wide} LR pixels at once, and the engine of this model takes at most "
        f'{largest[0]}×{largest[1]}: {remedy}, or `backend="torch"`'
    )


def _tile(core: int, halo: int, manifest: Manifest, size: tuple[int, int]) -> tuple[int, int]:
    """Sides of a device's tiles; no tile of the host's path is larger."""
    return fixed_window(Window(0, 0, 1, 1), core, halo, manifest, size).shape
