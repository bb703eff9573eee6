"""What ESA's metadata, carried along as tags, say about Sentinel-2's digital numbers: what is added, and the scale."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from deeplight.engine.raster.bands import FactorOnly
from deeplight.engine.raster.source import Raster

_log = logging.getLogger(__name__)

_ADDED = ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
"""Of level 2A and 1C: reflectance = (DN + offset) / quantification value. Since baseline 04.00 it is −1000; products
without it have no such entry. Some people write what is added instead, 1000, and mean the same."""
_QUANTIFICATION = ("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
_USUAL = 10_000.0


def tagged_scale(
    raster: Raster, bands: Sequence[int], given: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The scale and offset that the tags say, where nobody else says them; else `given`.

    given: of the command line, believed unless it is a FactorOnly. The file's own offset is believed too, and floating
    point numbers are taken as digital ones only by a FactorOnly. None: the file's own scale.
    """
    if given is not None and not isinstance(given, FactorOnly):
        return given
    found = {_offset_and_divisor(raster, band) for band in bands}
    if len(found) != 1 or None in found or any(raster.offsets[band - 1] for band in bands):
        return given
    offset, divisor = next(pair for pair in found if pair is not None)
    own = {float(raster.scales[band - 1]) for band in bands}
    if given is not None:
        factor = given[0]
    elif own == {1.0} and all(np.dtype(raster.dtypes[band - 1]).kind in "iu" for band in bands):
        factor = 1 / divisor
    elif len(own) == 1 and own != {1.0}:
        factor = own.pop()
    else:
        return given
    scaling = factor, offset * factor
    _log.info("%s: reflectance is DN · %g %+g, as its tags say", raster.what, *scaling)
    return scaling


def _offset_and_divisor(raster: Raster, band: int) -> tuple[float, float] | None:
    """(what is to be added to digital numbers, quantification value); None where no tag says the first."""
    tags = {**raster.tags, **raster.band_tags[band - 1]}
    offset = _number(tags, _ADDED)
    if offset is None:
        return None
    return -abs(offset), _number(tags, _QUANTIFICATION) or _USUAL


def _number(tags: dict[str, str], keys: Sequence[str]) -> float | None:
    for key in keys:
        try:
            value = float(tags[key])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            return value
    return None
