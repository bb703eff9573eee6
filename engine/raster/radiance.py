"""Are the values of a nighttime-light raster radiance in nW/cm²/sr, or DMSP's digital numbers? Weighs the evidence and
names the likely remedy."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention, of_role
from deeplight.engine.raster.fills import BLACK_MARBLE_FILL, DMSP_FILL, DMSP_MOST, Fill, find_fill
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.names import LIGHTS, is_coverage
from deeplight.engine.raster.plausibility import scaling_text
from deeplight.engine.raster.remedies import copied
from deeplight.engine.raster.survey import Survey, survey
from deeplight.engine.raster.units import (
    DN_UNIT,
    RADIANCE_UNIT,
    canonical,
    is_length,
    is_logarithm,
    other_quantity,
    radiance_factor,
)

_log = logging.getLogger(__name__)

_LEAST_RADIANCE, _MOST_RADIANCE = -100.0, 2e7
"""nW/cm²/sr, or DN. Noise of VIIRS reaches about −1.5; its day/night band ends at 0.02 W/cm²/sr. Undeclared fill
(−999, −9999, ±3.4e38) and a wrong scale lie beyond."""
_NOISE_P5 = -0.9
"""VIIRS' noise hardly ever reaches it, so no twentieth of a scene lies below: a logarithm, or another layer."""
_TINY_P99 = 5e-3
"""nW/cm²/sr. The noise of VIIRS is ten times as much: even the dark ocean has brighter pixels."""
_TINY_LARGEST = 1.0
"""W/m²/sr: flares and fires, 1e4 nW/cm²/sr and more, reach 0.1 and more."""
_WATTS_PER_CM2_P99 = 2e-6
"""Below it W/cm²/sr (lit pixels have 1e-9 … 5e-7), from it on W/m²/sr (1e-5 … 5e-3)."""
_BRIGHT_MEDIAN = 250.0
"""nW/cm²/sr. Half of New York's, Chicago's or Los Angeles' pixels are below 40 … 125; without Black Marble's factor of
0.1, below 380 … 1230."""
_SUSPECT_P1, _SUSPECT_SPREAD = 20.0, 5.0
_TERRAIN_P1, _TERRAIN_SPREAD = 60.0, 3.5
"""nW/cm²/sr, and 99th over 1st percentile. Where no pixel is dark and all are within such a factor, it is likely, or
clearly, terrain: of Chicago's core the factor is 6.7, of Luxembourg's elevations 2.9, of a plain's in Pará 2.4."""
_LARGEST_LOG, _LOG_SPREAD = 13.0, 8.0
"""ln(340573), the largest radiance in EOG's composites, is 12.7. 99th percentile over median: of radiance it is larger
but in suburbs."""
_ENOUGH, _PLENTY = 64, 1000
"""Pixels from which percentiles say something, and from which they carry a refusal."""

_ELEVATION = re.compile(r"(?<![a-z])(?:dem|dsm|dtm|srtm|elevation|altitude|topo|height)(?![a-z])")
INDEX_NAME = re.compile(r"(?<![a-z])(?:ndvi|evi2?|savi|ndwi|mndwi|ndbi)(?![a-z])")
"""In the lower-case name of a file or band: vegetation and water indices."""
_BLACK_MARBLE = re.compile(r"vnp46|vj[12]46|black_?marble|dnb_brdf|snow_free")


class NoLight(InputError):
    """A raster of lights has no valid pixel."""


@dataclass(frozen=True)
class Lights:
    """What a check has found out. digital: the values are digital numbers, of DMSP or of 8 bits. doubtful: a warning
    said that they may not be radiance."""

    digital: bool
    doubtful: bool


@dataclass(frozen=True)
class _Doubt:
    """A sentence without the raster's name. clear: enough for a refusal. impossible: worth a warning even where the
    user has said what the numbers are."""

    text: str
    clear: bool = False
    impossible: bool = False


