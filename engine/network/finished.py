"""From the network's outputs over a tile to what is written of it: bands and counts. As run.products, on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight.engine.core.forms import Wanted
from deeplight.engine.core.spec import SCALE, Quality
from deeplight.engine.network.conserving import conserved
from deeplight.engine.network.consistency import sensor_of
from deeplight.kernels.agree.reference import seen
from deeplight.kernels.interpolation import interpolation_line


class Finished(nn.Module):
    """Everything that is done with a tile behind the network; see Wanted."""

    line: Tensor

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self._wanted = wanted
        self.register_buffer("line", interpolation_line(SCALE, "linear"))

    def forward(
        self,
        radiance: Tensor,
        isp: Tensor,
        offset: Tensor,
        interval: Tensor,
        ntl: Tensor,
        ntl_valid: Tensor,
        _dmo: Tensor,
        dmo_valid: Tensor,
        _dmo_bands: Tensor,
        _dem: Tensor,
        dem_valid: Tensor,
        psf: Tensor,
        limits: Tensor,
        own: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The network's outputs and inputs, batch of 1, and the valid LR pixels of the core, (1, 1, h, w).

        Returns bands (n, 8h, 8w), not masked yet; what the sensor would see (h, w); counts over `own` as forms.COUNTS.
        """
        wanted = self._wanted
        radiance = radiance.float()
        sensor = sensor_of(ntl.clamp(min=0.0) * ntl_valid, ntl, ntl_valid, psf, limits)
        factor = None
        if wanted.conserving is not None:
            radiance, factor = conserved(radiance, sensor, self.line, wanted.conserving)
        bands = [radiance]
        for band in wanted.bands:
            if band == "isp":
                bands.append(isp.float())
            elif band == "offset":
                bands.append(_repeated(offset.float()))
            elif band == "interval":
                ends = interval.float() if factor is None else interval.float() * factor
                bands += [torch.minimum(ends[:, :1], radiance), torch.maximum(ends[:, 1:], radiance)]
            elif band == "quality":
                bands.append(self._quality(offset, ntl, ntl_valid, dmo_valid, dem_valid))
        made = torch.cat(bands, dim=1) if len(bands) > 1 else radiance  # without a copy
        counts = self._counts(made, _repeated(own) != 0, dmo_valid != 0, dem_valid != 0)
        return made[0], seen(radiance, sensor.rows, sensor.columns)[0, 0], counts

    def _counts(self, made: Tensor, own: Tensor, dmo: Tensor, dem: Tensor) -> Tensor:
        radiance = made[:, :1]
        good = torch.isfinite(made).all(dim=1, keepdim=True) & (radiance >= 0)
        light = torch.where(own & good, radiance, torch.zeros_like(radiance))
        low, high = self._wanted.holds
        wide = light.double()
        clamped = (wide > high) | (wide < low)
        flags = (own & ~good, own & dmo, own & dem, own & ~(dmo | dem), own & good & clamped)
        counted = [flag.sum(dtype=torch.float64) for flag in flags]
        return torch.stack([*counted, wide.sum(), light.amax().double()])

    def _quality(
        self, offset: Tensor, ntl: Tensor, ntl_valid: Tensor, dmo_valid: Tensor, dem_valid: Tensor
    ) -> Tensor:
        """Flags (1, 1, 8h, 8w), as run.quality.quality_flags."""
        wanted, r = self._wanted, self._wanted.radius
        # what lies beyond the tile counts as filled
        holes = F.pad((ntl_valid == 0).float(), (r, r, r, r), value=1.0)
        side = 2 * r + 1
        near = F.max_pool2d(F.max_pool2d(holes, (side, 1), 1), (1, side), 1)
        saturated = (ntl >= wanted.ceiling) & (ntl_valid != 0)
        far = (offset.float().abs() >= wanted.far).any(dim=1, keepdim=True)
        lr = near * int(Quality.NTL_FILLED_NEAR)
        lr = lr + saturated * int(Quality.SATURATED_LR) + far * int(Quality.EXTRAPOLATED_OFFSET)
        missing = (dmo_valid == 0) * int(Quality.DMO_MISSING) + (dem_valid == 0) * int(Quality.DEM_MISSING)
        return _repeated(lr) + missing.float()


def _repeated(x: Tensor) -> Tensor:
    """Every LR pixel of (1, C, h, w) as 8 × 8 HR pixels."""
    return x.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
