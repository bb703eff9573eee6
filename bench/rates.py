"""Rates with units from the time of a call and the work that it does. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.cases import CASES, ntl_grid
from bench.machine import Limits
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.geodesy import valid_area_km2


@dataclass(frozen=True)
class Work:
    """What one call of a benchmark does.

    stage: of the pipeline, or "kernel …". variant: how it was done. hr_mpix: millions of HR pixels. flops: number of
    operations. bytes: number of bytes that are read and written, or decoded. limit: the field of machine.Limits with
    which `amount` ("flops" or "bytes") is compared. threads: how many take part. batch, tile: of the model's input; the
    tile's side is in LR pixels, 0 where there is none.
    """

    stage: str
    variant: str
    hr_mpix: float
    flops: float = 0.0
    bytes: float = 0.0
    limit: str = ""
    amount: str = "bytes"
    threads: int = 1
    batch: int = 1
    tile: int = 0


def km2_per_hr_mpix() -> float:
    """Area on the ground of a million HR pixels in the scenes of the benchmarks (15″ grid at 20° north)."""
    case = CASES["host"]
    whole = Window(0, 0, case.height, case.width)
    return valid_area_km2(ntl_grid(case), whole, np.ones(whole.shape, np.uint8)) / case.hr_mpix


def rates(work: Mapping[str, Any], seconds: float, limits: Limits) -> dict[str, float]:
    """Rates of a call that took `seconds`; rates of amounts that the work does not have are left out.

    hr_mpix_per_s, km2_per_s, bytes_per_hr_px, gb_per_s (10⁹ bytes/s), gflop_per_s and limit_fraction, the
    share of the machine's measured limit.
    """
    found: dict[str, float] = {}
    if work["hr_mpix"]:
        found["hr_mpix_per_s"] = work["hr_mpix"] / seconds
        found["km2_per_s"] = found["hr_mpix_per_s"] * km2_per_hr_mpix()
    if work["bytes"]:
        found["gb_per_s"] = work["bytes"] / seconds / 1e9
        if work["hr_mpix"]:
            found["bytes_per_hr_px"] = work["bytes"] / (work["hr_mpix"] * 1e6)
    if work["flops"]:
        found["gflop_per_s"] = work["flops"] / seconds / 1e9
    limit = asdict(limits).get(work["limit"], 0.0)
    if limit:
        found["limit_fraction"] = work[work["amount"]] / seconds / limit
    return found


def hr_mpix(batch: int, side: int) -> float:
    """Millions of HR pixels of `batch` tiles of side × side LR pixels."""
    return batch * (SCALE * side) ** 2 / 1e6