def check_ntl(layer: Layer, unit: str = "", stated: bool = False, counted: str = "") -> Lights:
    """Raises NoLight where a raster of lights has no valid pixel, InputError where its values are clearly no radiance
    or hold an undeclared fill value; warns where either is likely.

    unit: that the file declares, or the user (stated), "" where none does. Where the user gave the scale or the unit,
    the values are believed to be what that says, and only the impossible is refused, or warned of. counted: the raster
    that says where lights were observed, for messages.
    """
    believed = layer.scale_given or stated
    if not believed:
        _check_coverage(layer)
    seen = survey(layer)
    if seen is None:
        raise NoLight(_no_valid_pixel(layer, counted))
    _check_range(layer, seen)
    raw, values, mask = layer.sample(Window(0, 0, *layer.raster.grid.shape))
    _check_fill(layer, seen, raw[0][mask != 0])
    _check_unit(layer, unit, stated)
    if _is_digital(layer, seen, unit):
        return Lights(digital=True, doubtful=False)
    doubts = [d for d in _doubts(layer, seen, values[0][mask != 0], unit) if d.impossible or not believed]
    if doubts:
        doubt = max(doubts, key=lambda d: d.clear)  # the first of the clearest
        if doubt.clear and not believed:
            raise InputError(f"{layer.raster.what} {doubt.text}")
        _log.warning("%s %s", layer.raster.what, doubt.text)
    return Lights(digital=False, doubtful=bool(doubts))


def name_of(layer: Layer) -> str:
    """What a raster is called, lower case: its file, the dataset in that, and the band's description."""
    raster = layer.raster
    file = "" if raster.path is None else raster.path.name
    return f"{file} {raster.name.rpartition('/')[2]} {raster.band_names[layer.bands[0] - 1]}".lower()


def _given(layer: Layer, what: str, value: object = "") -> str:
    """The parameter of a layer that says `what`, with its value where one is given, as text."""
    name = of_role(layer.raster.role, what)
    return f"`{name}={value}`" if value else f"`{name}`"


_SCALE = "F or (F, OFFSET)"


def _number(layer: Layer, value: float) -> str:
    """The shortest text that is this raw value in the file's type."""
    dtype = np.dtype(layer.raster.dtypes[layer.bands[0] - 1])
    texts = (f"{value:.{digits}g}" for digits in (6, 9))
    if dtype.kind == "f":
        return next((t for t in texts if dtype.type(t) == dtype.type(value)), f"{value:.17g}")
    return f"{value:.17g}"


def _no_valid_pixel(layer: Layer, counted: str) -> str:
    what = layer.raster.what
    if counted and survey(Layer(layer.raster, layer.bands, None, layer.nodata[0])) is not None:
        return (
            f"{counted} is above 0 at no pixel where {what} has a value, which says that no lights were observed; give "
            "the count or mask of these lights, or leave out `ntl_valid`"
        )
    if layer.nodata[0] is not None:
        return (
            f"{what} has no valid pixel: all are NaN, masked or the nodata value {layer.nodata[0]:g}; give a "
            f"raster with data, or the right {_given(layer, 'nodata')}"
        )
    return f"{what} has no valid pixel: all are NaN, infinite or masked; give a raster with data"


def _check_coverage(layer: Layer) -> None:
    """Counts of observations are of the order of lights, so their name is the evidence."""
    raster = layer.raster
    file = "" if raster.path is None else raster.path.name
    dataset = raster.name.rpartition(":")[2] if raster.driver in ("netCDF", "HDF5Image", "HDF4Image") else ""
    if is_coverage(file, f"{dataset.rpartition('/')[2]} {raster.band_names[layer.bands[0] - 1]}"):
        raise InputError(
            f"{raster.what} is called as a count of observations would be; give the lights with "
            f"`{of_role(layer.raster.role)}` and this count with `ntl_valid`, or if it holds lights {_stated(layer)}"
        )


def _check_range(layer: Layer, seen: Survey) -> None:
    scale, offset = float(layer.scale[0]), float(layer.offset[0])
    for raw in (seen.low.value, seen.high.value):
        if not _LEAST_RADIANCE <= raw * scale + offset <= _MOST_RADIANCE:
            raise InputError(
                f"{layer.raster.what} holds {raw:.6g}, after scaling by {scaling_text(layer)} "
                f"{raw * scale + offset:.4g}, which cannot be radiance ({_LEAST_RADIANCE:g}…{_MOST_RADIANCE:g}); "
                f"pass {_given(layer, 'nodata', _number(layer, raw))} if it marks missing pixels, or the right "
                f"{_given(layer, 'scale', _SCALE)}"
            )


def _check_fill(layer: Layer, seen: Survey, sample: NDArray[np.generic]) -> None:
    fill = find_fill(seen, sample, float(layer.scale[0]), float(layer.offset[0]))
    if fill is None:
        return
    text = _fill_text(layer, seen, fill)
    if fill.clear and not layer.nodata_given:
        raise InputError(text)
    _log.warning("%s", text)


