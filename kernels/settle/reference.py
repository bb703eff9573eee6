"""Plain PyTorch definition of the last step. Everything faster is tested against it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from deeplight.kernels.agree.reference import Sensor, asked, enlarged, mixture, seen


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
    of_refined, of_start = (seen(x, sensor.rows, sensor.columns) for x in (refined, start))
    share = believed(of_refined, sensor, psf, belief)
    change = last_change(of_start + (of_refined - of_start) * share, sensor, belief)
    return mixture(refined, start, share, linear) * (1.0 + enlarged(change, linear))


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


def last_change(mixed: Tensor, sensor: Sensor, belief: Belief) -> Tensor:
    """The share (B,1,h,w) by which a mixture should grow of which the sensor would have seen `mixed`."""
    noise = belief.last * sensor.noise
    return asked((sensor.y + noise) / (mixed + noise), sensor)
