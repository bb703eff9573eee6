"""Plain PyTorch definition of output pixels. Everything faster is tested against it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplight.kernels.interpolation import SCALE


@dataclass(frozen=True)
class Pixels:
    """How radiance is stored.

    dtype: "float32", or "uint16" for round((radiance − offset) / scale), clamped to all steps but `nodata` (0 or
    65535). scale and offset are used only for "uint16".
    """

    dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint16"):
            raise ValueError(f"finish: dtype must be 'float32' or 'uint16', not {self.dtype!r}")
        if self.integer and self.nodata not in (0, 65535):
            raise ValueError(f"finish: nodata of uint16 must be 0 or 65535, not {self.nodata}")
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise ValueError(
                f"finish: scale must be a number above 0 and offset a number, not {self.scale} and {self.offset}"
            )

    @property
    def integer(self) -> bool:
        """Whether pixels are steps of uint16."""
        return self.dtype == "uint16"

    @property
    def steps(self) -> tuple[int, int]:
        """The lowest and the highest uint16 value that are not nodata."""
        return (1, 65535) if self.nodata == 0 else (0, 65534)


def finish(
    radiance: Tensor,
    valid: Tensor,
    out: Tensor,
    halves: Tensor | None,
    corner: tuple[int, int],
    pixels: Pixels,
) -> None:
    """Write output pixels to `out` (bands, 8h, 8w) and, for uint16, means of 2 × 2 to `halves` (bands, 4h, 4w).

    radiance: (bands, 8H, 8W), float32. valid: (H, W), 0 where the output is nodata. corner: of `out`, in LR pixels.
    """
    rows, cols = (
        slice(SCALE * at, SCALE * at + length) for at, length in zip(corner, out.shape[1:], strict=True)
    )
    known = valid.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)[rows, cols] != 0
    own = torch.where(known, radiance[:, rows, cols], math.nan)
    if not pixels.integer:
        out.copy_(torch.where(torch.isnan(own), pixels.nodata, own))
        return
    assert halves is not None
    # in float64, in which output.pack_format rounds; in float32 the largest steps would be wrong
    steps = ((own.double() - pixels.offset) / pixels.scale).round().clamp(*pixels.steps)
    out.copy_(torch.where(torch.isnan(own), pixels.nodata, steps).to(torch.int32).to(torch.uint16))
    pairs = own[:, 0::2] + own[:, 1::2]
    halves.copy_((pairs[..., 0::2] + pairs[..., 1::2]) * 0.25)