def _fill_text(layer: Layer, seen: Survey, fill: Fill) -> str:
    value = _number(layer, fill.value)
    known = {BLACK_MARBLE_FILL: ", Black Marble's fill value,", DMSP_FILL: ", DMSP's fill value,"}
    product = known.get(fill.value, "")
    beside = "" if fill.nearest is None else f" beside values up to {fill.nearest:.6g}"
    if fill.nearest is not None and fill.value < 0:
        beside = f" beside values from {fill.nearest:.6g} on"
    remedy = f"pass {_given(layer, 'nodata', value)}"
    if seen.whole and fill.value == BLACK_MARBLE_FILL and not layer.scale_given:
        remedy += f", and {_given(layer, 'scale', 0.1)} where the product's scale is not applied"
    if layer.nodata_given:
        remedy = f"{_given(layer, 'nodata')} names another value, so this one counts as light"
    elif not fill.clear:
        remedy += " if it marks missing pixels"
    elif layer.nodata[0] is not None and math.isfinite(layer.nodata[0]):  # NaN is never data
        declared = f"{layer.nodata[0]:.9g}"
        remedy += (
            f", or where pixels of the declared {declared} are there too make one of both and give that: "
            f"{copied(layer.raster.name, 'one.tif', f'--nodata {value}', *_only_band(layer))}"
        )
    return (
        f"{layer.raster.what} holds {value}{product} {fill.count} times{beside} and does not declare it as nodata; "
        f"{remedy}"
    )


def _check_unit(layer: Layer, unit: str, stated: bool) -> None:
    """Refuses units that are known and another. The file's is about its own scale, the user's about any."""
    if not unit or (layer.scale_given and not stated):
        return
    what, factor = layer.raster.what, radiance_factor(unit)
    if factor is not None and factor != 1.0:
        scale, offset = float(layer.scale[0]) * factor, float(layer.offset[0]) * factor
        given = _power(scale) if offset == 0 else f"({_power(scale)}, {_power(offset)})"
        raise InputError(
            f"{what} is in {unit} and {RADIANCE_UNIT} is needed; pass {_given(layer, 'scale', given)}"
        )
    if is_logarithm(unit):
        raise InputError(
            f"{what} is in {unit}, a logarithm, and {RADIANCE_UNIT} is needed; {_no_logarithm(layer, unit)}"
        )
    other = other_quantity(unit)
    if other is not None:
        right = mention(**{of_role(layer.raster.role, "unit"): RADIANCE_UNIT})
        remedy = f"give nighttime lights, or if the file is wrong pass {right}"
        if stated:
            remedy = f"correct {_given(layer, 'unit')}"
        raise InputError(f"{what} is in {unit}, the unit of {other}, and {RADIANCE_UNIT} is needed; {remedy}")
    if is_length(unit):
        raise InputError(
            f"{what} is in {unit}, as elevations are, and {RADIANCE_UNIT} is needed; give nighttime lights"
        )


def _no_logarithm(layer: Layer, unit: str = "") -> str:
    """How to undo one: that of the unit, else log10."""
    plain = unit.strip().lower()
    kind = "db" if plain.startswith("db") else "ln" if plain.startswith("ln") else "log10"
    command = copied(layer.raster.name, "radiance.tif", f"--undo {kind}", *_only_band(layer))
    return f"undo it and give the result, for {'dB' if kind == 'db' else kind}: {command}"


def _only_band(layer: Layer) -> tuple[str, ...]:
    """The option of a copy that leaves the bands beside the lights out."""
    return (f"--band {layer.bands[0]}",) if layer.raster.count > 1 else ()


def _power(value: float) -> str:
    """1e9 rather than 1e+09."""
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].replace('+', '')}{m[2]}", f"{value:.9g}")


def _is_digital(layer: Layer, seen: Survey, unit: str) -> bool:
    """Digital numbers: declared, unscaled bytes (no radiance product uses them but DMSP does), or whole numbers 0 … 63
    on DMSP's pixels of 30″, or that reach 63, where DMSP saturates."""
    unscaled = (float(layer.scale[0]), float(layer.offset[0])) == (1.0, 0.0) and not layer.scale_given
    if canonical(unit) == DN_UNIT or (layer.raster.dtypes[layer.bands[0] - 1] == "uint8" and unscaled):
        return True
    if unit or not unscaled or not seen.whole or seen.low.value < 0 or seen.high.value > DMSP_MOST:
        return False
    grid = layer.raster.grid
    pixel = abs(grid.transform.a) * 3600 if grid.crs.is_geographic else 0.0
    return seen.varied and (seen.high.value == DMSP_MOST or abs(pixel - 30.0) < 0.3)


