"""What a training or evaluation sample is, and where samples come from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window


class ClipError(InputError):
    """A clip is missing, damaged or of another layout; the message names it. Exit status 2."""


@dataclass(frozen=True)
class Sample:
    """One window of one place, NumPy arrays, axes (channel, y, x), physical units; invalid pixels hold 0.

    Arrays are float32 (float16 where many samples are held in memory: `cut` gives float32).

    ntl (1, h, w), ntl_valid (1, h, w), dmo (7, 8h, 8w), dmo_valid (1, 8h, 8w), dmo_bands (7,), dem (1, 8h, 8w),
    dem_valid (1, 8h, 8w): as spec.INPUTS without the batch axis. ntl_hr, ntl_hr_valid, isp, isp_valid: (1, 8h, 8w);
    isp is the fraction 0 … 1 (isp_valid all 0 where there is no ISP). offset (2, h, w) in LR px (x, y), or None where
    the misregistration is not known. psf, limits (2,): as spec.INPUTS; a sensor that is known is one through which the
    LR NTL was made from the truth.
    """

    ntl: Floats
    ntl_valid: Floats
    dmo: Floats
    dmo_valid: Floats
    dmo_bands: Floats
    dem: Floats
    dem_valid: Floats
    ntl_hr: Floats
    ntl_hr_valid: Floats
    isp: Floats
    isp_valid: Floats
    offset: Floats | None
    psf: Floats = field(default_factory=lambda: np.full(2, -1.0, np.float32))
    limits: Floats = field(default_factory=lambda: np.full(2, -1.0, np.float32))

    @classmethod
    def complete(
        cls,
        ntl: Floats,
        ntl_hr: Floats,
        isp: Floats,
        dmo: Floats,
        dem: Floats,
        offset: Floats,
        **sensor: Floats,
    ) -> Sample:
        """Make a sample in which every pixel is valid. Its masks take no memory and cannot be written to.

        sensor: psf and limits, where they are known.
        """
        lr, hr = (np.broadcast_to(np.float32(1), (1, *a.shape[1:])) for a in (ntl, ntl_hr))
        bands = np.ones(len(dmo), np.float32)
        return cls(ntl, lr, dmo, hr, bands, dem, hr, ntl_hr, hr, isp, hr, offset, **sensor)

    def cut(self, window: Window) -> Sample:
        """Return the sample of a window in LR pixels, which must lie inside: float32, views where this one is
        float32."""
        whole = Window(0, 0, *self.ntl.shape[1:])
        lr, hr = window.slices_in(whole), window.scaled(SCALE).slices_in(whole.scaled(SCALE))

        def part(values: Floats | None) -> Floats | None:
            if values is None or values.ndim == 1:
                return None if values is None else np.asarray(values, np.float32)
            rows, cols = lr if values.shape[1:] == whole.shape else hr
            return np.asarray(values[:, rows, cols], np.float32)

        parts: dict[str, Any] = {f.name: part(getattr(self, f.name)) for f in fields(self)}
        return Sample(**parts)


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
