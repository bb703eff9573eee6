"""The sensor inside the network: what a refined image looks like through the blur, and the step that makes both agree.

The sensor model A blurs radiance with a Gaussian whose FWHM is known along rows and columns, then takes the 8×8 area
mean. A step x ← x · up((y + s) / (A x + s)) moves the refined radiance x towards one that the sensor would have seen
as the given y; s is the noise, so that what lies below it changes nothing (a multiplicative scheme in the manner of
Richardson 1972 and Lucy 1974). The last step weighs its changes so that sums of lights hold. All of it is separable and
local, and every operation is exact in its position, so tiles agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Belief, Sensor
from deeplight.kernels.agree.reference import BLUR_REACH, agree, mixture
from deeplight.kernels.agree.reference import STEPS as BASE_STEPS
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.settle.reference import step

__all__ = ["BASE_STEPS", "STEP_REACH", "agreeing", "base", "blur_weights", "sensor_of", "settled", "trust"]

STEP_REACH = BLUR_REACH + 1
"""LR pixels that one step sees: the blur and the linear interpolation."""
BASE_POWER = 2.0
"""Over-relaxation: an exponent of 2.5 diverges."""
SHARPEST_SIGMA = 0.1
"""HR pixels: below this the sampled Gaussian is a single 1 in float32."""
UNKNOWN_NOISE = 0.05
"""Of NTL whose noise is not known, in its unit: assumed, of the order of annual VIIRS composites' in nW/cm²/sr."""
LEAST_NOISE = 1e-3
LAST_NOISE = 0.2
"""Of the noise: below this share of it the last step towards the given lights changes nothing. It trusts them farther
into the dark than the base does: their noise has no bias, and what the residual would lose there is put back."""
BELIEVED = 0.06
"""Where the sensor would have seen a refined radiance this much, as a share, beside the given lights, half of it is
believed."""
NOISE_BELIEVED = 64.0
"""The same for a difference of eight times the noise, whatever the share (in squares of the noise): in the dark the
network knows better than one noisy look."""
BELIEF = Belief(BELIEVED, NOISE_BELIEVED, LAST_NOISE)
_SIGMA_PER_FWHM = SCALE / 2.354820045030949


def sensor_of(y: Tensor, ntl: Tensor, valid: Tensor, psf: Tensor, limits: Tensor) -> Sensor:
    """What the sensor saw and how. y: radiance (B,1,h,w) ≥ 0, the given one with holes filled. The others: as in
    spec.INPUTS. A blur that is not known counts as none: nothing is sharpened that may not be blurred."""
    fwhm = psf.clamp(min=0.0)
    level, noise = limits[:, :1, None, None], limits[:, 1:, None, None]
    reached = ((ntl - level) >= 0.0).to(ntl.dtype) * (level > 0.0).to(ntl.dtype)
    known = (noise >= 0.0).to(ntl.dtype)
    noise = (noise * known + UNKNOWN_NOISE * (1.0 - known)).clamp(min=LEAST_NOISE)
    rows, columns = blur_weights(fwhm[:, 0]), blur_weights(fwhm[:, 1])
    return Sensor(y, valid, reached * valid, rows, columns, noise)


def blur_weights(fwhm: Tensor) -> Tensor:
    """fwhm: (B,), LR pixels, ≥ 0. Returns (B,7,8): the weight of HR pixel t of the block k − 3 LR pixels away.

    A Gaussian sampled at whole HR pixels, then the mean over the 8 pixels of a block; they sum to 1.
    """
    sigma = (fwhm * _SIGMA_PER_FWHM).clamp(min=SHARPEST_SIGMA)[:, None, None]
    size = 2 * BLUR_REACH + 1
    at = torch.arange(size * SCALE, device=fwhm.device, dtype=torch.float32) - float(BLUR_REACH * SCALE)
    inside = torch.arange(SCALE, device=fwhm.device, dtype=torch.float32)
    distance = (at[:, None] - inside[None, :])[None] / sigma
    weight = torch.exp(-0.5 * distance * distance).sum(dim=2)
    return (weight / weight.sum(dim=1, keepdim=True)).reshape(-1, size, SCALE)


def base(sensor: Sensor, cubic: Tensor, linear: Tensor, power: float | Tensor = BASE_POWER) -> Tensor:
    """Radiance (B,1,8h,8w) without any learnt detail: bicubic, made consistent with the sensor in two steps."""
    return kernels.base(sensor, cubic, linear, power)


def agreeing(
    refined: Tensor, start: Tensor, sensor: Sensor, linear: Tensor, *, holds_sums: bool = True
) -> Tensor:
    """The refined radiance (B,1,8h,8w), with the base `start` in place of it below the noise, made consistent.

    holds_sums: whether what is added is what the sensor missed; else the change is the plain ratio.
    """
    mixed = mixture(refined, start, trust(sensor), linear)
    if holds_sums:
        return step(mixed, sensor, linear, LAST_NOISE)
    return agree(mixed, sensor._replace(noise=LAST_NOISE * sensor.noise), linear)


def trust(sensor: Sensor) -> Tensor:
    """How far a refined radiance may leave the base, (B,1,h,w) within [0, 1]: not at all below the noise. There a bias
    of a thousandth in the log domain, spread over a dark country, would be a fifth of its sum."""
    light, dark = sensor.y * sensor.y, sensor.noise * sensor.noise
    return light / (light + dark)


def settled(refined: Tensor, start: Tensor, sensor: Sensor, psf: Tensor, linear: Tensor) -> Tensor:
    """Radiance (B,1,8h,8w) as `agreeing`, with as much of the refined one as is believed, and the rest of the base.
    refined: with the base in place of it below the noise, as `kernels.restore` gives it.

    What the sensor would have seen of the mixture is taken to be the mixture of what it would have seen of each: so
    this step sees no farther than that of `agreeing`, as belief, which spreads by one LR pixel, is decided one nearer.

    It is believed wholly where the sensor would have seen y, or where the blur `psf` (B,2) is not known. A network that
    learns with this in its way learns to pass it, and not to be right: training goes without.
    """
    return kernels.settle(refined, start, sensor, psf, linear, BELIEF)
