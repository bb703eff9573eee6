"""Another world from a training window: other lights, another sensor, other daytime bands, other gaps.

A synthetic country has one fabric and one set of materials, and a network would learn them by heart. Here the truth,
the sensor that coarsens it and the reflectance beside it are drawn anew for each window, far beyond what one country
holds: blur from none to 3.2 LR pixels, lights without a daytime counterpart and built-up land without light, spectra of
other cities, soils, seasons and hazes, layers that belong elsewhere. What the network is told of the sensor is not
exact either, or missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE
from deeplight.train.fit.config import VarietyConfig
from deeplight.train.fit.parts import Parts
from deeplight.train.synth.degrade import sensor_matrix

Other = Callable[[], Parts | None]
"""Gives the parts of a window of another place, or None where it cannot be read."""

UNKNOWN = -1.0
_USUAL_BUILT = (0.085, 0.1, 0.12, 0.14, 0.19, 0.21, 0.19)
"""Mean reflectance of built-up land in the synthetic countries, in the slots' order."""
_BUILT = (
    (0.100, 0.107, 0.125, 0.148, 0.204, 0.258, 0.225),  # Manaus, houses: Landsat 9, surface, 2023-07-23
    (0.115, 0.126, 0.150, 0.176, 0.238, 0.304, 0.265),  # Manaus, industry: the same scene
    (0.060, 0.069, 0.105, 0.144, 0.248, 0.290, 0.237),  # Brumadinho: Landsat 8, surface, 2019-01-14
    (0.095, 0.103, 0.140, 0.183, 0.302, 0.274, 0.230),  # Mendoza: Landsat 8, surface, 2016-02-09
    (0.075, 0.081, 0.105, 0.137, 0.206, 0.276, 0.231),  # Porto Velho: Landsat 8, surface, 2019-07-27
    (0.110, 0.119, 0.135, 0.161, 0.239, 0.289, 0.262),  # Aquileia: Sentinel-2, level 2A, 2019-04-16
    (0.125, 0.119, 0.110, 0.105, 0.164, 0.148, 0.118),  # Elkton: Landsat 8, top of the atmosphere, no date
)
"""Mean reflectance of built-up land in six places of South America, Europe and North America, one row a kind; the
coastal and green bands are interpolated. That at the top of the atmosphere holds haze, as bands do that nobody has
corrected. Landsat: U.S. Geological Survey, public domain. Aquileia: contains modified Copernicus Sentinel data 2019."""
_HAZE = torch.tensor([1.0, 0.85, 0.6, 0.45, 0.25, 0.08, 0.04])
"""How much of a haze's brightness each band shows."""


def varied(
    parts: Parts, config: VarietyConfig, rng: np.random.Generator, other: Other = lambda: None
) -> Parts:
    """Return the window's parts with what is drawn. Lights are drawn only where the sensor is known, so that the coarse
    lights can be made anew from the truth.

    other: where layers that belong elsewhere may come from. Layers that are absent stay so.
    """
    out = dict(parts)
    simulated = float(out["psf"].min()) >= 0
    if simulated and rng.random() < config.lights:
        out["ntl_hr"] = _other_lights(out["ntl_hr"], config, rng) * out["ntl_hr_valid"]
    if simulated and rng.random() < config.sensor:
        _sense(out, rng)
    if bool(out["dmo_valid"].any()):
        _recolour(out, config, rng, other)
    return out


def _other_lights(truth: Tensor, config: VarietyConfig, rng: np.random.Generator) -> Tensor:
    """(1,8h,8w): of another texture, dark in places, smoother, with lone points."""
    kind = rng.random()
    if kind < config.texture:
        truth = _texture(truth.shape[1:], rng)
    elif kind < config.texture + config.night:
        truth = truth * 0.01
    elif kind < config.texture + config.night + config.even:
        truth = _even(truth.shape[1:], rng)
    if rng.random() < config.dark:
        lit = _patches(truth.shape[1:], rng) > float(rng.uniform(-0.3, 0.8))
        truth = truth * torch.where(lit, float(rng.uniform(0.0, 0.15)), 1.0)
    if rng.random() < config.smooth:
        truth = _smoothed(truth, float(rng.uniform(0.5, 4.0)))
    if rng.random() < config.points or kind < config.texture + config.night:
        truth = truth + _points(truth.shape[1:], rng)
    return truth


