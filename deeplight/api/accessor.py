"""`array.deeplight` of xarray's DataArrays."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from deeplight.api.model import DEFAULT, Model
from deeplight.api.running import Run, refine
from deeplight.api.scene import Scene, open_scene
from deeplight.engine.core.errors import InputError


class Accessor:
    """Nighttime lights in a DataArray: `lights.deeplight.open(dmo="landsat.tif")`, `lights.deeplight.refine(…)`."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def open(self, dmo: Any = None, dem: Any = None, **options: Any) -> Scene:
        """The array as the lights of a scene; arguments as `deeplight.open_scene` has them."""
        return open_scene(self._array, dmo, dem, **options)

    def refine(self, out: str | Path, model: Model | str | Path = DEFAULT, **options: Any) -> Run:
        """Refine the array into a Cloud-Optimized GeoTIFF; options of `deeplight.open_scene`, such as dmo, and of
        `deeplight.refine`."""
        of_scene = inspect.signature(open_scene).parameters
        unknown = [k for k in options if k not in of_scene and k not in inspect.signature(refine).parameters]
        if unknown:
            raise InputError(
                f"{unknown[0]} is no parameter of deeplight.open_scene or deeplight.refine: correct its name"
            )
        layers = {name: value for name, value in options.items() if name in of_scene}
        with self.open(**layers) as scene:
            rest = {name: value for name, value in options.items() if name not in layers}
            return refine(scene, model, out=out, **rest)


def register(xarray: Any) -> None:
    """Add the accessor to xarray."""
    xarray.register_dataarray_accessor("deeplight")(Accessor)
