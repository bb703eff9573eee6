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


def even_errors(
    model: DeepLightSR, batch: Batch, across: MeanOverProcesses, *, holds_sums: bool
) -> tuple[Tensor, Tensor]:
    """Return how uneven even lights become without layers, as shares of them (RMS, then the mean over scenes; two
    scalars). The scenes are as bright as each window of the batch in the mean (what is not known counts as 0 there),
    and as its brightest LR pixel, but neither darker than _DARKEST nor brighter than _BRIGHTEST.

    The first compares the 8×8 places within an LR pixel with their mean. What refines an LR pixel has weights of its
    own for each place in it, and their differences would remain as a pattern with a period of 8 pixels. Among varied
    windows it is too faint to be unlearnt.

    The second is of lights that end at nodata on one side: the pixels of the LR pixels beside it are compared with the
    level. Coasts, beyond which there is less light, teach a network to dim whatever ends at a border.
    """
    levels = _levels(batch.inputs[0])
    scenes = len(levels)
    side = 2 * _RIM + _INNER
    given = {spec.name: levels.new_zeros(input_shape(spec, 2 * scenes, side, side)) for spec in INPUTS}
    given["psf"], given["limits"] = (x.repeat(4, 1) for x in batch.inputs[-2:])
    cut = _cut(levels + given["psf"][:scenes].sum(dim=1), side)
    given["ntl_valid"] += torch.cat([torch.ones_like(cut), cut])
    given["ntl"] += levels.repeat(2)[:, None, None, None] * given["ntl_valid"]
    given["limits"][:, 0] = -1.0  # no level at which they would saturate
    unmoved = levels.new_zeros(2 * scenes, 2, side, side)
    found = model.predict(*given.values(), known_offset=unmoved, holds_sums=holds_sums)
    inner = slice(_RIM * SCALE, -_RIM * SCALE)
    radiance = model.normalise.radiance(found.ntl[-1].float())[:, 0, inner, inner]
    places = radiance[:scenes].reshape(-1, _INNER, SCALE, _INNER, SCALE).mean(dim=(1, 3))
    uncut = places / places.mean(dim=(1, 2), keepdim=True) - 1.0
    beside = radiance[scenes:] / levels[:, None, None] - 1.0
    return _mean_rms(uncut, across), _mean_rms(beside, across)


def _mean_rms(share: Tensor, across: MeanOverProcesses) -> Tensor:
    each = share.square().mean(dim=(1, 2)).add(1e-12).sqrt()
    return weighted_mean(each, torch.ones_like(each), across)


def _cut(numbers: Tensor, side: int) -> Tensor:
    """Validity (N,1,side,side) with nothing behind what is looked at, on one of the four sides: which one, the digits
    of `numbers` (N,) decide, so that it does not depend on the other scenes of a batch, nor on how many processes
    share it."""
    valid = numbers.new_ones(1, side, side)
    valid[..., -_RIM:] = 0.0
    four = torch.stack([valid.rot90(turn, (1, 2)) for turn in range(4)])
    return four[(1e3 * numbers.double()).floor().long() % 4]


def _levels(ntl: Tensor) -> Tensor:
    """(2B,): the mean of the lights (B,1,h,w) of each window, then the largest of each."""
    return torch.cat([ntl.mean(dim=(1, 2, 3)), ntl.amax(dim=(1, 2, 3))]).clamp(_DARKEST, _BRIGHTEST)
