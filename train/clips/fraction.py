"""Is a layer the impervious fraction, and not percent or a vegetation index?"""

from __future__ import annotations

import logging

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.radiance import INDEX_NAME

_log = logging.getLogger(__name__)

FRACTION = 0.0, 1.0
_ALLOWED_BEYOND = 0.01
_ALLOWED_BELOW = 1e-4
"""Products of imperviousness have no negative values; resampling leaves few. In NDVI of four cities 0.1 … 4 % are
water."""
_BARE = 0.001
"""Share of pixels without anything built: 6 … 92 % in six places, none in NDVI, where 0 is a value like others."""
_ENOUGH, _PERCENT_OR_BYTES = 64, 256
"""Different values: fewer say nothing; an index has more than a fraction that was stored as percent or in bytes."""


def check_fraction(layer: AuxLayer) -> None:
    """Raises InputError where the sampled values are clearly an index such as NDVI, or where more than 1 % of them are
    no fraction, 0 … 1; warns where an index is likely."""
    _, values, mask = layer.sample(layer.overlap.window)
    seen = values[0][mask != 0]
    if not seen.size:
        return
    raster, least, largest = layer.raster, float(seen.min()), float(seen.max())
    name = f"{raster.name.rpartition('/')[2]} {raster.band_names[layer.bands[0] - 1]}".lower()
    below, bare = float(np.mean(seen < 0)), float(np.mean(seen == 0))
    levels = np.unique(seen).size
    nowhere_bare = levels >= _ENOUGH and bare < _BARE and least >= -1 and largest <= 1 + 1e-6
    looks = (
        f"{raster.what} looks like a vegetation index and not like the impervious fraction ({100 * below:.2g} % of the "
        f"sampled values are below 0, {100 * bare:.2g} % are exactly 0)"
    )
    remedy = "give impervious surface, such as GAIA, GHSL or NLCD"
    if INDEX_NAME.search(name) or (nowhere_bare and below > _ALLOWED_BELOW):
        raise InputError(f"{looks}; {remedy}")
    if np.mean((seen < 0) | (seen > 1 + 1e-6)) > _ALLOWED_BEYOND:
        raise InputError(_out_of_range(layer, least, largest))
    if nowhere_bare and levels > _PERCENT_OR_BYTES:
        _log.warning("%s; if it is one, %s", looks, remedy)


def _out_of_range(layer: AuxLayer, least: float, largest: float) -> str:
    remedy = "for percent pass `isp_scale=0.01`" if 1 < largest <= 100 else (
        "for 0 … 255 pass `isp_scale=0.003922`, or `isp_nodata=V` where V marks missing pixels"
    )  # fmt: skip
    return (
        f"{layer.raster.what} holds values from {least:.4g} to {largest:.4g} after scaling, and the "
        f"impervious fraction lies in 0…1; {remedy}"
    )
