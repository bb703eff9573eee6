"""Wald's protocol: the places of a source, degraded 8×, with the given NTL as the truth. It needs no HR lights.

Wald, Ranchin, Mangolini: "Fusion of satellite images of different spatial resolutions: assessing the quality of
resulting images", Photogrammetric Engineering and Remote Sensing 63(6), 1997: what is synthesised from degraded images
is compared with the images themselves.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Protocol, runtime_checkable

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.warp import area_mean
from deeplight.train.clips.degrade import Degradation, degrade, displaced, place_seed, shift_field, told
from deeplight.train.clips.samples import Sample, SampleSource


@runtime_checkable
class ReadsNtl(Protocol):
    """A source that can read NTL without the layers beside it."""

    def read_ntl(self, index: int, window: Window) -> tuple[Floats, Floats]:
        """Return NTL and its mask, (1, h, w) each, of a window in LR px inside the place."""
        ...


class WaldSource:
    """A source of places 8× coarser: a place of H × W LR px becomes H // 8 × W // 8.

    LR := the degraded LR NTL; truth := the LR NTL itself; DMO, DEM and ISP := 8 × 8 means of the given ones. With a
    displacement (Degradation.shift_lr), truth and ISP are in the displaced frame, DMO and DEM on the ground. `offset`
    is the displacement, plus an eighth of the source's own offset where that is known (where it is not, it is
    neglected, and `offset` is None without a displacement).
    """

    def __init__(self, source: SampleSource, degradation: Degradation, seed: int = 0) -> None:
        """Raise InputError where every place is smaller than 8 LR px; those that are, are left out."""
        self.source, self.degradation, self.seed = source, degradation, seed
        self._places = [i for i in range(len(source)) if min(source.size(i)) >= SCALE]
        if not self._places:
            raise InputError(
                f"no place has {SCALE}x{SCALE} LR pixels, which Wald's protocol makes one of; give larger clips"
            )

    def __len__(self) -> int:
        return len(self._places)

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of the degraded place in LR pixels."""
        height, width = self.source.size(self._places[index])
        return height // SCALE, width // SCALE

    def name(self, index: int) -> str:
        """Return the name of the place that is degraded."""
        return self.source.name(self._places[index])

    def key(self, index: int) -> str:
        """Return what names the place for random draws: the source's key."""
        return self.source.key(self._places[index])

    @property
    def ceiling(self) -> float:
        """The LR value from which the degraded lights are saturated; infinite where they never are."""
        return math.inf if self.degradation.saturation is None else self.degradation.saturation

    def fingerprint(self) -> str:
        """Return the SHA-256 of the source's fingerprint, the degradation and the seed."""
        told = f"wald {self.source.fingerprint()} {sorted(asdict(self.degradation).items())} {self.seed}"
        return hashlib.sha256(told.encode()).hexdigest()

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window: lights degraded, the rest averaged. The values do not depend on the window."""
        height, width = self.size(index)
        if window.clipped(height, width) != window:
            raise ValueError(f"{window} is not inside the {height}x{width} LR pixels of {self.name(index)}")
        fine = self.source.read(self._places[index], window.scaled(SCALE))
        seed = place_seed(self.seed, self.key(index))
        lr, lr_valid, truth, truth_valid = self._lights(index, window, seed)
        dmo, dmo_valid = _means(fine.dmo, fine.dmo_valid, bool(fine.dmo_bands.any()))
        dem, dem_valid = _means(fine.dem, fine.dem_valid)
        isp, isp_valid = self._built(index, window, fine, seed)
        return Sample(
            lr, lr_valid, dmo, dmo_valid, fine.dmo_bands, dem, dem_valid, truth, truth_valid, isp, isp_valid,
            self._offset(fine, seed, window), *told(self.degradation),
        )  # fmt: skip

    def _grown(self, index: int, window: Window) -> Window:
        """The window with the degradation's halo, as far as the place goes."""
        return window.grown(self.degradation.halo_lr).clipped(*self.size(index))

    def _lights(self, index: int, window: Window, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
        """LR and its mask, (1, h, w); truth and its mask, (1, 8h, 8w)."""
        wide = self._grown(index, window)
        if isinstance(self.source, ReadsNtl):
            ntl, valid = self.source.read_ntl(self._places[index], wide.scaled(SCALE))
        else:
            sample = self.source.read(self._places[index], wide.scaled(SCALE))
            ntl, valid = sample.ntl, sample.ntl_valid
        corner = (wide.row, wide.col)
        lr, lr_valid, _ = degrade(ntl, valid, self.degradation, seed, corner)
        truth, truth_valid = displaced(ntl, valid, self.degradation, seed, corner)
        rows, cols = window.slices_in(wide)
        fine = (slice(None), *window.scaled(SCALE).slices_in(wide.scaled(SCALE)))
        at = (slice(None), rows, cols)
        return lr[at].copy(), lr_valid[at].copy(), truth[fine].copy(), truth_valid[fine].copy()

    def _built(self, index: int, window: Window, fine: Sample, seed: int) -> tuple[Floats, Floats]:
        """ISP in the frame of the truth."""
        if not self.degradation.shift_lr:
            return _means(fine.isp, fine.isp_valid)
        wide = self._grown(index, window)
        around = self.source.read(self._places[index], wide.scaled(SCALE))
        moved = displaced(*_means(around.isp, around.isp_valid), self.degradation, seed, (wide.row, wide.col))
        at = (slice(None), *window.scaled(SCALE).slices_in(wide.scaled(SCALE)))
        return moved[0][at].copy(), moved[1][at].copy()

    def _offset(self, fine: Sample, seed: int, window: Window) -> Floats | None:
        if fine.offset is None and not self.degradation.shift_lr:
            return None
        offset = shift_field(self.degradation, seed, window)
        if fine.offset is not None:
            known = np.ones(fine.offset.shape[1:], np.uint8)
            offset = offset + area_mean(fine.offset, known, SCALE, SCALE)[0] / np.float32(SCALE)
        return offset


def _means(values: Floats, valid: Floats, there: bool = True) -> tuple[Floats, Floats]:
    """8 × 8 means of the valid pixels and their mask (1, h, w); zeros where the layer is absent."""
    shape = (values.shape[1] // SCALE, values.shape[2] // SCALE)
    if not there or not valid.any():
        return np.zeros((values.shape[0], *shape), np.float32), np.zeros((1, *shape), np.float32)
    mean, mask = area_mean(values, valid[0], SCALE, SCALE)
    return mean, mask.astype(np.float32)[None]
