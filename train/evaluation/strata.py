"""Dark, lit and saturated pixels, which are scored apart: a mean over a dark country says little about its towns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRATA = ("all", "unlit", "lit", "saturated")
"""Names of the strata, in the order in which arrays hold them. "all" holds every scored pixel."""


@dataclass(frozen=True)
class Strata:
    """Where the strata part, in the unit of the radiance.

    lit: a pixel is lit where the true radiance is above this. ceiling: the LR sensor is saturated from this value on.
    """

    lit: float = 1.0
    ceiling: float = math.inf

    def masks(
        self, truth: NDArray[np.float64], lr: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """truth, valid: (H, W). lr: (H, W), the LR value that lies over each pixel. Returns (4, H, W), see STRATA.

        A pixel under a saturated LR value is in that stratum alone, lit or not.
        """
        saturated = valid & (lr >= self.ceiling)
        rest = valid & ~saturated
        lit = rest & (truth > self.lit)
        return np.stack([valid, rest & ~lit, lit, saturated])
