"""The sensors whose daytime bands carry numbers, and which of them a set of numbers can belong to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from deeplight.engine.core.spec import DMO_SLOTS

_NUMBERED = re.compile(r"(?:^|[^a-z0-9])(sr_b|st_b|tm_b|etm_b|sur_refl_b|b)0*(\d{1,2}a?)(?:_[126]0m)?$")
"""The end of a band's or a file's name, as in SR_B2, LC09_SR_B2, B08, sur_refl_b01, T31UFQ_20240824T104031_B02_10m."""
_THERMAL = re.compile(
    r"thermal|temperature|(?:^|[^a-z0-9])lst(?![a-z])|"
    r"(?:^|[^a-z0-9])(?:st_b\d+|b0?6_vcid_[12]|tirs?\d?(?:_b\d+)?|lwir\d?)$"
)


@dataclass(frozen=True)
class SensorBands:
    """What the numbers of a sensor's bands mean.

    title: for messages. slots: slot by band label, in lower case without leading zeros; of two labels with one slot the
    first is taken that is there. labels: those that exist, by what stands before the number. thermal: labels of bands
    that measure temperature. deliveries: labels of the bands that come together as one product, in its order.
    products: how the names of its products begin.
    """

    title: str
    slots: Mapping[str, str]
    labels: Mapping[str, frozenset[str]]
    thermal: frozenset[str]
    deliveries: tuple[tuple[str, ...], ...]
    products: re.Pattern[str]

    def assign(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """Slot → band number from label → band number."""
        found: dict[str, int] = {}
        for label, slot in self.slots.items():
            if label in numbers:
                found.setdefault(slot, numbers[label])
        return found


def _labels(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _products(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9])(?:{text})", re.IGNORECASE)


_SEVEN = _labels("1 2 3 4 5 6 7")
_ALL_MSI = _labels("1 2 3 4 5 6 7 8 8a 9 10 11 12")
_WITHOUT_CIRRUS = tuple(label for label in _ALL_MSI if label != "10")

SENSORS = (
    SensorBands(
        "Landsat 8/9",
        dict(zip(_SEVEN, DMO_SLOTS, strict=True)),
        {"sr_b": frozenset(_SEVEN), "b": frozenset(_labels("1 2 3 4 5 6 7 8 9 10 11"))},
        frozenset({"10", "11"}),
        # level 2; level 1; HLS L30 without and with its thermal bands
        (_SEVEN, _labels("1 2 3 4 5 6 7 8 9 10 11"), (*_SEVEN, "9"), (*_SEVEN, "9", "10", "11")),
        _products(r"l[co]0?[89](?=[_\d])|hls\.l30|st_b10\b"),
    ),
    SensorBands(
        "Landsat 4–7",
        {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir1", "7": "swir2"},
        {
            "sr_b": frozenset(_labels("1 2 3 4 5 7")),
            "tm_b": frozenset(_SEVEN),
            "etm_b": frozenset(_labels("1 2 3 4 5 6 7 8")),
            "b": frozenset(_labels("1 2 3 4 5 6 7 8")),
        },
        frozenset({"6"}),
        (_labels("1 2 3 4 5 7"), _SEVEN),
        _products(r"l[te]0?[457](?=[_\d])|st_b6\b"),
    ),
    SensorBands(
        "Sentinel-2",
        {
            "1": "coastal",
            "2": "blue",
            "3": "green",
            "4": "red",
            "8": "nir",
            "8a": "nir",
            "11": "swir1",
            "12": "swir2",
        },
        {"b": frozenset(_ALL_MSI)},
        frozenset(),
        # the bands of 10 m; with SWIR; of 10 and 20 m; level 2; level 1
        (
            _labels("2 3 4 8"),
            _labels("2 3 4 8 11 12"),
            _labels("2 3 4 5 6 7 8 8a 11 12"),
            _WITHOUT_CIRRUS,
            _ALL_MSI,
        ),
        _products(r"s2[a-d]_|t\d\d[a-z]{3}_\d{8}t\d{6}|hls\.s30"),
    ),
    SensorBands(
        "MODIS",
        {"1": "red", "2": "nir", "3": "blue", "4": "green", "6": "swir1", "7": "swir2"},
        {"sur_refl_b": frozenset(_SEVEN), "b": frozenset(_SEVEN)},
        frozenset(),
        (_SEVEN,),
        _products(r"m[oyc]d(?:09|43)[a-z0-9]*\."),
    ),
)
"""Their labels overlap: B5 is near infrared on Landsat 8/9, short-wave infrared on Landsat 4–7 and MODIS, and red edge
on Sentinel-2; B10 and B11 are thermal on Landsat 8/9, B6 on Landsat 4–7. Zeros before a number tell nothing: ESA and
HLS write B02, and so do services for every sensor."""


@dataclass(frozen=True)
class Numbered:
    """Bands of a file that have numbers: file band by label, the sensors whose names they can be, and those of them
    that are left if a file that holds all bands of one product is taken as that product."""

    numbers: Mapping[str, int]
    fitting: tuple[SensorBands, ...]
    likely: tuple[SensorBands, ...]


def read_numbers(named: Mapping[int, str], file: str) -> Numbered:
    """What the names (file band → name, lower case) and the file's own name tell; names without a number are passed
    over. Nothing fits where they are of several kinds, or where a number stands twice."""
    nothing = Numbered({}, (), ())
    found = {number: match for number, name in named.items() if (match := _NUMBERED.search(name))}
    found = {number: match for number, match in found.items() if match[1] != "st_b"}
    numbers = {match[2]: number for number, match in found.items()}
    prefixes = {match[1] for match in found.values()}
    if len(prefixes) != 1 or len(numbers) != len(found):
        return nothing
    fitting = _fitting(prefixes.pop(), numbers.keys(), (file, *named.values()))
    complete = tuple(s for s in fitting if set(numbers) in map(set, s.deliveries))
    return Numbered(numbers, fitting, complete if len(complete) == 1 else fitting)


def _fitting(prefix: str, labels: Collection[str], texts: Iterable[str]) -> tuple[SensorBands, ...]:
    """Sensors that have all these bands, of those whose products the texts name where they name any."""
    told = [s for s in SENSORS if any(s.products.search(text) for text in texts)]
    return tuple(s for s in told or SENSORS if set(labels) <= s.labels.get(prefix, frozenset()))


def delivered(count: int, file: str) -> list[tuple[SensorBands, dict[str, int]]]:
    """Sensors with a product of so many bands and their slots, if the bands stand in the product's order."""
    told = [s for s in SENSORS if s.products.search(file)] or SENSORS
    return [
        (s, s.assign({label: place for place, label in enumerate(labels, 1)}))
        for s in told
        for labels in s.deliveries
        if len(labels) == count
    ]


def is_thermal(name: str, number: int, numbered: Numbered) -> bool:
    """Whether a band measures temperature: by its own name (lower case), or by its number on the only sensor that
    fits."""
    if _THERMAL.search(name):
        return True
    if len(numbered.fitting) != 1:
        return False
    return any(numbered.numbers.get(label) == number for label in numbered.fitting[0].thermal)