def _texture(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Lights without any fabric: the exponential of noise with a power-law spectrum, over a dark floor. (1,H,W)."""
    height, width = shape
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    radius = torch.sqrt(fy * fy + fx * fx).clamp(min=1.0 / max(height, width))
    white = torch.from_numpy(rng.standard_normal((2, *radius.shape), np.float32))
    field = torch.fft.irfft2(
        torch.complex(white[0], white[1]) * radius ** -float(rng.uniform(1.0, 2.2)), s=(height, width)
    )
    field = field / field.std().clamp(min=1e-6)
    lights = torch.exp(float(rng.uniform(0.5, 2.2)) * field) * float(np.exp(rng.uniform(-2.0, 2.0)))
    floor = float(rng.uniform(0.0, 1.5)) * lights.median()
    return (lights - floor).clamp(min=0.0, max=2000.0)[None]


def _even(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """One level (1,H,W), half of the time with a gentle slope: where the truth has no detail, none is to be made up."""
    level = float(np.exp(rng.uniform(math.log(0.3), math.log(100.0))))
    slope = rng.uniform(-0.5, 0.5, 2) if rng.random() < 0.5 else np.zeros(2)
    y, x = (torch.linspace(-1.0, 1.0, n) for n in shape)
    return level * torch.exp(float(slope[0]) * y[:, None] + float(slope[1]) * x[None, :])[None]


def _patches(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Smooth noise (1,H,W) of standard deviation about 1, its patches some LR pixels wide."""
    nodes = int(rng.integers(4, 12))
    coarse = torch.from_numpy(rng.standard_normal((1, 1, nodes, nodes), np.float32))
    return F.interpolate(coarse, size=tuple(shape), mode="bilinear", align_corners=True)[0] * 1.5


def _smoothed(x: Tensor, fwhm: float) -> Tensor:
    """(1,H,W) through a Gaussian of FWHM `fwhm` HR pixels."""
    sigma = fwhm / 2.3548
    reach = math.ceil(3.0 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-0.5 * (at / sigma) ** 2)
    line = (line / line.sum())[None, None, None]
    padded = F.pad(x[None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line), line.transpose(2, 3))[0]


def _points(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Boats, flares, camps (1,H,W): up to a dozen lone lights, half of them of a single pixel."""
    height, width = shape
    out = torch.zeros(1, height, width)
    for _ in range(int(rng.integers(1, 13))):
        light = float(np.exp(rng.uniform(np.log(8.0), np.log(64.0 * 120.0))))
        row, col = int(rng.integers(0, height)), int(rng.integers(0, width))
        sigma = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.5, 2.5))
        reach = math.ceil(3.0 * sigma)
        rows = torch.arange(max(0, row - reach), min(height, row + reach + 1))
        cols = torch.arange(max(0, col - reach), min(width, col + reach + 1))
        y, x = (rows - row)[:, None].float(), (cols - col)[None, :].float()
        blob = torch.exp(-0.5 * (x * x + y * y) / max(sigma, 1e-3) ** 2)
        out[0, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += light * blob / blob.sum()
    return out


def _sense(parts: Parts, rng: np.random.Generator) -> None:
    """The coarse lights anew, through a sensor that is drawn, and what is told of it; in place."""
    blur = 0.0 if rng.random() < 0.2 else float(rng.uniform(0.0, 3.2))
    stretch = (
        float(np.clip(np.exp(0.12 * rng.standard_normal()), 1 / 1.4, 1.4)) if rng.random() < 0.6 else 1.0
    )
    fwhm = np.clip(np.array([blur * math.sqrt(stretch), blur / math.sqrt(stretch)]), 0.0, 3.4)
    # not the network's own model of the sensor, which ends 3 LR pixels away: at 3.2 it would be 1.5 % off
    rows, columns = (
        torch.from_numpy(sensor_matrix(float(f), n))
        for f, n in zip(fwhm, parts["ntl"].shape[1:], strict=True)
    )
    lr = rows @ parts["ntl_hr"] @ columns.T
    known = parts["ntl_hr_valid"]
    if not bool(known.all()):
        # as clips.degrade has it: the point spread weighs known pixels only
        lr = lr / (rows @ known @ columns.T).clamp(min=1e-6)
    noise = float(np.exp(rng.uniform(np.log(0.004), np.log(0.3))))
    grain = torch.from_numpy(rng.standard_normal((2, *lr.shape), np.float32))
    lr = lr * (1.0 + 0.01 * grain[0]) + noise * grain[1]
    level = UNKNOWN
    if rng.random() < 0.1:
        level = max(float(torch.quantile(lr, float(rng.uniform(0.85, 0.995)))), 4.0 * noise)
        lr = lr.clamp(max=level)
        if rng.random() < 0.5:
            lr = torch.round(lr.clamp(min=0.0) * (63.0 / level)) * (level / 63.0)
            noise = math.hypot(noise, level / 63.0 / math.sqrt(12.0))
        level = UNKNOWN if rng.random() < 0.2 else 0.999 * level
    parts["ntl"] = lr * parts["ntl_valid"]
    error = 0.14 * rng.triangular(-1.0, 0.0, 1.0) + 0.06 * rng.triangular(-1.0, 0.0, 1.0, 2)
    told = fwhm * (1.0 + error)
    if rng.random() < 0.15:
        told = np.full(2, UNKNOWN)
    told_noise = UNKNOWN if rng.random() < 0.2 else noise * float(np.exp(0.25 * rng.standard_normal()))
    parts["psf"] = torch.tensor(told, dtype=torch.float32)
    parts["limits"] = torch.tensor([level, told_noise])


def _recolour(parts: Parts, config: VarietyConfig, rng: np.random.Generator, other: Other) -> None:
    """Other materials, seasons, hazes and calibrations, or a layer that says nothing or belongs elsewhere; in place."""
    dmo, valid = parts["dmo"], parts["dmo_valid"]
    kind = rng.random()
    if kind < config.void:
        level = torch.from_numpy(rng.uniform(0.0, 0.5, (7, 1, 1)).astype(np.float32))
        grain = float(rng.choice([0.0, 0.02, 0.2]))
        dmo = level + grain * torch.from_numpy(rng.standard_normal(tuple(dmo.shape), np.float32))
    else:
        if rng.random() < config.colours:
            dmo = _weathered(_materials(parts, rng), rng)
        if kind < config.void + config.foreign:
            stranger = other() if rng.random() < 0.5 else None
            dmo, valid = _foreign([dmo, valid], stranger, ("dmo", "dmo_valid"), rng)
            if rng.random() < 0.5:
                names = ("dem", "dem_valid")
                parts["dem"], parts["dem_valid"] = _foreign([parts[n] for n in names], stranger, names, rng)
    parts["dmo_valid"] = valid
    kept = valid if bool(parts["dmo_bands"].all()) else valid * parts["dmo_bands"][:, None, None]
    parts["dmo"] = dmo if bool(kept.all()) else dmo * kept


def _materials(parts: Parts, rng: np.random.Generator) -> Tensor:
    """The bands (7,8h,8w) with built-up land of another city's reflectance."""
    built = parts["isp"] * parts["isp_valid"]
    if "offset" in parts and bool(parts["offset"].any()):
        built = _on_the_ground(built, parts["offset"])
    share = rng.dirichlet(np.full(len(_BUILT), 0.4))
    target = share @ np.array(_BUILT) * math.exp(0.2 * rng.standard_normal())
    target = target * np.exp(0.12 * rng.standard_normal(7)) - np.array(_USUAL_BUILT)
    change = torch.tensor(target, dtype=torch.float32)[:, None, None]
    return torch.addcmul(parts["dmo"], built, change)


def _on_the_ground(x: Tensor, offset: Tensor) -> Tensor:
    """(1,8h,8w) of the frame of the lights as the ground has it: the nearest pixel of the nearest LR pixel's offset,
    which changes little over the offset's own length."""
    height, width = x.shape[1:]
    moved = torch.round(offset * SCALE).long().repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
    cols = (torch.arange(width)[None, :] - moved[0]).clamp(0, width - 1)
    rows = (torch.arange(height)[:, None] - moved[1]).clamp(0, height - 1)
    return x.reshape(-1)[rows * width + cols][None]


def _weathered(dmo: Tensor, rng: np.random.Generator) -> Tensor:
    """Bands mixed a little with one another (soils, seasons), haze, clouds, and then a calibration."""
    mixing = np.eye(7) + 0.06 * rng.standard_normal((7, 7)) * (rng.random() < 0.7)
    haze = float(rng.exponential(0.03)) * _HAZE.numpy()
    gain, offset = _calibration(rng)
    if rng.random() < 0.1:
        clear = _affine(dmo, mixing, haze)
        cloud = (_patches(dmo.shape[1:], rng) - float(rng.uniform(0.3, 1.5))).clamp(0.0, 1.0)
        dmo = clear + cloud * (float(rng.uniform(0.2, 0.8)) - clear)
        mixing, haze = np.eye(7), np.zeros(7)
    return _affine(dmo, gain[:, None] * mixing, gain * haze + offset)


def _affine(x: Tensor, matrix: Doubles, shift: Doubles) -> Tensor:
    """matrix · x + shift of the bands (7,H,W)."""
    m, s = (torch.tensor(v, dtype=torch.float32) for v in (matrix, shift))
    return torch.addmm(s[:, None], m, x.reshape(7, -1)).reshape(x.shape)


def _calibration(rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Gains and offsets (7,) of sensors and corrections, also plainly wrong ones."""
    gain = np.exp(0.2 * rng.standard_normal() + 0.08 * rng.standard_normal(7))
    offset = 0.01 * rng.standard_normal(7)
    wrong = rng.random()
    if wrong < 0.06:
        offset = offset + rng.choice([-0.1, 0.1, -0.2])
    elif wrong < 0.09:
        gain = gain * rng.choice([0.5, 2.0])
    return gain, offset


def _foreign(
    layers: list[Tensor], stranger: Parts | None, names: tuple[str, str], rng: np.random.Generator
) -> list[Tensor]:
    """A layer and its mask from the window of another place, or their own turned and rolled."""
    if stranger is not None and bool(stranger[names[1]].any()):
        return [stranger[name] for name in names]
    return _elsewhere(layers, rng)


def _elsewhere(layers: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """The layers turned and rolled alike, so that nothing is where it belongs."""
    height, width = layers[0].shape[1:]
    shift = [int(rng.integers(side // 4, 3 * side // 4 + 1)) for side in (height, width)]
    flips = [axis for axis in (-2, -1) if rng.random() < 0.5]
    return [
        torch.roll(x, shift, (-2, -1)).flip(flips) if flips else torch.roll(x, shift, (-2, -1))
        for x in layers
    ]


def gaps(valid: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a mask (1,h,w), LR or HR, with holes as composites have them: single pixels, the edge of a swath, patches
    like coasts and clouds."""
    height, width = valid.shape[1:]
    kind = rng.random()
    if kind < 0.4:
        kept = torch.from_numpy(rng.random((1, height, width)) > rng.uniform(0.002, 0.05)).float()
    elif kind < 0.7:
        angle, start = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4) * min(height, width)
        x = torch.arange(width) - (width - 1) / 2
        y = torch.arange(height) - (height - 1) / 2
        along = x[None, :] * math.cos(angle) + y[:, None] * math.sin(angle)
        kept = ((along < start) | (along > start + width * rng.uniform(0.02, 0.3))).float()[None]
    else:
        kept = (_patches(valid.shape[1:], rng) > -float(rng.uniform(0.8, 2.0))).float()
    return valid * kept
