"""DeepLight: coarse nighttime-light rasters in, 8× finer ones out.

    import deeplight as dl

    scene = dl.open_scene("viirs.tif", dmo="landsat.tif", dem="srtm.tif")
    model = dl.load_model("deeplight-tiny")
    town = model(scene[100:228, 40:168])                 # arrays
    run = dl.refine(scene, model, out="lights.tif")      # a file, of any size

The import loads nothing: a name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deeplight.api.hook import watch

if TYPE_CHECKING:
    from deeplight.api.layers import Layer
    from deeplight.api.model import Model, load_model
    from deeplight.api.result import Result
    from deeplight.api.running import Run, refine
    from deeplight.api.scene import Scene, open_scene
    from deeplight.api.stacks import Dates, refine_dates
    from deeplight.api.tables import zonal
    from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError, Interrupted
    from deeplight.engine.raster.grid import Grid

    __version__: str

_HOMES = {
    "ArtifactError": "deeplight.engine.core.errors",
    "Dates": "deeplight.api.stacks",
    "DeepLightError": "deeplight.engine.core.errors",
    "Grid": "deeplight.engine.raster.grid",
    "InputError": "deeplight.engine.core.errors",
    "Interrupted": "deeplight.engine.core.errors",
    "Layer": "deeplight.api.layers",
    "Model": "deeplight.api.model",
    "Result": "deeplight.api.result",
    "Run": "deeplight.api.running",
    "Scene": "deeplight.api.scene",
    "load_model": "deeplight.api.model",
    "open_scene": "deeplight.api.scene",
    "refine": "deeplight.api.running",
    "refine_dates": "deeplight.api.stacks",
    "zonal": "deeplight.api.tables",
}
"""Public name → the module that defines it."""

__all__ = [
    "ArtifactError",
    "Dates",
    "DeepLightError",
    "Grid",
    "InputError",
    "Interrupted",
    "Layer",
    "Model",
    "Result",
    "Run",
    "Scene",
    "__version__",
    "load_model",
    "open_scene",
    "refine",
    "refine_dates",
    "zonal",
]


def __getattr__(name: str) -> Any:
    """The public name, imported when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("deeplight")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'deeplight' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


watch()
