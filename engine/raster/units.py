"""Units of nighttime lights: which of them are radiance, and how much of nW/cm²/sr one is."""

from __future__ import annotations

import re

RADIANCE_UNIT = "nW/cm²/sr"
DN_UNIT = "DN"

_PLAIN = str.maketrans("²⁻¹µμ", "2-1uu")
_NOISE = re.compile(r"[\s^*·.()_]")
_ANGLE = r"(?:/?(?:sr|ster|steradian)(?:-?1)?)?"
_RADIANCE = re.compile(rf"(nano|micro|milli|pico|n|u|m|p)?w(?:atts?)?{_ANGLE}/?(cm|m)-?2{_ANGLE}")
_PREFIXES = (("p", "pico", 1e-3), ("n", "nano", 1.0), ("u", "micro", 1e3), ("m", "milli", 1e6), ("", "", 1e9))
_NANOWATTS = {name: factor for short, long, factor in _PREFIXES for name in (short, long)}
_PER_CM2 = {"cm": 1.0, "m": 1e-4}
_DN = frozenset({"dn", "digitalnumber", "digitalnumbers", "counts"})
_LENGTHS = frozenset({"m", "metre", "meter", "metres", "meters", "km", "ft", "foot", "feet"})


def radiance_factor(text: str) -> float | None:
    """nW/cm²/sr in one of the unit `text`, as 1e5 for W/m²/sr; None where it is no radiance of a whole band.

    Spelt as products do: nW/cm2/sr, nWatts/(cm^2 sr), nanoWatts/sr/cm^2, W m-2 sr-1, and with superscripts.
    """
    found = _RADIANCE.fullmatch(_cleaned(text))
    if found is None:
        return None
    return _NANOWATTS[found[1] or ""] * _PER_CM2[found[2]]


def canonical(text: str) -> str:
    """The engine's spelling of a unit: RADIANCE_UNIT, DN_UNIT, or the text itself without blanks around it."""
    if radiance_factor(text) == 1.0:
        return RADIANCE_UNIT
    return DN_UNIT if _cleaned(text) in _DN else text.strip()


def is_length(text: str) -> bool:
    """Whether the unit is one of elevations."""
    return _cleaned(text) in _LENGTHS


def is_logarithm(text: str) -> bool:
    """Whether the unit says that values are logarithms."""
    plain = _cleaned(text)
    return plain == "db" or plain.startswith(("log", "ln"))


def shown(unit: str) -> str:
    """A unit for people, who are told where it is not known."""
    return unit or "unknown unit"


def _cleaned(text: str) -> str:
    return _NOISE.sub("", text.translate(_PLAIN).lower())
