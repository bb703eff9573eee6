"""Are a layer's values what it says they are? Looks at pixels, and names the likely remedy."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.layers import AuxLayer, Layer

_log = logging.getLogger(__name__)

_MAX_P99 = 2.0
"""Clouds, snow and glint reach 1.2–1.6; digital numbers and percent start far above."""
_MAX_MEDIAN = 1.2
"""No scene is brighter than white over half its area."""
_MIN_P1 = -0.5
"""Over-corrected dark pixels reach −0.2 (the floor of Landsat's integer range); lower is a wrong offset."""
_TINY_P99 = 5e-4
"""Even open water reflects more somewhere: this is a scale applied twice (0.3 · 0.0001 = 3e-5)."""

_LEAST_RADIANCE, _MOST_RADIANCE = -100.0, 2e7
"""nW/cm²/sr, or DN. Noise of VIIRS reaches about −1.5; its day/night band ends at 0.02 W/cm²/sr. Undeclared fill
(−999, −9999, ±3.4e38) and a wrong scale lie beyond."""

_FULL_SCAN_PIXELS = 1 << 27
_SCAN_SIDE = 2048


def check_reflectance(layer: AuxLayer) -> None:
    """Raises InputError where the sampled values cannot be reflectance (0 … 1); logs pixels that look like
    fill."""
    raw, values, mask = layer.sample(layer.overlap.window)
    known = mask != 0
    if not known.any():
        _log.warning("%s: no valid pixel among those sampled", layer.raster.what)
        return
    low, middle, high = (float(v) for v in np.percentile(values[:, known], [1, 50, 99]))
    if high > _MAX_P99 or middle > _MAX_MEDIAN or low < _MIN_P1 or 0 < high < _TINY_P99:
        raise InputError(
            f"{layer.raster.what} cannot be reflectance after scaling by {_scaling(layer)} "
            f"(1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}; expected within 0…1); "
            f"{_remedy(raw[:, known])}"
        )
    empty = float(np.mean(~raw[:, known].any(axis=0)))
    if empty > 0.01:
        _log.warning(
            "%s: %.0f %% of the sampled pixels are 0 in every band; if that is fill, pass --dmo-nodata 0",
            layer.raster.what,
            100 * empty,
        )


def _scaling(layer: Layer) -> str:
    pairs = sorted(set(zip(layer.scale.tolist(), layer.offset.tolist(), strict=True)))
    return " and ".join(f"{scale:g},{offset:g}" for scale, offset in pairs)


def _remedy(raw: NDArray[Any]) -> str:
    """The scale that sensors with such raw values (C, N) use, as an instruction."""
    low, middle, high = (float(v) for v in np.percentile(raw.astype(np.float64), [1, 50, 99]))
    whole = raw.dtype.kind in "iu" or bool((raw == np.floor(raw)).all())
    if low >= 0 and high <= 1.6:
        return "the raw values are reflectance already: pass --dmo-scale 1"
    if whole and low >= 0 and high <= 255:
        return "for 8-bit values pass --dmo-scale 0.003922"
    if low >= 0 and high <= 110:
        return "for percent pass --dmo-scale 0.01"
    if low >= 5000 and middle >= 7000 and high <= 65535:
        return "for Landsat Collection 2 level 2 pass --dmo-scale 0.0000275,-0.2"
    if low >= -3000 and high <= 25000:
        later = " (0.0001,-0.1 for Sentinel-2 processed since 2022)" if low >= 1000 else ""
        return f"for Sentinel-2-like digital numbers pass --dmo-scale 0.0001{later}"
    return "pass --dmo-scale F[,OFFSET] such that raw · F + OFFSET is reflectance"


def check_elevation(layer: AuxLayer) -> None:
    """Raises InputError where no sampled pixel can be an elevation in metres; logs which share cannot, which is
    then taken as missing (layer.limits)."""
    assert layer.limits is not None
    low, high = layer.limits
    _, values, mask = layer.sample(layer.overlap.window)
    heights = values[0][mask != 0]
    if not heights.size:
        _log.warning("%s: no valid pixel among those sampled", layer.raster.what)
        return
    beyond = heights[(heights < low) | (heights > high)]
    span = f"outside {low:g}…{high:g} m (such as {beyond[0]:.6g})" if beyond.size else ""
    if beyond.size == heights.size:
        raise InputError(
            f"{layer.raster.what}: all sampled elevations are {span}; give elevations in metres, or their scale and "
            "the value of voids with --dem-scale F[,OFFSET] and --dem-nodata VALUE"
        )
    if beyond.size:
        _log.warning(
            "%s: %.2g %% of the sampled elevations are %s and are treated as missing",
            layer.raster.what,
            100 * beyond.size / heights.size,
            span,
        )


def check_ntl(layer: Layer) -> None:
    """Raises InputError where an NTL raster has no valid pixel, values that cannot be radiance, or the value its
    product fills gaps with undeclared."""
    known = _known_range(layer)
    what = layer.raster.what
    if known is None:
        if layer.nodata[0] is not None:
            raise InputError(
                f"{what} has no valid pixel: all are NaN, masked or the nodata value {layer.nodata[0]:g}; give a "
                "raster with data, or the right --ntl-nodata"
            )
        raise InputError(
            f"{what} has no valid pixel: all are NaN, infinite or masked; give a raster with data"
        )
    scale, offset = float(layer.scale[0]), float(layer.offset[0])
    for raw in known:
        if not _LEAST_RADIANCE <= raw * scale + offset <= _MOST_RADIANCE:
            raise InputError(
                f"{what} holds {raw:.6g}, after scaling by {_scaling(layer)} {raw * scale + offset:.4g}, which "
                f"cannot be radiance ({_LEAST_RADIANCE:g}…{_MOST_RADIANCE:g}); pass --ntl-nodata {raw:.9g} if it "
                "marks missing pixels, or the right --ntl-scale F[,OFFSET]"
            )
    _check_ntl_fill(layer)


def _known_range(layer: Layer) -> tuple[float, float] | None:
    """Least and largest raw value of pixels that are finite, not nodata and not masked; None where there are none.

    Where the type alone keeps values plausible, the first window with a valid pixel is enough.
    """
    raster, nodata = layer.raster, layer.nodata[0]
    dtype = np.dtype(raster.dtype)
    bounded = dtype.kind in "iu" and all(
        _LEAST_RADIANCE <= float(edge) * layer.scale[0] + layer.offset[0] <= _MOST_RADIANCE
        for edge in (np.iinfo(dtype).min, np.iinfo(dtype).max)
    )
    found: tuple[float, float] | None = None
    scanned = set(_scan_windows(layer))
    grid = raster.grid
    for window in split(Window(0, 0, grid.height, grid.width), _SCAN_SIDE):
        if found is not None and (bounded or window not in scanned):
            continue
        raw, mask = raster.read(window, layer.bands)
        # the pixels' own validity, before a scale that may overflow
        known = to_physical(raw, [0.0], [0.0], [nodata], mask)[1] != 0
        if not known.any():
            continue
        pixels = raw[0][known]
        low, high = float(pixels.min()), float(pixels.max())
        found = (low, high) if found is None else (min(low, found[0]), max(high, found[1]))
    return found


def _check_ntl_fill(layer: Layer) -> None:
    """Raises InputError where an integer NTL raster without nodata holds the value its product fills gaps
    with."""
    raster = layer.raster
    fill = {"uint16": 65535, "uint8": 255}.get(raster.dtype)
    if fill is None or layer.nodata[0] is not None:
        return
    largest = 0
    filled = False
    for window in _scan_windows(layer):
        raw, mask = raster.read(window, layer.bands)
        pixels = raw[0] if mask is None else raw[0][mask != 0]
        filled |= bool((pixels == fill).any())
        largest = max(largest, int(pixels[pixels != fill].max(initial=0)))
    if filled and raster.dtype == "uint16":
        raise InputError(
            f"{raster.what} holds 65535, Black Marble's fill value, but declares no nodata; "
            "pass --ntl-nodata 65535, and --ntl-scale 0.1 where the product's scale is not applied"
        )
    if filled and largest <= 63:
        raise InputError(
            f"{raster.what} holds 255 beside values of at most 63, which is how DMSP marks missing pixels, "
            "but declares no nodata; pass --ntl-nodata 255"
        )


def _scan_windows(layer: Layer) -> list[Window]:
    """The whole raster in row-aligned windows; where it is very large, a diagonal of them."""
    grid = layer.raster.grid
    windows = list(split(Window(0, 0, grid.height, grid.width), _SCAN_SIDE))
    stride = -(-grid.height * grid.width // _FULL_SCAN_PIXELS)
    return windows[::stride]
