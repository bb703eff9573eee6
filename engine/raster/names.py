"""What the names of files, datasets and bands say about nighttime lights: lights, or how often they were observed."""

from __future__ import annotations

import re
from collections.abc import Sequence

LIGHTS = re.compile(
    r"ntl|viirs|dnb|light|dmsp|vnp46|vj146|rade9|avg_rad|radiance|luojia|sdgsat", re.IGNORECASE
)
COVERAGE = re.compile(r"cf_?cvg|cvg|coverage|cf_?obs|num_obs|snow_free_num", re.IGNORECASE)
"""Of a band or a dataset in a file: the count of cloud-free observations (EOG, Black Marble)."""
_COVERAGE_FILE = re.compile(r"cf_?cvg|(?<![a-z])cvg(?![a-z])|cf_?obs|num_obs", re.IGNORECASE)
_LIGHTS_FILE = re.compile(r"avg_rad|rade9|average|median", re.IGNORECASE)
"""Of EOG's products, whose names begin in the same way for lights and counts."""


def is_coverage(file: str, band: str) -> bool:
    """Whether a band of a file is called as a count of observations; the band's own name, where it tells, decides."""
    if COVERAGE.search(band):
        return True
    if LIGHTS.search(band):
        return False
    return _COVERAGE_FILE.search(file) is not None and _LIGHTS_FILE.search(file) is None


def likeliest(role: str, names: Sequence[str]) -> int:
    """The place of the dataset that a role most likely means, by the datasets' short names; the first where they do
    not tell."""

    def rank(place: int) -> tuple[bool, bool]:
        counted = COVERAGE.search(names[place]) is not None
        if role == "NTL-valid":
            return not counted, False
        return role == "NTL" and counted, role == "NTL" and LIGHTS.search(names[place]) is None

    return min(range(len(names)), key=rank)
