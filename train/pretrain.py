"""The offset alone: its network sees little more than LR pixels, so it learns from many more places a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.train.losses import offset_error
from deeplight.train.model import DeepLightSR
from deeplight.train.pool import Region

SIZE, CROP, MARGIN = 8, 72, 13
"""Crops a step, their side in LR pixels, and how much of their rim carries no loss (the window is cut off there)."""


@dataclass(frozen=True)
class _Sample:
    """One region. ntl, light (1,h,w): recorded and true LR radiance; aux (8,4h,4w): normalised, half precision;
    isp (1,4h,4w); offset (2,h,w).
    """

    ntl: Tensor
    aux: Tensor
    isp: Tensor
    offset: Tensor
    light: Tensor


def pretrain_offset(
    model: DeepLightSR,
    pool: list[Region],
    light_steps: int,
    steps: int,
    seed: int,
    log: Callable[[str], None] = print,
) -> None:
    """Train `model.localise`: `light_steps` on the lights that the auxiliary suggests, on the regions whose true offset
    is zero, then `steps` on the whole estimate.
    """
    samples = [_sample(model, region) for region in pool]
    rng = np.random.default_rng(seed)
    aligned = [s for s in samples if not s.offset.any()]
    if aligned:
        _learn(model, aligned, light_steps, 5e-3, rng, log, _light_loss)
    _learn(model, samples, steps, 3e-3, rng, log, _offset_loss)


def _sample(model: DeepLightSR, region: Region) -> _Sample:
    aux = torch.cat(
        [model.normalise.dmo(region.dmo.float()[None])[0], model.normalise.dem(region.dem.float())]
    )
    return _Sample(
        region.ntl.float(),
        F.avg_pool2d(aux, 2).half(),
        F.avg_pool2d(region.isp.float(), 2).half(),
        region.offset.float(),
        F.avg_pool2d(region.ntl_hr.float(), 8),
    )


def _learn(
    model: DeepLightSR,
    samples: list[_Sample],
    steps: int,
    rate: float,
    rng: np.random.Generator,
    log: Callable[[str], None],
    loss_of: Callable[[DeepLightSR, _Sample], Tensor],
) -> None:
    optimiser = torch.optim.AdamW(model.localise.parameters(), lr=rate, weight_decay=1e-4)
    for step in range(steps):
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * half_cosine)
        loss = loss_of(model, _batch(samples, rng))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.localise.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            log(f"{loss_of.__name__.strip('_')} step {step}/{steps}: {float(loss.detach()):.4f}")


def _light_loss(model: DeepLightSR, batch: _Sample) -> Tensor:
    """What the auxiliary suggests against what is there: ISP, and the recorded log radiance."""
    lights, logits = model.localise.suggested(batch.aux)
    seen = F.mse_loss(lights, model.normalise.ntl(batch.ntl))
    return seen + 0.2 * F.binary_cross_entropy_with_logits(logits, batch.isp)


def _offset_loss(model: DeepLightSR, batch: _Sample) -> Tensor:
    weight = torch.zeros_like(batch.light)
    weight[..., MARGIN:-MARGIN, MARGIN:-MARGIN] = 1.0
    found = model.localise(model.normalise.ntl(batch.ntl), batch.aux)
    return offset_error(model, found, batch.offset, batch.light, weight)


def _batch(samples: list[_Sample], rng: np.random.Generator) -> _Sample:
    """Random crops, turned together, each with a brightness of its own; bands are missing in a quarter of them."""
    rows = []
    for i in rng.integers(0, len(samples), SIZE):
        s = samples[int(i)]
        side = s.ntl.shape[-1]
        row, col = (int(v) for v in rng.integers(0, max(1, side - CROP + 1), 2))
        rows.append(
            [_crop(t, row, col, t.shape[-1] // side) for t in (s.ntl, s.aux, s.isp, s.offset, s.light)]
        )
    ntl, aux, isp, offset, light = _turned(
        [torch.stack([row[k] for row in rows]).float() for k in range(5)], rng
    )
    gain = torch.from_numpy(2.0 ** rng.uniform(-2, 2, (len(ntl), 1, 1, 1))).float()
    lacking = rng.random((len(ntl), 1)) < 0.25
    bands = torch.from_numpy(np.where(lacking, rng.random((len(ntl), 7)) < 0.7, True)).float()[
        ..., None, None
    ]
    one = torch.ones_like(aux[:, :1])
    aux = torch.cat([aux[:, :7] * bands, one, aux[:, 7:], one], dim=1)
    return _Sample(ntl * gain, aux, isp, offset, light)


def _crop(t: Tensor, row: int, col: int, scale: int) -> Tensor:
    return t[:, row * scale : (row + CROP) * scale, col * scale : (col + CROP) * scale]


def _turned(parts: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """One of the eight symmetries of the square; part 3 is the offset, whose components turn too."""
    sign = [1.0, 1.0]
    for axis, dim in ((0, 3), (1, 2)):
        if rng.integers(2):
            parts = [t.flip(dim) for t in parts]
            sign[axis] = -1.0
    parts[3] = parts[3] * torch.tensor(sign)[None, :, None, None]
    if rng.integers(2):
        parts = [t.transpose(2, 3) for t in parts]
        parts[3] = parts[3].flip(1)
    return parts
