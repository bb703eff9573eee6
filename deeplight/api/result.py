"""What a model makes of a scene, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplight.api.scene import Scene
    from deeplight.engine.raster.grid import Grid

CONTEXT = 2
"""LR pixels around the part that pictures need for interpolation."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Refined lights. All arrays are float32 on `grid`, NaN wherever the lights are nodata.

    radiance: (8h, 8w), in `unit`, at least 0. grid: the LR grid cut 8×8. unit: of the lights, "" where nothing says it.
    lr: the lights that came in, (h + 4, w + 4) with two LR pixels on each side, NaN where they are nodata.
    """

    radiance: NDArray[np.float32]
    grid: Grid
    unit: str
    lr: NDArray[np.float32]
    _bands: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def of(cls, scene: Scene, bands: Sequence[str], pixels: NDArray[np.float32]) -> Result:
        """From the bands (n, 8h, 8w) that the library made: radiance, then those of EXTRA_BANDS that are named."""
        import numpy as np

        from deeplight.engine.run.options import EXTRA_BANDS

        found, at = {}, 1
        for band in bands:
            count = len(EXTRA_BANDS[band])
            found[band] = pixels[at] if count == 1 else pixels[at : at + count]
            at += count
        lights, valid = scene.rasters.read_ntl(scene.window.grown(CONTEXT))
        known = np.where(valid != 0, lights, np.float32(np.nan))
        return cls(pixels[0], scene.grid.finer(), scene.unit, known, found)

    @property
    def isp(self) -> NDArray[np.float32]:
        """Probability of impervious surface, (8h, 8w)."""
        return self._band("isp")

    @property
    def offset(self) -> NDArray[np.float32]:
        """How far the lights were moved, (2, 8h, 8w): x and y in LR pixels, the same in all pixels of an LR pixel."""
        return self._band("offset")

    @property
    def interval(self) -> NDArray[np.float32]:
        """Ends (low, high) of the interval that holds the radiance of 90 % of the pixels, (2, 8h, 8w)."""
        return self._band("interval")

    @property
    def quality(self) -> NDArray[np.float32]:
        """Bit flags as numbers, (8h, 8w); docs/nodata.md says what each means."""
        return self._band("quality")

    def _band(self, name: str) -> NDArray[np.float32]:
        if name not in self._bands:
            raise InputError(f'{name} was not asked for: call the model with bands=("{name}",)')
        return self._bands[name]

    def __repr__(self) -> str:
        height, width = self.radiance.shape
        named = ", ".join(["radiance", *self._bands])
        where = f"{self.unit or 'unknown unit'}, {self.grid.crs.to_string()}"
        return f"Result of {height}×{width} pixels ({named}), {where}"

    def to_xarray(self) -> Any:
        """An xarray.Dataset with a variable for each band, in rioxarray's conventions: `spatial_ref` holds the CRS, x
        and y are pixel centres (left out where the grid is rotated). Raises InputError where xarray is missing."""
        from deeplight.api.xarrays import dataset_of

        units = {"radiance": self.unit, "interval": self.unit, "offset": "LR px", "isp": "1"}
        return dataset_of({"radiance": self.radiance, **self._bands}, units, self.grid)

    def show(self) -> Any:
        """Draw lights, result and bicubic interpolation side by side: with matplotlib, whose figure is returned, or
        without it as a PIL.Image. A notebook shows either where it ends a cell."""
        from deeplight.api.drawing import drawn

        return drawn(self)

    def _repr_png_(self) -> bytes:
        from deeplight.api.drawing import as_png

        return as_png(self)
