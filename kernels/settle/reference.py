"""Plain PyTorch definition of the last step. Everything faster is tested against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeplight.kernels.agree.reference import RATIO_LIMIT, Sensor, asked, enlarged, seen
from deeplight.kernels.interpolation import SCALE


class Belief(NamedTuple):
    """When a refined radiance is believed. gap: half of it where the sensor would have seen this much more or less than
    the lights, as a share; noises: or where the square of the difference is this many squares of the noise.

    last: the step changes nothing below this share of the noise.
    """

    gap: float
    noises: float
    last: float


def settle(
    refined: Tensor, start: Tensor, sensor: Sensor, psf: Tensor, linear: Tensor, belief: Belief
) -> Tensor:
    """The mixture of both images after the step. linear: `interpolation_line(SCALE, "linear")`."""
    share, change = decided(refined, start, sensor, psf, linear, belief)
    return blended(refined, start, share, linear) * (1.0 + enlarged(change, linear))


def decided(
    refined: Tensor, start: Tensor, sensor: Sensor, psf: Tensor, linear: Tensor, belief: Belief
) -> tuple[Tensor, Tensor]:
    """How far `refined` is believed, and by which share the mixture should grow, (B,1,h,w) each."""
    of_refined, of_start = (seen(x, sensor.rows, sensor.columns) for x in (refined, start))
    share = believed(of_refined, sensor, psf, belief)
    of_mixed = of_start + (of_refined - of_start) * share
    reached_refined, reached_start = (reached(x, linear) for x in (refined, start))
    reached_mixed = reached_start + (reached_refined - reached_start) * share
    return share, last_change(of_mixed, reached_mixed, sensor, belief.last)


def blended(refined: Tensor, start: Tensor, share: Tensor, linear: Tensor) -> Tensor:
    """As much of `refined` (B,1,8h,8w) as `share` (B,1,h,w) says, and the rest of `start`.

    Interpolated is the square root of the share. `decided` takes an LR pixel that is not believed to be `start`; with
    the share itself, its rim would be halfway to what its neighbours are, and of a lone light without blur, whose
    neighbours are believed, a third would be lost. Higher roots would add light where there is some blur.
    """
    root = enlarged(torch.sqrt(share), linear)
    return start + (refined - start) * (root * root)


def step(x: Tensor, sensor: Sensor, linear: Tensor, last: float) -> Tensor:
    """The last step without belief: x (B,1,8h,8w) is the mixture."""
    of_x = seen(x, sensor.rows, sensor.columns)
    change = last_change(of_x, reached(x, linear), sensor, last)
    return x * (1.0 + enlarged(change, linear))


def reached(x: Tensor, linear: Tensor) -> Tensor:
    """What a change at each LR pixel multiplies, interpolated linearly: a mean of x (B,1,8h,8w), (B,1,h,w)."""
    # block i is changed by blocks i − 1 to i + 1, so it gives to them, in the order that `seen` takes
    weights = torch.stack([linear[:, 2], linear[:, 1], linear[:, 0]])[None] / SCALE
    weights = weights.expand(x.shape[0], -1, -1)
    return seen(x, weights, weights)


def believed(seen_as: Tensor, sensor: Sensor, psf: Tensor, belief: Belief) -> Tensor:
    """How far a refined radiance is believed, (B,1,h,w) within [0, 1]. seen_as: what the sensor would have seen of it.

    1 where that is y, or where the blur `psf` (B,2) is not known.
    """
    y, noise = sensor.y, sensor.noise
    told = (psf[:, :1] >= 0.0).to(psf.dtype)[:, :, None, None]
    gap = (seen_as - y) * sensor.known * told
    gap = gap + (gap.clamp(max=0.0) - gap) * sensor.saturated
    spared = belief.gap * belief.gap * (seen_as + noise) * (y + noise) + belief.noises * noise * noise
    return spared / (spared + gap * gap)


def last_change(of_mixed: Tensor, reached_mixed: Tensor, sensor: Sensor, last: float) -> Tensor:
    """The share (B,1,h,w) by which a mixture should grow of which the sensor would have seen `of_mixed`.

    What is added at an LR pixel is the change times `reached`; the sensor misses the change times what it sees. With
    the one over the other as a factor both are the same, so sums of lights hold, even those of a single point.
    """
    noise = last * sensor.noise
    change = asked((sensor.y + noise) / (of_mixed + noise), sensor)
    change = change * ((of_mixed + noise) / (reached_mixed + noise))
    return change.clamp(1.0 / RATIO_LIMIT - 1.0, RATIO_LIMIT - 1.0)
