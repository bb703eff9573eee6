"""Are a layer's values what it says they are? Looks at pixels, and names the likely remedy."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.layers import AuxLayer, Layer
from deeplight.engine.raster.remedies import scaled_copy

_log = logging.getLogger(__name__)

_MAX_P99 = 2.0
"""Clouds, snow and glint reach 1.2–1.6; digital numbers and percent start far above."""
_MAX_MEDIAN = 1.2
"""No scene is brighter than white over half its area."""
_MIN_P1 = -0.5
"""Over-corrected dark pixels reach −0.2 (the floor of Landsat's integer range); lower is a wrong offset."""
_TINY_P99 = 5e-4
"""Even open water reflects more somewhere: this is a scale applied twice (0.3 · 0.0001 = 3e-5)."""

_REFLECTANCE_STEP = 1e-4
_ADDED = 1000
"""What ESA adds to Sentinel-2's digital numbers since processing baseline 04.00 (January 2022), so that dark pixels may
fall below zero reflectance."""
_LEAST_PERCENTILE = 0.1
"""It was 28 … 198 in five real scenes with the scale 1e-4, and 1137 in one with 1000 added. A few dark or damaged
pixels do not hide that, as they would hide the least value."""

REFLECTANCES = -0.4, 3.0
"""Values of pixels outside are missing: undeclared fill is beyond (−9999 is −1.0 with the scale 1e-4, −0.47 with
Landsat's), and nothing on the ground."""
_FILLS = -9999, -28672, -32768, -999, 32767, 65535
"""Raw values that products use for missing pixels (HLS, MODIS, others); they say nothing about the scale."""
_SEVERAL = 9
"""Pixels with the same negative number in every band: too many for chance."""
_NEGATIVE = -0.01
_MUCH_NEGATIVE, _TOO_NEGATIVE = 0.02, 0.1
"""Shares of the values. At most 0.4 % of thirteen real Landsat and Sentinel-2 scenes are below; with an offset of −0.1
that the data lack it is 27 … 49 %."""
_KELVIN = 180.0, 350.0
"""Between the coldest cloud tops and the hottest ground."""

_SCALE = re.compile(r"`dmo_scale=\(?([-+.\d]+)(?:, ([-+.\d]+))?")
_OFFSET_CHOICE = (
    "pass `dmo_scale=(0.0001, -0.1)` where 1000 is added, or `dmo_scale=(0.0001, 0)` where nothing is"
)


def check_reflectance(layer: AuxLayer, others: Sequence[AuxLayer] = ()) -> None:
    """Raises InputError where the sampled values cannot be reflectance (0 … 1); logs pixels that look like fill, and
    which share layer.limits makes missing. others: files with daytime bands beside it, for the remedy."""
    raw, values, mask = layer.sample(layer.overlap.window)
    known = mask != 0
    if not known.any():
        _log.warning("%s: no valid pixel among those sampled", layer.raster.what)
        return
    fill = known & np.isin(raw, _FILLS).any(axis=0)
    judged = known & ~fill
    _check_fill(layer, raw[:, fill], values[:, fill])
    if not judged.any():
        _log.warning("%s: all sampled pixels hold fill, such as %g", layer.raster.what, raw[:, fill].flat[0])
        return
    low, middle, high = (float(v) for v in np.percentile(values[:, judged], [1, 50, 99]))
    if high > _MAX_P99 or middle > _MAX_MEDIAN or low < _MIN_P1 or 0 < high < _TINY_P99:
        raise InputError(
            f"{layer.raster.what} cannot be reflectance after scaling by {scaling_text(layer)} "
            f"(1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}; expected within 0…1); "
            + (_kelvin(layer, values[:, judged]) or _for_one_file(_remedy(raw[:, judged]), layer, others))
        )
    _check_below_zero(layer, values[:, judged & raw.any(axis=0)])
    _mention_beyond(layer, raw[:, known], values[:, known])
    empty = float(np.mean(~raw[:, known].any(axis=0)))
    if empty > 0.01:
        _log.warning(
            "%s: %.0f %% of the sampled pixels are 0 in every band; if that is fill, pass `dmo_nodata=0`",
            layer.raster.what,
            100 * empty,
        )


def _check_fill(layer: AuxLayer, raw: NDArray[Any], values: Floats) -> None:
    """Fill that the scale makes a number that could be reflectance. raw, values: (C, N) of pixels with fill."""
    assert layer.limits is not None
    for number in (n for n in _FILLS if n < 0):
        same = (raw == number).all(axis=0)
        if np.count_nonzero(same) >= _SEVERAL and (values[:, same] > layer.limits[0]).all():
            raise InputError(
                f"{layer.raster.what} holds {number} in every daytime band of {np.count_nonzero(same)} sampled pixels, "
                f"as fill, and does not declare it as nodata; pass `dmo_nodata={number}`"
            )


def _kelvin(layer: AuxLayer, values: Floats) -> str:
    """What to do with bands that are temperatures; "" where none is, or where they may be digital numbers. values:
    (C, N)."""
    low, high = np.percentile(values, [1, 99], axis=1)
    fractions = layer.scale != 1 if (values == np.rint(values)).all() else True
    warm = (low > _KELVIN[0]) & (high < _KELVIN[1]) & fractions
    if not warm.any():
        return ""
    bands = ", ".join(str(band) for band, hot in zip(layer.bands, warm, strict=True) if hot)
    return (
        f"values of the size of those in band {bands} are temperatures in kelvin, and daytime bands hold reflectance: "
        "leave such a band out"
    )


def _check_below_zero(layer: AuxLayer, values: Floats) -> None:
    """An offset below zero on data that lack it. values: (C, N)."""
    share = float(np.mean(values < _NEGATIVE)) if values.size else 0.0
    if share <= _MUCH_NEGATIVE:
        return
    text = (
        f"{layer.raster.what}: {100 * share:.2g} % of the sampled reflectances are below {_NEGATIVE:g} after scaling "
        f"by {scaling_text(layer)}"
    )
    factor = f"{layer.scale[0]:.9g}"
    remedy = "pass the right scale with `dmo_scale=F or (F, OFFSET)`"
    if (layer.offset < 0).any():
        remedy = f"if the offset is not in these data, pass `dmo_scale=({factor}, 0)`"
    if share > _TOO_NEGATIVE:
        raise InputError(f"{text}, and nothing is darker than black; {remedy}")
    _log.warning("%s; %s", text, remedy)


def _mention_beyond(layer: AuxLayer, raw: NDArray[Any], values: Floats) -> None:
    """Tells which share the limits make missing. raw, values: (C, N) of valid pixels."""
    assert layer.limits is not None
    low, high = layer.limits
    beyond = (values < low) | (values > high)
    if not beyond.any():
        return
    _log.warning(
        "%s: %.2g %% of the sampled pixels are outside %g…%g in reflectance (such as raw %.6g) and are treated as "
        "missing; if that number marks missing pixels, pass `dmo_nodata=%.6g`",
        layer.raster.what,
        100 * beyond.any(axis=0).mean(),
        low,
        high,
        raw[beyond][0],
        raw[beyond][0],
    )


def check_offset(layers: Sequence[AuxLayer], others: Sequence[AuxLayer] = ()) -> None:
    """Raises InputError where daytime bands with the scale 1e-4 and no offset hold values as if 1000 were added.

    layers: the files of the daytime bands, judged together: near infrared alone is rarely dark. others: of
    which the offset is known, for the remedy.
    """
    scaled = [
        layer
        for layer in layers
        if np.allclose(layer.scale, _REFLECTANCE_STEP, rtol=1e-6, atol=0) and not layer.offset.any()
    ]
    samples = [layer.sample(layer.overlap.window) for layer in scaled]
    raw = [values[:, mask != 0].astype(np.float64).reshape(-1) for values, _, mask in samples]
    if not raw or not sum(values.size for values in raw):
        return
    low = float(np.percentile(np.concatenate(raw), _LEAST_PERCENTILE))
    if low >= _ADDED:
        raise InputError(
            f"{', '.join(layer.raster.what for layer in scaled)} with the scale 0.0001: the values begin at "
            f"{low:.6g} ({_LEAST_PERCENTILE:g} percentile), as where 1000 is added, which Sentinel-2 products since "
            f"2022 do: {_for_one_file(_OFFSET_CHOICE, scaled[0], others)}"
        )


def _for_one_file(remedy: str, layer: AuxLayer, others: Sequence[AuxLayer]) -> str:
    """A remedy by `dmo_scale`, which holds for all files, where others have a scale of their own that is right."""
    other = next(
        (o for o in others if not o.scale_given and scaling_text(o) not in ("1,0", scaling_text(layer))), None
    )
    found = _SCALE.search(remedy)
    if other is None or found is None:
        return remedy
    copy = scaled_copy(layer.raster.name, "scaled.tif", float(found[1]), float(found[2] or 0))
    return (
        f"{remedy}; this would replace the scale {scaling_text(other)} of {other.raster.what} too, so write a copy "
        f"with the right scale and give that: {copy}"
    )


def scaling_text(layer: Layer) -> str:
    """The scale and offset in force, for messages."""
    pairs = sorted(set(zip(layer.scale.tolist(), layer.offset.tolist(), strict=True)))
    return " and ".join(f"{scale:g},{offset:g}" for scale, offset in pairs)


def _remedy(raw: NDArray[Any]) -> str:
    """The scale that sensors with such raw values (C, N) use, as an instruction."""
    low, middle, high = (float(v) for v in np.percentile(raw.astype(np.float64), [1, 50, 99]))
    whole = raw.dtype.kind in "iu" or bool((raw == np.floor(raw)).all())
    if low >= 0 and high <= 1.6:
        return "the raw values are reflectance already: pass `dmo_scale=1`"
    if whole and low >= 0 and high <= 255:
        return "for 8-bit values pass `dmo_scale=0.003922`"
    if low >= 0 and high <= 110:
        return "for percent pass `dmo_scale=0.01`"
    if low >= 5000 and middle >= 7000 and high <= 65535:
        return "for Landsat Collection 2 level 2 pass `dmo_scale=(0.0000275, -0.2)`"
    if low >= -3000 and high <= 25000:
        if np.percentile(raw, _LEAST_PERCENTILE) >= _ADDED:
            return f"for Sentinel-2-like digital numbers, to which products since 2022 add 1000, {_OFFSET_CHOICE}"
        warm = ", or if it is a temperature in kelvin leave the band out"
        or_kelvin = warm if low > _KELVIN[0] and high < _KELVIN[1] else ""
        return f"for Sentinel-2-like digital numbers pass `dmo_scale=0.0001`{or_kelvin}"
    return "pass `dmo_scale=F or (F, OFFSET)` such that raw · F + OFFSET is reflectance"
