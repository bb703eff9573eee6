"""What a model expects and gives: names, channels, units. Standard library only; every other module agrees on this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

SCALE = 8
"""HR pixels per LR pixel along each axis. The output grid is the NTL grid subdivided exactly this often."""

DMO_SLOTS: tuple[str, ...] = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
"""The seven daytime band slots, in channel order (Landsat Collection 2 SR_B1 … SR_B7)."""


@dataclass(frozen=True)
class InputSpec:
    """One named network input.

    channels: size of axis 1.
    hr: True for the HR grid (8h, 8w), False for the LR grid (h, w), None for a per-sample vector (no space).
    """

    name: str
    channels: int
    hr: bool | None


INPUTS: tuple[InputSpec, ...] = (
    InputSpec("ntl", 1, hr=False),
    InputSpec("ntl_valid", 1, hr=False),
    InputSpec("dmo", 7, hr=True),
    InputSpec("dmo_valid", 1, hr=True),
    InputSpec("dmo_bands", 7, hr=None),
    InputSpec("dem", 1, hr=True),
    InputSpec("dem_valid", 1, hr=True),
    InputSpec("psf", 2, hr=None),
    InputSpec("limits", 2, hr=None),
)
"""Network inputs, float32, NCHW, physical units; masks are 1 where valid, 0 elsewhere; invalid pixels hold 0.

psf: FWHM in LR pixels, along rows (y) and columns (x), of the blur before the 8 × 8 area mean; negative: unknown.
limits: level at which the NTL saturates and standard deviation of its noise, in its unit; negative: unknown.
"""

OUTPUTS: tuple[InputSpec, ...] = (
    InputSpec("ntl_hr", 1, hr=True),
    InputSpec("isp", 1, hr=True),
    InputSpec("offset", 2, hr=False),
    InputSpec("interval", 2, hr=True),
)
"""Network outputs: radiance in the input's unit (≥ 0), impervious probability, offset (x, y) in LR pixels, and the ends
(low, high) of an interval that holds the true radiance of 90 % of the pixels."""

LIGHTS_ALONE = ("ntl", "ntl_valid", "psf", "limits")
"""Inputs that say something where no pixel has daytime bands or elevation."""
OF_LIGHTS_ALONE = ("ntl_hr", "isp", "interval")
"""Outputs that exist then; there is no offset of layers that are missing."""


OFFSET = next(spec for spec in OUTPUTS if spec.name == "offset")
"""The output that can be an input, too: where it is given, it stands in place of the network's own estimate."""

SUGGESTED = InputSpec("suggested", 1, hr=False)
"""Lights that the layers suggest, from which the offset is estimated: where dates share layers, an input, too."""

FEATURES = InputSpec("features", len(DMO_SLOTS) + 3, hr=True)
ALIGNED = InputSpec("aligned", FEATURES.channels, hr=True)
"""Normalised daytime bands, their mask, elevation and its mask, and the same moved by the offset: what the alignment of
a network is given and what it makes, for runtimes beside which the engine aligns."""


class Quality(IntFlag):
    """Flags of an HR pixel in the quality band; docs/nodata.md says when each is set."""

    NTL_FILLED_NEAR = 1
    DMO_MISSING = 2
    DEM_MISSING = 4
    SATURATED_LR = 8
    EXTRAPOLATED_OFFSET = 16


def input_shape(spec: InputSpec, batch: int, h: int, w: int) -> tuple[int, ...]:
    """Shape of one input or output for `batch` tiles of h × w LR pixels."""
    if spec.hr is None:
        return (batch, spec.channels)
    f = SCALE if spec.hr else 1
    return (batch, spec.channels, h * f, w * f)
