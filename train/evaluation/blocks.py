"""One block of a place, scored: everything comes out as sums, so that blocks add up to places and these to a result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, to_hr
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.evaluation.image import (
    border_jumps,
    piqe_fixed,
    residual_shift,
    ssim_map,
    whole_windows,
)
from deeplight.train.evaluation.pixels import FIELDS, logarithm, pixel_sums
from deeplight.train.evaluation.strata import STRATA, Strata

TRUTH = "truth"
"""Row of the truth itself, in the metrics that need none."""
MARGIN_LR = 1
"""LR pixels around a block's core that its arrays cover too."""
_MARGIN = MARGIN_LR * SCALE
_MOSTLY = 0.9
"""Share of a block that must be valid for a shift to be looked for."""

Mask = NDArray[np.bool_]
Sums = dict[str, Doubles]
"""Name → sums, the first axis being the methods. See `empty`."""


@dataclass(frozen=True)
class ScoreSettings:
    """How blocks are scored. data_range: of PSNR and SSIM, in the unit of the radiance; PIQE sees it as white.

    strata: see Strata. block: side of a block in LR pixels.
    """

    data_range: float = 200.0
    strata: Strata = field(default_factory=Strata)
    block: int = 32


@dataclass(frozen=True)
class ScoredBlock:
    """A part of a place that is scored: its core and MARGIN_LR LR pixels around it. core: in LR pixels of the place.

    lr, lr_valid: (h + 2, w + 2). truth, valid: (8(h + 2), 8(w + 2)), valid where the truth and every output is.
    outputs: method → the same shape. tile_rows, tile_cols: for each LR row and column of the core, whether one of the
    tiles begins there in which the outputs were computed.
    """

    core: Window
    lr: Doubles
    lr_valid: Mask
    truth: Doubles
    valid: Mask
    outputs: dict[str, Doubles]
    tile_rows: list[bool]
    tile_cols: list[bool]


def empty(methods: int) -> Sums:
    """Return sums over no pixel, (M, …) for M methods; piqe and reaggregation have one row more, for the truth.

    pixels: (M, strata, FIELDS). ssim: (M, strata, 3), Σ SSIM, Σ SSIM of log1p, pixels. lit: (M, 2), pixels that are lit
    in both, in either. piqe: Σ, blocks. shift: Σ x, Σ y, Σ length in HR pixels, blocks. reaggregation: LR pixels,
    Σ (mean − LR)², Σ mean, Σ LR. seams: see border_jumps. counts: (1, 2), HR pixels scored, and in the block.
    blocks: (M, 2), Σ |relative error of the sum of lights|, lit blocks.
    """
    shapes = {
        "pixels": (methods, len(STRATA), len(FIELDS)),
        "ssim": (methods, len(STRATA), 3),
        "lit": (methods, 2),
        "piqe": (methods + 1, 2),
        "shift": (methods, 4),
        "reaggregation": (methods + 1, 4),
        "seams": (methods, 6),
        "counts": (1, 2),
        "blocks": (methods, 2),
    }
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def score_block(block: ScoredBlock, settings: ScoreSettings, with_piqe: bool) -> Sums:
    """Return the sums of one block."""
    core = (slice(_MARGIN, -_MARGIN),) * 2
    sums = empty(len(block.outputs))
    masks = block_masks(block, settings.strata)[:, *core]
    truth, valid = block.truth[core], block.valid[core]
    whole = whole_windows(block.valid)[core] & masks
    sums["counts"][0] = valid.sum(), valid.size
    for m, out in enumerate(block.outputs.values()):
        sums["pixels"][m] = pixel_sums(out[core], truth, masks)
        sums["ssim"][m] = _ssim_sums(out, block.truth, whole, core, settings.data_range)
        lit = [(a > settings.strata.lit) & valid for a in (out[core], truth)]
        sums["lit"][m] = (lit[0] & lit[1]).sum(), (lit[0] | lit[1]).sum()
        sums["shift"][m] = _shift_sums(out[core], truth, valid, settings.strata.lit)
        sums["blocks"][m] = _total_error(sums["pixels"][m, 0], settings.strata.lit)
        tiles = (block.tile_rows, block.tile_cols)
        sums["seams"][m] = border_jumps(out, block.valid, _MARGIN, tiles)
    for m, out in enumerate([*block.outputs.values(), block.truth]):
        sums["reaggregation"][m] = _reaggregation(out[core], valid, block, settings.strata)
        if with_piqe and valid.all():
            value = piqe_fixed(logarithm(out[core]) / np.log1p(settings.data_range))
            sums["piqe"][m] = (value, 1.0) if np.isfinite(value) else (0.0, 0.0)
    return sums


def block_masks(block: ScoredBlock, strata: Strata) -> Mask:
    """Return which HR pixels of a block, margin included, are of which stratum: (4, 8(h + 2), 8(w + 2))."""
    lr = to_hr(block.lr)
    return strata.masks(block.truth, lr, block.valid)


def _ssim_sums(
    out: Doubles, truth: Doubles, masks: Mask, core: tuple[slice, slice], data_range: float
) -> Doubles:
    """(strata, 3). Where a window is not valid as a whole its similarity is not looked at."""
    plain = ssim_map(out, truth, data_range)[core]
    log = ssim_map(logarithm(out), logarithm(truth), float(np.log1p(data_range)))[core]
    return np.array([[plain[mask].sum(), log[mask].sum(), mask.sum()] for mask in masks])


def _shift_sums(out: Doubles, truth: Doubles, valid: Mask, lit: float) -> tuple[float, ...]:
    """Only where there is light and hardly a hole, which takes the mean. Of log1p, since lamps outshine streets."""
    if valid.mean() < _MOSTLY or truth[valid].mean() <= lit:
        return (0.0,) * 4
    images = [np.where(valid, logarithm(a), logarithm(a)[valid].mean()) for a in (out, truth)]
    found = residual_shift(images[0], images[1])
    return (0.0,) * 4 if found is None else (*found, float(np.hypot(*found)), 1.0)


def _total_error(sums: Doubles, lit: float) -> tuple[float, float]:
    """|Σ output / Σ truth − 1| of a block whose mean truth is lit; a dark block has no total to speak of."""
    n, truth, out = sums[0], sums[1], sums[3]
    return (abs(out / truth - 1.0), 1.0) if n and truth / n > lit else (0.0, 0.0)


def _reaggregation(out: Doubles, valid: Mask, block: ScoredBlock, strata: Strata) -> tuple[float, ...]:
    """Block means against the LR input, where the LR pixel is valid, not saturated, and its HR pixels are all valid."""
    inner = (slice(MARGIN_LR, -MARGIN_LR),) * 2
    h, w = (n // SCALE for n in out.shape)
    lr = block.lr[inner]
    full = valid.reshape(h, SCALE, w, SCALE).all(axis=(1, 3))
    good = full & block.lr_valid[inner] & (lr < strata.ceiling)
    means = out.reshape(h, SCALE, w, SCALE).mean(axis=(1, 3))[good]
    return (
        float(good.sum()),
        float(((means - lr[good]) ** 2).sum()),
        float(means.sum()),
        float(lr[good].sum()),
    )
