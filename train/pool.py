"""Training samples held in memory: regions of synthetic countries, cut into augmented batches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplight.engine.spec import SCALE
from deeplight.engine.tiles import Window
from deeplight.train.synth import Country, CountryConfig

REGION = 96
"""Side of a stored region in LR pixels."""
CHECKED, FULL_MARGIN = 40, 18
"""Side of what validation scores in each region, and the rim around it (receptive field of `tiny`), in LR pixels."""


@dataclass(frozen=True)
class Region:
    """One sample as half-precision tensors (a region of 96² LR px takes 12 MB). Axes (channel, y, x)."""

    ntl: Tensor
    ntl_hr: Tensor
    isp: Tensor
    dmo: Tensor
    dem: Tensor
    offset: Tensor


def country_config(seed: int) -> CountryConfig:
    """A country whose sensor, too, is drawn from `seed`: blur, noise and misregistration vary as between products."""
    rng = np.random.default_rng(seed)
    aligned = rng.random() < 0.2
    return CountryConfig(
        seed=seed,
        psf_fwhm_lr=float(rng.uniform(0.9, 1.6)),
        misregistration_lr=0.0 if aligned else float(rng.uniform(0.3, 1.6)),
        noise=float(rng.uniform(0.02, 0.12)),
    )


def build_pool(seeds: range, count: int, workers: int = 1) -> list[Region]:
    """`count` regions, the countries of `seeds` in turn; the same for the same arguments, whatever `workers`."""
    jobs = [(seeds[i % len(seeds)], i) for i in range(count)]
    if workers == 1:
        made = [_make(job) for job in jobs]
    else:
        # processes: the synthesis holds the interpreter lock half of its time
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
            made = list(executor.map(_make, jobs))
    return [Region(*(torch.from_numpy(a) for a in arrays)) for arrays in made]


def _make(job: tuple[int, int]) -> tuple[NDArray[np.float16], ...]:
    seed, index = job
    rng = np.random.default_rng((seed, index))
    row, col = (int(v) for v in rng.integers(0, 4096, 2))
    sample = Country(country_config(seed)).sample(Window(row, col, REGION, REGION))
    arrays = (getattr(sample, name).astype(np.float16) for name in Region.__dataclass_fields__)
    return tuple(a if a.ndim == 3 else a[None] for a in arrays)


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities of the augmentations, each drawn per sample; gain_octaves bounds the brightness factor 2^±x.

    cut: NTL that is 0, though not declared as nodata, on one side of a line (a country cut out of its surroundings).
    """

    drop_dmo: float = 0.12
    drop_dem: float = 0.2
    drop_both: float = 0.1
    drop_bands: float = 0.25
    hole: float = 0.25
    cut: float = 0.1
    gain_octaves: float = 2.0


@dataclass(frozen=True)
class Batch:
    """inputs in the order of `spec.INPUTS`, then the supervision of `losses.Truth`."""

    inputs: tuple[Tensor, ...]
    ntl_hr: Tensor
    isp: Tensor
    weight: Tensor
    offset: Tensor


def batches(
    pool: list[Region], size: int, crop: int, margin: int, augment: AugmentConfig, seed: int
) -> Iterator[Batch]:
    """Endless augmented batches of `size` crops of `crop`² LR px; the outer `margin` px carry no loss."""
    rng = np.random.default_rng(seed)
    while True:
        yield _collate([_draw(pool, crop, margin, augment, rng) for _ in range(size)])


def fixed_batches(
    pool: list[Region], size: int, crop: int = CHECKED + 2 * FULL_MARGIN, margin: int = FULL_MARGIN
) -> list[Batch]:
    """Validation: the centre crop of each region, not augmented; its rim gives the rest the surroundings it sees."""
    start = (REGION - crop) // 2
    rows = [_sample(region, start, start, crop, margin) for region in pool]
    return [_collate(rows[i : i + size]) for i in range(0, len(rows), size)]


