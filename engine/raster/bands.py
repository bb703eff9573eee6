"""Which band of a daytime raster fills which slot: from the command line's text, or from the file where it decides."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.wording import mention
from deeplight.engine.raster.sensors import delivered, is_thermal, read_numbers
from deeplight.engine.raster.wavelengths import slots_by_wavelength

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

_COUNTED = re.compile(r"(?:[Bb]and|[Ll]ayer|[Cc]hannel|b)?[ _.-]?(\d*)")
"""Names that programs give where there is none: "", "Band 1", "b1" (capital B1 is a sensor's)."""
_MOST_NAMES = 16


class FactorOnly(tuple[float, float]):
    """A scale (factor, 0) of which only the factor was said: whether the offset is 0 may be asked. A plain
    (factor, 0) says both."""


def parse_scale(text: str) -> tuple[float, float]:
    """`F` or `F,OFFSET` → (factor, offset): physical value = raw · factor + offset; FactorOnly for the first. Raises
    InputError."""
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in {1, 2} or not all(map(math.isfinite, values)) or values[0] == 0:
        raise InputError(f"scale {text!r} is not F or F,OFFSET with F ≠ 0; an example is 0.0000275,-0.2")
    return (values[0], values[1]) if len(values) == 2 else FactorOnly((values[0], 0.0))


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


def parse_band_file(text: str) -> tuple[str, str]:
    """`blue=B2.tif` → slot and file. Raises InputError."""
    slot, _, name = text.partition("=")
    if slot not in DMO_SLOTS or not name:
        raise InputError(
            f"{text!r} is not SLOT=FILE; slots are {', '.join(DMO_SLOTS)}, and an example is blue=B2.tif"
        )
    return slot, name


def band_files(pairs: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """Slot → file of all that `parse_band_file` gave, in slot order; None without any. Raises InputError where a slot
    is repeated."""
    found: dict[str, str] = {}
    for slot, name in pairs:
        if slot in found:
            raise InputError(f"`dmo[slot]` gives {slot} twice, {found[slot]} and {name}: give each slot once")
        found[slot] = name
    return {slot: found[slot] for slot in DMO_SLOTS if slot in found} or None


def assign_bands(
    what: str,
    names: Sequence[str],
    numbers: Sequence[int],
    given: Mapping[str, int] | None,
    file: str = "",
    wavelengths: Sequence[float | None] = (),
) -> dict[str, int]:
    """Slot name → 1-based band number, in slot order.

    what: the raster, for messages. names: one per file band, "" where it has none. numbers: the file's data
    bands. given: the user's assignment, which wins, except that a thermal band is no reflectance. file: the file's name
    without folders. wavelengths: one per file band in micrometres, where known. Raises InputError, with the assignment
    for every sensor that fits, where that leaves the bands unknown.
    """
    named = _named(names, numbers, file)
    if given is not None:
        _check_given(what, given, named, file)
        return _in_order(given)
    if found := find_bands(what, names, numbers, file, wavelengths):
        return found
    labels = [names[number - 1].strip() or "unnamed" for number in numbers]
    shown = ", ".join(labels[:_MOST_NAMES]) + (", …" if len(labels) > _MOST_NAMES else "")
    raise InputError(
        f"{what} does not say what its {f'{len(numbers)} bands are' if numbers[1:] else 'band is'} ({shown}): "
        f"{_proposals(names, numbers, named, file)}"
    )


def find_bands(
    what: str,
    names: Sequence[str],
    numbers: Sequence[int],
    file: str = "",
    wavelengths: Sequence[float | None] = (),
) -> dict[str, int]:
    """What the file itself says, as for `assign_bands`: plain words, wavelengths, or numbers that mean the same on
    every sensor that has them; empty where nothing decides."""
    named = _named(names, numbers, file)
    known = {number: wavelengths[number - 1] for number in numbers} if wavelengths else {}
    found = _by_common_name(what, named) or slots_by_wavelength(known)
    if not found and (len(numbers) == 1 or not _only_counted(names, numbers)):
        likely = read_numbers(named, file)
        meanings = [sensor.assign(likely.numbers) for sensor in likely.likely]
        if meanings and all(meaning == meanings[0] for meaning in meanings):
            found = meanings[0]
    if found := _in_order(found):
        _log.info("%s: bands as the file says: %s", what, ", ".join(f"{s} = {n}" for s, n in found.items()))
    return found


def _named(names: Sequence[str], numbers: Sequence[int], file: str) -> dict[int, str]:
    """File band → name in lower case; a single band without a name has the file's."""
    named = {number: names[number - 1].strip().lower() for number in numbers}
    if len(named) == 1 and _only_counted(names, numbers):
        return dict.fromkeys(named, Path(file).stem.lower())
    return named


def _only_counted(names: Sequence[str], numbers: Sequence[int]) -> bool:
    """Whether the names of bands say no more than their places in the file."""
    matches = [(number, _COUNTED.fullmatch(names[number - 1].strip())) for number in numbers]
    return all(match is not None and match[1] in {"", str(number)} for number, match in matches)


def _check_given(what: str, given: Mapping[str, int], named: Mapping[int, str], file: str) -> None:
    """Raises InputError for a band that the file does not have, and for one that cannot be reflectance."""
    numbered = read_numbers(named, file)
    for slot, number in given.items():
        if number not in named:
            raise InputError(
                f"{what} has no data band {number} for {slot}; its bands are {_ranges(named)}: correct `dmo_bands`"
            )
        if is_thermal(named[number], number, numbered):
            raise InputError(
                f"{what}: band {number} ({named[number]}), given for {slot}, is thermal, and daytime bands hold "
                "reflectance: leave it out"
            )


def _proposals(names: Sequence[str], numbers: Sequence[int], named: Mapping[int, str], file: str) -> str:
    """What to do: the assignment for every sensor that fits."""
    numbered = read_numbers(named, file)
    fitting = [(s, s.assign(numbered.numbers)) for s in numbered.fitting]
    if _only_counted(names, numbers) and len(numbers) > 1:
        fitting = delivered(len(numbers), file)
    titles: dict[str, list[str]] = {}
    for sensor, bands in fitting:
        if bands:
            titles.setdefault(mention(dmo_bands=_in_order(bands)), []).append(sensor.title)
    if not titles:
        return f"assign them, for example {mention(dmo_bands={'blue': 1, 'green': 2, 'red': 3, 'nir': 4})}"
    lines = [f"{line} for {' and '.join(who)}" for line, who in titles.items()]
    return f"pass {', '.join(lines[:-1])}{' or ' if lines[:-1] else ''}{lines[-1]}"


def _by_common_name(what: str, named: Mapping[int, str]) -> dict[str, int]:
    plain = {number: re.sub(r"[^a-z0-9]", "", name) for number, name in named.items()}
    found: dict[str, int] = {}
    for slot, aliases in _ALIASES.items():
        for alias in aliases:
            numbers = [number for number, name in plain.items() if name == alias]
            if len(numbers) > 1:
                raise InputError(
                    f"{what} has {len(numbers)} bands named {alias} ({_ranges(numbers)}); "
                    f"say which one to use, for example {mention(dmo_bands={slot: numbers[0]})}"
                )
            if numbers:
                found[slot] = numbers[0]
                break
    return found


def _in_order(bands: Mapping[str, int]) -> dict[str, int]:
    return {slot: bands[slot] for slot in DMO_SLOTS if slot in bands}


def _ranges(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
