"""Plain PyTorch definition of the last step. Everything faster is tested against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels.agree.reference import BLUR_REACH, RATIO_LIMIT, Sensor, asked, enlarged, seen
from deeplight.kernels.interpolation import SCALE

NEAR_REACH = 2
"""How many LR pixels to each side of an LR pixel the sensor gathers light from where belief is decided: one fewer than
elsewhere, since belief spreads by one. Along one axis it leaves out 0.5 % of the light at a FWHM of 2 LR pixels, 2 % at
2.5 and 6 % at 3.2."""


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
    root, change = decided(refined, start, sensor, psf, linear, belief)
    wide = enlarged(root, linear)
    return (start + (refined - start) * (wide * wide)) * (1.0 + enlarged(change, linear))


def decided(
    refined: Tensor, start: Tensor, sensor: Sensor, psf: Tensor, linear: Tensor, belief: Belief
) -> tuple[Tensor, Tensor]:
    """The square root of how far `refined` is believed, and by which share the mixture should grow, (B,1,h,w) each.

    The sensor is taken to see the mixture as the mixture of what it sees of both images. That is nearly so because
    belief spreads as the blur does (`spread`) and is interpolated as its root: between an LR pixel that is not believed
    and one that is, most is `start`. With the share itself interpolated, a lone light without blur, whose neighbours
    are believed, lost a third. Higher roots add light where there is some blur.
    """
    of_refined, of_start = (seen(x, sensor.rows, sensor.columns) for x in (refined, start))
    reached_refined, reached_start = (reached(x, linear) for x in (refined, start))
    narrow = near(sensor)
    of_near = seen(refined, narrow.rows, narrow.columns)
    root = spread(torch.sqrt(believed(of_near, sensor, psf, belief)), sensor)
    share = root * root
    of_mixed = of_start + (of_refined - of_start) * share
    reached_mixed = reached_start + (reached_refined - reached_start) * share
    return root, last_change(of_mixed, reached_mixed, sensor, belief.last)


def near(sensor: Sensor) -> Sensor:
    """The sensor with a blur that ends NEAR_REACH LR pixels away: (B,5,8) of its weights, scaled to sum to 1."""

    def middle(weights: Tensor) -> Tensor:
        kept = weights[:, BLUR_REACH - NEAR_REACH : BLUR_REACH + NEAR_REACH + 1]
        return kept / kept.sum(dim=(1, 2), keepdim=True)

    return sensor._replace(rows=middle(sensor.rows), columns=middle(sensor.columns))


def spread(root: Tensor, sensor: Sensor) -> Tensor:
    """A mean of `root` (B,1,h,w) over the 3×3 LR pixels around each, by what the sensor gathers from each of them; at
    most 1. Beyond the edge the outermost pixels are repeated.
    """
    h, w = root.shape[2:]
    down, across = (_shares(weights) for weights in (sensor.rows, sensor.columns))
    padded = F.pad(root, (1, 1, 1, 1), mode="replicate")
    tall = padded[:, :, :h] * down[0] + padded[:, :, 1 : h + 1] * down[1] + padded[:, :, 2:] * down[2]
    wide = tall[..., :w] * across[0] + tall[..., 1 : w + 1] * across[1] + tall[..., 2:] * across[2]
    # the shares may sum to a little more than 1, and more than all of a dark image would be less than nothing
    return wide.clamp(max=1.0)


def _shares(weights: Tensor) -> list[Tensor]:
    """What the sensor gathers from the block before, its own and the one after, (B,1,1,1) each, together 1."""
    blocks = weights.sum(dim=2)
    three = blocks[:, BLUR_REACH - 1 : BLUR_REACH + 2]
    three = three / three.sum(dim=1, keepdim=True)
    return [three[:, k, None, None, None] for k in range(3)]


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
