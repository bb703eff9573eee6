"""Rasters in, 8× finer nighttime lights out. The import loads no runtime and no raster library."""

from __future__ import annotations

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError, Interrupted

__all__ = ["ArtifactError", "DeepLightError", "InputError", "Interrupted"]
