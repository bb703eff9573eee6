"""Even lights: what a network makes of them is known without any data."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.batch import Batch
from deeplight.train.fit.losses import MeanOverProcesses, weighted_mean

_RIM, _INNER = 6, 3
"""LR pixels around, from where edges change the pattern by 2 % of itself at most (8 pixels: not at all, but a
scene is 1.6 times as large then), and those that are looked at."""
_DARKEST, _BRIGHTEST = 0.3, 300.0
"""nW/cm²/sr."""


def pattern_error(model: DeepLightSR, batch: Batch, across: MeanOverProcesses, *, holds_sums: bool) -> Tensor:
    """Return how far the 8×8 places within an LR pixel are from their mean, as a share of it (RMS, then the mean over
    windows; a scalar), on even lights without layers: as bright as each window of the batch in the mean (what is not
    known counts as 0 there), and as its brightest LR pixel, but neither darker than _DARKEST nor brighter than
    _BRIGHTEST.

    What refines an LR pixel has weights of its own for each place in it, and their differences would remain as a
    pattern with a period of 8 pixels. Among varied windows it is too faint to be unlearnt.
    """
    levels = _levels(batch.inputs[0])
    side = 2 * _RIM + _INNER
    given = {spec.name: levels.new_zeros(input_shape(spec, len(levels), side, side)) for spec in INPUTS}
    given["ntl"] += levels[:, None, None, None]
    given["ntl_valid"] += 1.0
    given["psf"], given["limits"] = (x.repeat(2, 1) for x in batch.inputs[-2:])
    given["limits"][:, 0] = -1.0  # no level at which they would saturate
    unmoved = levels.new_zeros(len(levels), 2, side, side)
    found = model.predict(*given.values(), known_offset=unmoved, holds_sums=holds_sums)
    inner = slice(_RIM * SCALE, -_RIM * SCALE)
    radiance = model.normalise.radiance(found.ntl[-1].float())[:, 0, inner, inner]
    places = radiance.reshape(-1, _INNER, SCALE, _INNER, SCALE).mean(dim=(1, 3))
    uneven = places / places.mean(dim=(1, 2), keepdim=True) - 1.0
    each = uneven.square().mean(dim=(1, 2)).add(1e-12).sqrt()
    return weighted_mean(each, torch.ones_like(each), across)


def _levels(ntl: Tensor) -> Tensor:
    """(2B,): the mean of the lights (B,1,h,w) of each window, then the largest of each."""
    return torch.cat([ntl.mean(dim=(1, 2, 3)), ntl.amax(dim=(1, 2, 3))]).clamp(_DARKEST, _BRIGHTEST)
