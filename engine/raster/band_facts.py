"""What a file says of a band: its name, its wavelength, whether it is a mask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deeplight.engine.raster.wavelengths import band_wavelength

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_COMMON_NAME = re.compile(r"(?:eo[:=])?common_name=(.+)", re.IGNORECASE)
"""A band's tag eo:common_name; GDAL splits NAME:VALUE at a colon too and gives it as eo = "common_name=…"."""


def alpha_bands(dataset: DatasetReader) -> set[int]:
    """1-based numbers of the bands that are masks; none where all would be."""
    from rasterio.enums import ColorInterp

    alpha = {
        b for b, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind == ColorInterp.alpha
    }
    return alpha if len(alpha) < dataset.count else set()


def band_name(dataset: DatasetReader, band: int) -> str:
    """Common name or description of a band; "" where there is none."""
    for key, value in dataset.tags(band).items():
        match = _COMMON_NAME.match(f"{key}={value}")
        if match:
            return match[1]
    return dataset.descriptions[band - 1] or ""


def wavelength(dataset: DatasetReader, band: int) -> float | None:
    """Wavelength of a band in micrometres; None where the file does not say it."""
    metadata = {**dataset.tags(band, ns="IMAGERY"), **dataset.tags(band)}
    return band_wavelength(dataset.descriptions[band - 1] or "", metadata)
