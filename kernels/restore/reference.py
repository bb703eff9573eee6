"""Plain PyTorch definition of what lies around the last refinement. Everything faster is tested against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeplight.kernels.agree.reference import mixture
from deeplight.kernels.interpolation import resize_fixed
from deeplight.kernels.refine.reference import Radiance


class Base(NamedTuple):
    """What the last residual is added to. start: radiance (B,1,H,W). carried: the residual so far (B,1,H/2,W/2), in the
    normalised domain. trust: (B,1,H/8,W/8) in [0, 1], how far the result may leave `start`."""

    start: Tensor
    carried: Tensor
    trust: Tensor


def level(base: Base, cubic: Tensor, range: Radiance) -> Tensor:
    """The base in the normalised domain (B,1,H,W). cubic: `interpolation_kernel(2, "cubic")`."""
    given = torch.log1p(base.start.clamp(0.0, range.ceiling) / range.unit) / range.gain
    return given + resize_fixed(base.carried, cubic, 2)


def blended(refined: Tensor, base: Base, linear: Tensor) -> Tensor:
    """The refined radiance (B,1,H,W) where it is trusted, else the base. linear: `interpolation_line(8, "linear")`."""
    return mixture(refined, base.start, base.trust, linear)
