"""Units of nighttime lights: which of them are radiance, and how much of nW/cm²/sr one is."""

from __future__ import annotations

import re

RADIANCE_UNIT = "nW/cm²/sr"
DN_UNIT = "DN"

_PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−–‐‑µμ×", "0123456789-----uux")
_NOISE = re.compile(r"[\s^*·⋅∙•.(){}_$\\]")
_NUMBER = re.compile(
    r"\s*(?:10\s*(?:\^|\*\*)?\s*\{?([+-]\d+)\}?|(\d+(?:\.\d*)?(?:e[+-]?\d+)?))\s*[x*·⋅∙]?(?=.*w)"
)
"""Before a unit: 10^-9, 10**-9, 10-9, 1e-9, 0.1."""
_WORDS = (
    (re.compile(r"centimet(?:er|re)s?"), "cm"),
    (re.compile(r"met(?:er|re)s?"), "m"),
    (re.compile(r"\bper\b"), "/"),
    (re.compile(r"sq(?:uared?)?[\s.]*(cm|m)\b"), r"\g<1>2"),
    (re.compile(r"\b(cm|m)\s*squared"), r"\g<1>2"),
)
"""Units in words, as symbols."""
_ANGLE = r"(?:[/-]?(?:sr|ster|steradians?)(?:-?1)?)?"
_RADIANCE = re.compile(rf"(nano|micro|milli|pico|n|u|m|p)?w(?:atts?)?{_ANGLE}/?(cm|m)-?2{_ANGLE}")
_PREFIXES = (("p", "pico", 1e-3), ("n", "nano", 1.0), ("u", "micro", 1e3), ("m", "milli", 1e6), ("", "", 1e9))
_NANOWATTS = {name: factor for short, long, factor in _PREFIXES for name in (short, long)}
_PER_CM2 = {"cm": 1.0, "m": 1e-4}
_DN = frozenset({"dn", "digitalnumber", "digitalnumbers", "counts"})
_LENGTHS = frozenset({"m", "cm", "km", "ft", "foot", "feet"})


_OTHERS = {
    "a temperature": ("k", "kelvin", "kelvins", "degc", "°c", "celsius", "degreescelsius", "degk"),
    "a share": ("%", "percent", "pct"),
    "luminance or illuminance": (
        "cd/m2",
        "cdm-2",
        "mcd/m2",
        "ucd/m2",
        "candela/m2",
        "nit",
        "nits",
        "lx",
        "lux",
        "mlx",
    ),
    "a magnitude": ("mag", "mag/arcsec2", "magarcsec-2", "mpsas"),
}
"""Units that files of other quantities have, by what they are."""


def radiance_factor(text: str) -> float | None:
    """nW/cm²/sr in one of the unit `text`, as 1e5 for W/m²/sr; None where it is no radiance of a whole band.

    Spelt as products do: nW/cm2/sr, nWatts/(cm^2 sr), nW cm^{-2} sr^{-1}, 1e-9 W/sq.cm/sr, with superscripts, or in
    words: nanowatts per square centimeter per steradian.
    """
    plain = text.translate(_PLAIN).lower()
    number, times = _NUMBER.match(plain), 1.0
    if number is not None:
        times, plain = float(number[2] or f"1e{number[1]}"), plain[number.end() :]
    found = _RADIANCE.fullmatch(_cleaned(plain))
    if found is None or not times:
        return None
    return float(f"{times * _NANOWATTS[found[1] or ''] * _PER_CM2[found[2]]:.12g}")


def canonical(text: str) -> str:
    """The engine's spelling of a unit: RADIANCE_UNIT, DN_UNIT, or the text itself without blanks around it."""
    if radiance_factor(text) == 1.0:
        return RADIANCE_UNIT
    return DN_UNIT if _cleaned(text) in _DN else text.strip()


def is_length(text: str) -> bool:
    """Whether the unit is one of elevations."""
    return _cleaned(text) in _LENGTHS


def other_quantity(text: str) -> str | None:
    """What else than radiance the unit is one of, as "a temperature"; None where that is not known."""
    plain = _cleaned(text)
    return next((what for what, units in _OTHERS.items() if plain in units), None)


def is_logarithm(text: str) -> bool:
    """Whether the unit says that values are logarithms."""
    plain = _cleaned(text)
    return plain == "db" or plain.startswith(("log", "ln"))


def shown(unit: str) -> str:
    """A unit for people, who are told where it is not known."""
    return unit or "unknown unit"


def _cleaned(text: str) -> str:
    """A unit without what only its spelling needs."""
    plain = text.translate(_PLAIN).lower()
    for word, symbol in _WORDS:
        plain = word.sub(symbol, plain)
    return _NOISE.sub("", plain)
