"""A SampleSource of smooth places computed from their indices, with faults on request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import ClipError, Sample
from deeplight.train.fit.settings import Settings, settings_from

TINY = {"main": [4, 4, 4, 4], "aux": [4, 4, 4], "localise_width": 4}


@dataclass
class FakeSource:
    """offset: none, zero, known (every third place zero) or some (as known, but of every second place). broken:
    unreadable places. poisoned: places with NaN.
    """

    sizes: tuple[tuple[int, int], ...] = ((30, 26), (24, 40), (28, 28))
    offset: str = "known"
    isp: bool = True
    valid: float = 1.0
    broken: frozenset[int] = frozenset()
    poisoned: frozenset[int] = frozenset()
    salt: str = ""
    reads: list[tuple[int, Window]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def name(self, index: int) -> str:
        return f"place {index}"

    def key(self, index: int) -> str:
        return self.name(index)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.sizes} {self.offset} {self.isp} {self.salt}".encode()).hexdigest()

    def read(self, index: int, window: Window) -> Sample:
        h, w = self.sizes[index]
        assert window == window.clipped(h, w), "a window must lie inside its place"
        self.reads.append((index, window))
        if index in self.broken:
            raise ClipError(f"clip {index} is damaged")
        y, x = np.mgrid[0 : 8 * window.height, 0 : 8 * window.width].astype(np.float32)
        y, x = y + 8 * window.row, x + 8 * window.col
        isp = (0.5 + 0.5 * np.sin(x / (9 + index)) * np.cos(y / 7))[None]
        lights = (40 * isp**3).astype(np.float32)
        known = np.ones_like(isp)
        known[:, :, : round((1 - self.valid) * isp.shape[2])] = 0
        ntl = lights.reshape(1, window.height, 8, window.width, 8).mean((2, 4))
        shift = 0.0 if self.offset == "zero" or index % 3 == 0 else 0.5
        offset = np.full((2, *window.shape), shift, np.float32)
        if index in self.poisoned:
            isp = isp * np.nan
        return Sample(
            ntl=ntl,
            ntl_valid=np.ones_like(ntl),
            dmo=np.repeat(0.3 * isp, 7, 0).astype(np.float32),
            dmo_valid=np.ones_like(isp),
            dmo_bands=np.ones(7, np.float32),
            dem=(100 + x)[None].astype(np.float32),
            dem_valid=np.ones_like(isp),
            ntl_hr=lights * known,
            ntl_hr_valid=known,
            isp=isp * known if self.isp else np.zeros_like(isp),
            isp_valid=known if self.isp else np.zeros_like(isp),
            offset=None if self.offset == "none" or (self.offset == "some" and index % 2) else offset,
        )


def small_settings(**training: object) -> Settings:
    """A run of a few steps of a network of a few channels."""
    others = {f"{name}_steps": 2 for name in ("light", "localise", "told", "simple", "early", "finish")}
    config = {"batch": 2, "crop": 16, "margin": 2, "warm_up": 2, "log_every": 1, "checkpoint_every": 1}
    own = {"foreign": 0.0}  # no layers of other windows, so that what is read can be counted
    return settings_from(
        {
            "model": TINY,
            "training": {**others, "steps": 4, **config, "validate_every": 2, **training},
            "variety": own,
        }
    )
