"""Plain PyTorch definition of the output pixels. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplight.kernels.interpolation import SCALE


@dataclass(frozen=True)
class Finish:
    """How radiance becomes output pixels.

    crop: HR pixels of halo cut from each side. dtype: "float32", or "uint16" for round((radiance − offset) / scale),
    clamped beside `nodata` (0 or 65535).
    """

    crop: int = 0
    dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint16"):
            raise ValueError(f"dtype must be 'float32' or 'uint16', not {self.dtype!r}")
        if self.dtype == "uint16" and self.nodata not in (0, 65535):
            raise ValueError(f"nodata of uint16 must be 0 or 65535, not {self.nodata}")
        if not (self.scale > 0 and self.crop >= 0):
            raise ValueError(f"scale must be above 0 and crop at least 0: {self}")

    @property
    def steps(self) -> tuple[int, int]:
        """Lowest and highest uint16 value beside nodata."""
        return (1, 65535) if self.nodata == 0 else (0, 65534)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Element type of the output pixels."""
        return torch.uint16 if self.dtype == "uint16" else torch.float32


def finish(radiance: Tensor, valid: Tensor | None, how: Finish) -> Tensor:
    """radiance: (B, 1, H, W). valid: (B, 1, H/8, W/8), 0 where the output is nodata.

    Returns (B, 1, H − 2·crop, W − 2·crop) in `how.dtype` (float64 stays).
    """
    end_y, end_x = (side - how.crop for side in radiance.shape[2:])
    value = radiance[..., how.crop : end_y, how.crop : end_x]
    if how.dtype == "uint16":
        low, high = how.steps
        value = torch.round((value - how.offset) * (1.0 / how.scale)).clamp(low, high)
    if valid is not None:
        known = valid.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) != 0
        value = torch.where(known[..., how.crop : end_y, how.crop : end_x], value, how.nodata)
    return value.to(torch.int32).to(torch.uint16) if how.dtype == "uint16" else value.contiguous()
