"""The baseline of every metric: bicubic interpolation, the same with which the network's own base begins."""

from __future__ import annotations

from torch import Tensor

from deeplight.kernels.agree.reference import enlarged
from deeplight.kernels.interpolation import SCALE, interpolation_line


def bicubic(radiance: Tensor) -> Tensor:
    """Interpolate radiance (B,1,h,w) to (B,1,8h,8w) by Keys' cubic convolution with a = −0.5; cut off at 0.

    Pixels are centred at halves and edges are repeated. The result has the dtype of `radiance`: the weights are
    multiples of 2⁻¹³, hence exact in float32 and float64.
    """
    return enlarged(radiance, interpolation_line(SCALE, "cubic").to(radiance)).clamp(min=0.0)
