"""What a training or evaluation sample is, and where samples come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window


class ClipError(InputError):
    """A clip is missing, damaged or of another layout; the message names it. Exit status 2."""


@dataclass(frozen=True)
class Sample:
    """One window of one place, float32 NumPy arrays, axes (channel, y, x), physical units; invalid pixels hold 0.

    ntl (1, h, w), ntl_valid (1, h, w), dmo (7, 8h, 8w), dmo_valid (1, 8h, 8w), dmo_bands (7,), dem (1, 8h, 8w),
    dem_valid (1, 8h, 8w): as spec.INPUTS without the batch axis. ntl_hr, ntl_hr_valid, isp, isp_valid: (1, 8h, 8w);
    isp is the fraction 0 … 1 (isp_valid all 0 where there is no ISP). offset (2, h, w) in LR px (x, y), or None where
    the misregistration is not known. psf, limits (2,): as spec.INPUTS; a sensor that is known is one through which the
    LR NTL was made from the truth.
    """

    ntl: NDArray[np.float32]
    ntl_valid: NDArray[np.float32]
    dmo: NDArray[np.float32]
    dmo_valid: NDArray[np.float32]
    dmo_bands: NDArray[np.float32]
    dem: NDArray[np.float32]
    dem_valid: NDArray[np.float32]
    ntl_hr: NDArray[np.float32]
    ntl_hr_valid: NDArray[np.float32]
    isp: NDArray[np.float32]
    isp_valid: NDArray[np.float32]
    offset: NDArray[np.float32] | None
    psf: NDArray[np.float32] = field(default_factory=lambda: np.full(2, -1.0, np.float32))
    limits: NDArray[np.float32] = field(default_factory=lambda: np.full(2, -1.0, np.float32))


class SampleSource(Protocol):
    """Places to cut windows from. Picklable: a worker process opens file handles of its own, when it needs them."""

    def __len__(self) -> int:
        """How many places there are."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(h, w) of a place in LR px."""
        ...

    def name(self, index: int) -> str:
        """For messages: names the place."""
        ...

    def key(self, index: int) -> str:
        """Names the place for random draws, whatever path it lies under."""
        ...

    def read(self, index: int, window: Window) -> Sample:
        """The sample of a window, in LR px inside the place. Raises ClipError, naming the place, if unreadable."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what decides the data."""
        ...
