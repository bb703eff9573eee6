"""Plain PyTorch definition of output pixels. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplight.kernels.interpolation import SCALE


@dataclass(frozen=True)
class Pixels:
    """How radiance is stored.

    crop: HR pixels of halo cut from each side. dtype: "float32", or "uint16" for round((radiance − offset) / scale),
    clamped to the steps that are left beside `nodata` (0 or 65535). scale and offset are used by "uint16" alone.
    """

    crop: int = 0
    dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint16"):
            raise ValueError(f"finish: dtype must be 'float32' or 'uint16', not {self.dtype!r}")
        if self.dtype == "uint16" and self.nodata not in (0, 65535):
            raise ValueError(f"finish: nodata of uint16 must be 0 or 65535, not {self.nodata}")
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise ValueError(
                f"finish: scale must be a number above 0 and offset a number, not {self.scale} and {self.offset}"
            )
        if self.crop < 0:
            raise ValueError(f"finish: crop must be at least 0, not {self.crop}")

    @property
    def integer(self) -> bool:
        """Whether pixels are steps of uint16."""
        return self.dtype == "uint16"

    @property
    def steps(self) -> tuple[int, int]:
        """Lowest and highest uint16 value beside nodata."""
        return (1, 65535) if self.nodata == 0 else (0, 65534)


def finish(radiance: Tensor, valid: Tensor, pixels: Pixels) -> Tensor:
    """Output pixels (B, 1, H − 2·crop, W − 2·crop) in `pixels.dtype`.

    radiance: (B, 1, H, W), float32. valid: (B, 1, H/8, W/8), 0 where the output is nodata. NaN is nodata too.
    """
    known = valid.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) != 0
    if pixels.crop:
        inner = (..., slice(pixels.crop, -pixels.crop), slice(pixels.crop, -pixels.crop))
        radiance, known = radiance[inner], known[inner]
    known = known & ~torch.isnan(radiance)
    if not pixels.integer:
        return torch.where(known, radiance, pixels.nodata)
    steps = torch.round((radiance - pixels.offset) * (1.0 / pixels.scale)).clamp(*pixels.steps)
    return torch.where(known, steps, pixels.nodata).to(torch.int32).to(torch.uint16)