def _doubts(layer: Layer, seen: Survey, values: NDArray[np.float32], unit: str) -> Iterator[_Doubt]:
    """What speaks against radiance in nW/cm²/sr, from sampled values (n,) after scaling."""
    declared = canonical(unit) == RADIANCE_UNIT
    name = name_of(layer)
    yield from _names(layer, name)
    scale, offset = float(layer.scale[0]), float(layer.offset[0])
    least, largest = sorted(end.value * scale + offset for end in (seen.low, seen.high))
    if seen.pixels >= _ENOUGH and values.size:
        if largest < _TINY_LARGEST:
            yield from _too_small(layer, values[values > 0])
        low, p5, middle, high = (float(v) for v in np.percentile(values, [1, 5, 50, 99]))
        spread = f"1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}"
        if p5 < _NOISE_P5:
            log = low > -_LARGEST_LOG and high < _LARGEST_LOG
            yield _Doubt(
                f"cannot be radiance: one value in twenty is below {p5:.3g} ({spread})"
                + (f", as of a logarithm; {_no_logarithm(layer)}" if log else f"; {_stated(layer)}"),
                clear=True,
                impossible=True,
            )
        elif not declared:
            many = seen.pixels >= _PLENTY and least > 1
            yield from _other_layers(layer, (low, middle, high), largest, many)
        if middle > _BRIGHT_MEDIAN:
            yield _Doubt(
                f"has a median of {middle:.4g}, and no place is as bright in {RADIANCE_UNIT} over half its area; give "
                f"nighttime lights, and for Black Marble without its scale pass {_given(layer, 'scale', 0.1)}"
            )
    if seen.whole and seen.varied and (scale, offset) == (1.0, 0.0):
        remedy = f"for Black Marble pass {_given(layer, 'scale', 0.1)}"
        if seen.high.value <= DMSP_MOST:
            remedy += f", for DMSP {mention(**{of_role(layer.raster.role, 'unit'): 'DN'})}"
        yield _Doubt(
            f"holds whole numbers only, up to {seen.high.value:.6g}, as integers of a product are and radiance is not; "
            f"{remedy}, otherwise {_stated(layer)}",
            clear=_BLACK_MARBLE.search(name) is not None,
        )


def _stated(layer: Layer) -> str:
    return (
        f"pass {_given(layer, 'scale', _SCALE)} that gives {RADIANCE_UNIT} (1 if the values are that already)"
    )


def _names(layer: Layer, name: str) -> Iterator[_Doubt]:
    for pattern, kind in ((_ELEVATION, "elevations"), (INDEX_NAME, "a vegetation or water index")):
        if pattern.search(name) and not LIGHTS.search(name):
            yield _Doubt(
                f"is called as {kind} would be; give nighttime lights, or if it holds them {_stated(layer)}",
                clear=True,
            )


def _too_small(layer: Layer, lit: NDArray[np.float32]) -> Iterator[_Doubt]:
    if not lit.size:
        return
    bright = float(np.percentile(lit, 99))
    if bright < _TINY_P99:
        unit, factor = ("W/cm²/sr", 1e9) if bright < _WATTS_PER_CM2_P99 else ("W/m²/sr", 1e5)
        yield _Doubt(
            f"cannot be in {RADIANCE_UNIT}: 99 % of its values are below {bright:.3g}, less than noise; for {unit} "
            f"pass {_given(layer, 'scale', _power(factor * float(layer.scale[0])))}",
            clear=True,
            impossible=True,
        )


def _other_layers(
    layer: Layer, percentiles: tuple[float, float, float], largest: float, many: bool
) -> Iterator[_Doubt]:
    """Elevation, indices and logarithms have no dark background with few bright pixels, as lights have.

    percentiles: 1st, 50th, 99th. many: of many pixels, none of which is dark.
    """
    low, middle, high = percentiles
    spread = f"1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}"
    if low > _SUSPECT_P1 and low < high < _SUSPECT_SPREAD * low and many:
        yield _Doubt(
            f"looks like elevation: no pixel is dark ({spread}); give nighttime lights, or if it holds them "
            f"{_stated(layer)}",
            clear=low > _TERRAIN_P1 and high < _TERRAIN_SPREAD * low,
        )
    elif largest <= 1.0 and middle > 0.08 and high - low > 0.2 and 0.25 < (middle - low) / (high - low) < 0.8:
        yield _Doubt(
            f"looks like an index such as NDVI or a fraction: no pixel is above 1 ({spread}); give nighttime "
            f"lights, or if it holds them {_stated(layer)}"
        )
    elif 1.5 < largest <= _LARGEST_LOG and middle > 0.6 and high < _LOG_SPREAD * middle:
        yield _Doubt(
            f"looks like a logarithm: no pixel is above {largest:.3g} ({spread}); {_no_logarithm(layer)}, or if it "
            f"is radiance {_stated(layer)}"
        )
