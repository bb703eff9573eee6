"""Which daytime slot a wavelength belongs to, and where the metadata of a band say its wavelength."""

from __future__ import annotations

import re
from collections.abc import Mapping

_RANGES = {
    "coastal": (0.43, 0.455),
    "blue": (0.455, 0.52),
    "green": (0.53, 0.59),
    "red": (0.62, 0.68),
    "nir": (0.8, 0.9),
    "swir1": (1.55, 1.75),
    "swir2": (2.05, 2.35),
}
"""Micrometres, around the centres of Landsat's, Sentinel-2's and MODIS' bands; red edge (0.70 … 0.79), water vapour
(0.94), cirrus (1.38) and MODIS band 5 (1.24) lie between, thermal bands (from 10) beyond."""
_KEYS = frozenset({"wavelength", "central_wavelength_um"})
"""Of band metadata: ENVI and GDAL's Sentinel-2 driver; GDAL's IMAGERY domain."""
_IN_WORDS = re.compile(r"(\d+(?:\.\d+)?) ?(?:nm\b|nanomet|[uµμ]m\b|micromet)", re.IGNORECASE)
"""As in "B4, central wavelength 665 nm", "Band 4 (0.665 Micrometers)"."""
_NANOMETRES = 100.0
"""Larger numbers are nanometres: no optical band lies at 100 µm or at 100 nm."""


def band_wavelength(description: str, metadata: Mapping[str, str]) -> float | None:
    """Centre of a band in micrometres; None where neither its metadata nor its description say it."""
    told = [value for key, value in metadata.items() if key.lower() in _KEYS]
    match = _IN_WORDS.search(description)
    for text in (*told, *([match[1]] if match else [])):
        try:
            value = float(text)
        except ValueError:
            continue
        return value / 1000 if value > _NANOMETRES else value
    return None


def slots_by_wavelength(wavelengths: Mapping[int, float | None]) -> dict[str, int]:
    """Slot → band from band → micrometres; empty where two bands lie in the range of one slot."""
    found: dict[str, int] = {}
    for number, value in wavelengths.items():
        for slot, (low, high) in _RANGES.items():
            if value is not None and low <= value < high:
                if slot in found:
                    return {}
                found[slot] = number
    return found
