"""Which band of a daytime raster fills which slot: from the command line's text or the file's own names."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS

_log = logging.getLogger(__name__)

_ALIASES: dict[str, tuple[str, ...]] = {
    "coastal": ("coastal", "coastalaerosol", "aerosol", "ultrablue"),
    "blue": ("blue",),
    "green": ("green",),
    "red": ("red",),
    "nir": ("nir", "nearinfrared", "nir08", "nir1", "nirnarrow"),
    "swir1": ("swir1", "swir16", "shortwaveinfrared1"),
    "swir2": ("swir2", "swir22", "shortwaveinfrared2"),
}
"""Names by slot, lower case without punctuation, the preferred first: Sentinel-2 has both nir (B08) and nir08
(B8A)."""

_OLI = dict(zip(("1", "2", "3", "4", "5", "6", "7"), DMO_SLOTS, strict=True))
_TM = {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir1", "7": "swir2"}
_MSI = {"1": "coastal", "2": "blue", "3": "green", "4": "red", "8": "nir", "11": "swir1", "12": "swir2"}
_MODIS = {"1": "red", "2": "nir", "3": "blue", "4": "green", "6": "swir1", "7": "swir2"}
_NUMBERED = re.compile(r"(?:^|[^a-z0-9])(sr_b|tm_b|etm_b|sur_refl_b|b)0*(\d{1,2}a?)$")
_MEANINGLESS = re.compile(r"(?:band|layer|channel)?[ _.-]?\d*")


def parse_scale(text: str) -> tuple[float, float]:
    """`F` or `F,OFFSET` → (factor, offset): physical value = raw · factor + offset. Raises InputError."""
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in {1, 2} or not all(map(math.isfinite, values)) or values[0] == 0:
        raise InputError(f"scale {text!r} is not F or F,OFFSET with F ≠ 0; an example is 0.0000275,-0.2")
    return values[0], values[1] if len(values) == 2 else 0.0


def parse_bands(text: str) -> dict[str, int]:
    """`blue=1,green=2` → slot name to 1-based band number. Raises InputError."""
    bands: dict[str, int] = {}
    for part in text.split(","):
        slot, _, number = (piece.strip() for piece in part.partition("="))
        if slot not in DMO_SLOTS or not number.isascii() or not number.isdigit() or int(number) < 1:
            raise InputError(
                f"band assignment {part.strip()!r} is not SLOT=NUMBER; slots are {', '.join(DMO_SLOTS)}, "
                "numbers count from 1, and an example is blue=1,green=2,red=3,nir=4"
            )
        if slot in bands or int(number) in bands.values():
            raise InputError(f"band assignment {part.strip()!r} repeats a slot or a band; give each once")
        bands[slot] = int(number)
    return bands


def assign_bands(
    what: str, names: Sequence[str], numbers: Sequence[int], given: Mapping[str, int] | None
) -> dict[str, int]:
    """Slot name → 1-based band number, in slot order.

    what: the raster, for messages. names: one per file band, "" where it has none. numbers: the file's data
    bands. given: the user's assignment, which wins. Otherwise the names decide; seven bands whose names say
    nothing are taken in slot order, and the log says so. Raises InputError where that leaves the bands
    unknown.
    """
    if given is not None:
        for slot, number in given.items():
            if number not in numbers:
                raise InputError(
                    f"{what} has no data band {number} for {slot}; its bands are "
                    f"{_ranges(numbers)}: correct --dmo-bands"
                )
        return _in_order(given)
    named = {number: names[number - 1].strip().lower() for number in numbers}
    found = _by_common_name(what, named) or _by_number(named)
    if found:
        _log.info("%s: bands by name: %s", what, ", ".join(f"{s} = {n}" for s, n in _in_order(found).items()))
        return _in_order(found)
    if len(numbers) == len(DMO_SLOTS) and all(_MEANINGLESS.fullmatch(name) for name in named.values()):
        _log.warning("%s: seven bands without names, taken as %s", what, ", ".join(DMO_SLOTS))
        return dict(zip(DMO_SLOTS, numbers, strict=True))
    labels = ", ".join(name or "unnamed" for name in named.values())
    raise InputError(
        f"{what} does not say which its {len(numbers)} band{'s'[: len(numbers) > 1]} ({labels}) are; "
        "assign them, for example --dmo-bands blue=1,green=2,red=3,nir=4"
    )


def _by_common_name(what: str, named: Mapping[int, str]) -> dict[str, int]:
    plain = {number: re.sub(r"[^a-z0-9]", "", name) for number, name in named.items()}
    found: dict[str, int] = {}
    for slot, aliases in _ALIASES.items():
        for alias in aliases:
            numbers = [number for number, name in plain.items() if name == alias]
            if len(numbers) > 1:
                raise InputError(
                    f"{what} has {len(numbers)} bands named {alias} ({_ranges(numbers)}); "
                    f"say which one to use, for example --dmo-bands {slot}={numbers[0]}"
                )
            if numbers:
                found[slot] = numbers[0]
                break
    return found


def _by_number(named: Mapping[int, str]) -> dict[str, int]:
    """Names such as SR_B2, B08 or sur_refl_b01; empty where the sensor is not clear from the set of
    numbers."""
    matches = {number: _NUMBERED.search(name) for number, name in named.items()}
    labels = {number: (match[1], match[2]) for number, match in matches.items() if match}
    if len({prefix for prefix, _ in labels.values()}) != 1 or len(set(labels.values())) != len(labels):
        return {}
    prefix = next(iter(labels.values()))[0]
    table = _sensor(prefix, {label for _, label in labels.values()})
    return {table[label]: number for number, (_, label) in labels.items() if label in table}


def _sensor(prefix: str, numbers: set[str]) -> Mapping[str, str]:
    """Slot by band number for the sensor that these numbers belong to; empty where several would fit."""
    if prefix == "sur_refl_b":
        return _MODIS
    if prefix in {"tm_b", "etm_b"}:
        return _TM
    oli = {"5", "6", "7"} <= numbers
    if numbers & {"8a", "12"} or (numbers & {"8", "11"} and not oli):
        return _MSI
    if {"5", "7"} <= numbers and not oli:
        return _TM
    if prefix == "sr_b" or (oli and (numbers & {"10"} or not numbers & {"8", "11"})):
        return _OLI
    # Bands 1–4 are coastal, blue, green, red on both; from 5 on they differ.
    return _OLI if numbers <= {"1", "2", "3", "4"} else {}


def _in_order(bands: Mapping[str, int]) -> dict[str, int]:
    return {slot: bands[slot] for slot in DMO_SLOTS if slot in bands}


def _ranges(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
