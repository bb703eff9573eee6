"""What is counted over the output: which share had which layers, how much light, what did not fit its type.

The counts of a region are kept with its pack, so that they are whole after any number of resumed runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats, Mask, to_hr
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.lights import block_changes, compact_light

_BITS = {"dmo": 1, "dem": 2}
_NOTEWORTHY = 0.02
"""Difference between two shares that is told; that of a file's extent is known to about 1/48."""


def layers_present(inputs: Mapping[str, Floats], core: Window, window: Window) -> Mask:
    """Which auxiliary layers each HR pixel of a core had, (8h, 8w): 1 DMO, 2 DEM, 3 both.

    inputs: the model's, of `window`; both windows in LR pixels.
    """
    rows, cols = core.scaled(SCALE).slices_in(window.scaled(SCALE))
    there = {name: inputs[f"{name}_valid"][0, 0, rows, cols] != 0 for name in _BITS}
    present: Mask = there["dmo"] * np.uint8(_BITS["dmo"]) | there["dem"] * np.uint8(_BITS["dem"])
    return present


@dataclass(frozen=True)
class Facts:
    """Counts over a region of the output; those of disjoint regions can be added.

    valid, dmo, dem, ntl_alone: valid HR pixels, and those of them that had DMO, DEM, or neither. clamped: those
    beyond the range of the output's type. lights_*: sums of radiance over valid LR pixels, as it came in, with
    negatives as zero, and as it went out. largest: radiance that went out. lit_blocks, moved_blocks, lights_compact:
    see output.lights. squares_*: of the lights, negatives as zero, and of what the sensor would see more or less.
    """

    valid: int = 0
    dmo: int = 0
    dem: int = 0
    ntl_alone: int = 0
    clamped: int = 0
    lights_in: float = 0.0
    lights_in_clamped: float = 0.0
    lights_out: float = 0.0
    largest: float = 0.0
    lit_blocks: int = 0
    moved_blocks: int = 0
    lights_compact: float = 0.0
    squares_in: float = 0.0
    squares_left: float = 0.0

    @classmethod
    def of(
        cls,
        lr: Floats,
        valid: Mask,
        radiance: Floats,
        seen: Floats,
        layers: Mask,
        clamped: int,
        corner: tuple[int, int] = (0, 0),
    ) -> Facts:
        """lr, valid, seen: (h, w), NTL, its mask, and what the sensor would see of the output. radiance, layers: (8h,
        8w), NaN = nodata, and `layers_present`. corner: (row, col) of the region in LR pixels of the scene."""
        hr_valid = to_hr(valid != 0)

        def count(where: NDArray[np.bool_]) -> int:
            return int(np.count_nonzero(where & hr_valid))

        counts = {
            "dmo": count(layers & _BITS["dmo"] != 0),
            "dem": count(layers & _BITS["dem"] != 0),
            "ntl_alone": count(layers == 0),
            "clamped": clamped,
            "light": float(np.nansum(radiance, dtype=np.float64)),
            "largest": float(np.nanmax(radiance)) if valid.any() else 0.0,
        }
        return cls.counted(lr, valid, seen, counts, corner)

    @classmethod
    def counted(
        cls, lr: Floats, valid: Mask, seen: Floats, counts: Mapping[str, float], corner: tuple[int, int]
    ) -> Facts:
        """As `of`, from what was counted over the valid HR pixels: dmo, dem, ntl_alone, clamped, light (the sum of
        radiance) and largest."""
        known = lr[valid != 0].astype(np.float64)
        light = np.maximum(known, 0)
        lit, moved = block_changes(lr, valid, seen, corner)
        return cls(
            valid=known.size * SCALE**2,
            dmo=int(counts["dmo"]),
            dem=int(counts["dem"]),
            ntl_alone=int(counts["ntl_alone"]),
            clamped=int(counts["clamped"]),
            lights_in=float(known.sum()),
            lights_in_clamped=float(light.sum()),
            # An HR pixel covers 1/64 of an LR pixel: so the two sums compare.
            lights_out=counts["light"] / SCALE**2,
            largest=counts["largest"],
            lit_blocks=lit,
            moved_blocks=moved,
            lights_compact=compact_light(lr, valid),
            squares_in=float((light**2).sum()),
            squares_left=float(np.nansum((seen[valid != 0] - light) ** 2)),
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, float]) -> Facts:
        """What `to_json` gave."""
        return cls(**fields)  # type: ignore[arg-type]  # whole numbers stay whole in JSON

    def to_json(self) -> dict[str, float]:
        """For the pack that holds the region."""
        return asdict(self)

    def __add__(self, other: Facts) -> Facts:
        mine, theirs = asdict(self), asdict(other)
        total = {name: mine[name] + theirs[name] for name in mine}
        return Facts(**total | {"largest": max(self.largest, other.largest)})

    def share(self, name: str) -> float | None:
        """Share of the valid pixels that had "dmo" or "dem"; None where there were none."""
        had: int = getattr(self, name)
        return had / self.valid if self.valid else None

    @property
    def residual_rms(self) -> float | None:
        """What the sensor would see of the output less what it saw, in parts of the lights; None without lights."""
        return math.sqrt(self.squares_left / self.squares_in) if self.squares_in else None

    def lines(self, covered: Mapping[str, float | None]) -> Iterator[str]:
        """For the log; nothing where there is no valid pixel.

        covered: of "dmo" and "dem" the share of the scene that the layer's file reaches over; None: it was not given.
        """
        if not self.valid:
            return
        given = {name: share for name, share in covered.items() if share is not None}
        if not given:
            yield "the output is made of NTL alone: neither DMO nor DEM was given"
            return
        parts = ", ".join(self._told(name, share) for name, share in given.items())
        yield f"of the output's valid pixels {parts} and {self.ntl_alone / self.valid:.1%} NTL alone"

    def _told(self, name: str, covered: float) -> str:
        """How much of the output had a layer, and what its file promised where that is more."""
        share = self.share(name) or 0.0
        less = covered > share + _NOTEWORTHY
        more = f" (its file reaches over {covered:.0%} of the scene, with gaps)" if less else ""
        return f"{share:.1%} had {name.upper()}{more}"

    def merged(self, layers: dict[str, Any]) -> dict[str, Any]:
        """`Scene.describe()` with `share_of_output` added to the layers that were given."""
        for name in _BITS:
            if name in layers:
                layers[name]["share_of_output"] = self.share(name)
        return layers

    def lights(self, unit: str) -> dict[str, Any]:
        """Mean radiance in and out over the valid pixels; None where there were none."""
        n = self.valid // SCALE**2

        def mean(total: float) -> float | None:
            return total / n if n else None

        return {
            "unit": unit,
            "valid_lr_pixels": n,
            "mean_in": mean(self.lights_in),
            "mean_in_negatives_as_zero": mean(self.lights_in_clamped),
            "mean_out": mean(self.lights_out),
            "lit_blocks": self.lit_blocks,
            "moved_blocks": self.moved_blocks,
            "residual_rms": self.residual_rms,
        }