def _sample(region: Region, row: int, col: int, crop: int, margin: int) -> list[Tensor]:
    lr = (slice(None), slice(row, row + crop), slice(col, col + crop))
    hr = (slice(None), *(slice(s.start * SCALE, s.stop * SCALE) for s in lr[1:]))
    one_lr, one_hr = torch.ones(1, crop, crop), torch.ones(1, crop * SCALE, crop * SCALE)
    weight = torch.zeros(1, crop, crop)
    weight[:, margin : crop - margin, margin : crop - margin] = 1.0
    return [
        region.ntl[lr].float(),
        one_lr,
        region.dmo[hr].float(),
        one_hr,
        torch.ones(7),
        region.dem[hr].float(),
        one_hr.clone(),
        region.ntl_hr[hr].float(),
        region.isp[hr].float(),
        weight,
        region.offset[lr].float(),
    ]


def _draw(
    pool: list[Region], crop: int, margin: int, augment: AugmentConfig, rng: np.random.Generator
) -> list[Tensor]:
    region = pool[int(rng.integers(len(pool)))]
    row, col = (int(v) for v in rng.integers(0, REGION - crop + 1, 2))
    parts = _sample(region, row, col, crop, margin)
    parts = _turn(parts, bool(rng.integers(2)), bool(rng.integers(2)), bool(rng.integers(2)))
    gain = float(2.0 ** rng.uniform(-augment.gain_octaves, augment.gain_octaves))
    parts[0], parts[7] = parts[0] * gain, parts[7] * gain
    parts[5] = parts[5] + float(rng.uniform(-200, 600))
    if rng.random() < augment.cut:
        _cut(parts, rng)
    _drop(parts, augment, rng)
    return parts


def _cut(parts: list[Tensor], rng: np.random.Generator) -> None:
    """Zero NTL and truth beyond a random line, in whole LR pixels; in place."""
    side = parts[0].shape[1]
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * side
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    kept = (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle) < shift).float()
    parts[0] = parts[0] * kept
    parts[7] = parts[7] * kept.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)


def _turn(parts: list[Tensor], flip_x: bool, flip_y: bool, transpose: bool) -> list[Tensor]:
    """One of the eight symmetries of the square, the offset's components turned with the image."""
    dims = [2] * flip_x + [1] * flip_y
    out = [p if p.ndim == 1 else (p.flip(dims) if dims else p) for p in parts]
    offset = out[10] * torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0])[:, None, None]
    if transpose:
        out = [p if p.ndim == 1 else p.transpose(1, 2) for p in out]
        offset = offset.flip(0).transpose(1, 2)
    out[10] = offset
    return [p.contiguous() for p in out]


def _drop(parts: list[Tensor], augment: AugmentConfig, rng: np.random.Generator) -> None:
    """Modality and band dropout, and rectangular holes; in place. Holes in the NTL carry no loss."""
    both = rng.random() < augment.drop_both
    if both or rng.random() < augment.drop_dmo:
        parts[2], parts[3], parts[4] = parts[2] * 0, parts[3] * 0, parts[4] * 0
    elif rng.random() < augment.drop_bands:
        present = torch.from_numpy((rng.random(7) < 0.7).astype(np.float32))
        parts[4] = present
        parts[2] = parts[2] * present[:, None, None]
    if both or rng.random() < augment.drop_dem:
        parts[5], parts[6] = parts[5] * 0, parts[6] * 0
    for value, mask in ((0, 1), (2, 3), (5, 6)):
        if rng.random() < augment.hole:
            _hole(parts, value, mask, rng)
    parts[9] = parts[9] * parts[1]


def _hole(parts: list[Tensor], value: int, mask: int, rng: np.random.Generator) -> None:
    side = parts[mask].shape[1]
    h, w = (int(v) for v in rng.integers(1, max(2, side // 3), 2))
    r, c = int(rng.integers(0, side - h)), int(rng.integers(0, side - w))
    parts[mask] = parts[mask].clone()
    parts[mask][:, r : r + h, c : c + w] = 0
    parts[value] = parts[value] * parts[mask]


def _collate(rows: list[list[Tensor]]) -> Batch:
    stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
    return Batch(tuple(stacked[:7]), *stacked[7:])
