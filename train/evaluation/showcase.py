"""What the page of pictures needs, gathered while blocks pass by: a few whole blocks, and counts of pixel pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE
from deeplight.train.evaluation.blocks import MARGIN_LR, ScoredBlock
from deeplight.train.evaluation.pixels import logarithm

SHOWN = 4
"""Blocks that are kept as pictures."""
EDGES = np.concatenate([[0.0], np.geomspace(0.02, 2000.0, 79)])
"""Bins of radiance, in its unit; what lies beyond counts in the first and the last."""
PROFILE_HALF = 24
"""HR pixels on each side of a street in a profile."""
_RIDGE_SIGMA = 1.0


@dataclass(frozen=True)
class Picture:
    """One block: name of its place, LR radiance (h, w), truth (8h, 8w), outputs by method, NaN where not scored."""

    place: str
    row: int
    col: int
    lr: Doubles
    truth: Doubles
    outputs: dict[str, Doubles]


@dataclass
class Showcase:
    """The blocks with the most contrast. Once several places are shown, a block only replaces one of its own place."""

    pictures: list[tuple[float, Picture]] = field(default_factory=list)

    def offer(self, place: str, block: ScoredBlock) -> None:
        """Keep the block if it shows more than those held."""
        inner = (slice(MARGIN_LR * SCALE, -MARGIN_LR * SCALE),) * 2
        valid = block.valid[inner]
        if valid.mean() < 0.5:
            return
        # by area too: a strip at a place's edge shows little
        worth = float(np.std(logarithm(block.truth[inner])[valid])) * float(valid.sum())
        weakest = self._rival(place)
        if weakest is not None and self.pictures[weakest][0] >= worth:
            return
        lr = (slice(MARGIN_LR, -MARGIN_LR),) * 2
        hidden = np.where(valid, 0.0, np.nan)
        picture = Picture(
            place,
            block.core.row,
            block.core.col,
            np.where(block.lr_valid[lr], block.lr[lr], np.nan),
            block.truth[inner] + hidden,
            {name: out[inner] + hidden for name, out in block.outputs.items()},
        )
        if weakest is not None:
            del self.pictures[weakest]
        self.pictures = sorted([*self.pictures, (worth, picture)], key=lambda pair: -pair[0])

    def _rival(self, place: str) -> int | None:
        """Index of the picture that a new one of `place` has to beat; None where there is room."""
        same = [i for i, (_, picture) in enumerate(self.pictures) if picture.place == place]
        if same and len({picture.place for _, picture in self.pictures}) > 1:
            return same[-1]
        return len(self.pictures) - 1 if len(self.pictures) >= SHOWN else None


@dataclass
class Clouds:
    """Counts of (truth, output) pairs on EDGES, by method: (bins of truth, bins of output)."""

    counts: dict[str, Doubles] = field(default_factory=dict)

    def add(self, method: str, out: Doubles, truth: Doubles) -> None:
        """Count more pixels. out, truth: (n,) each."""
        bins = len(EDGES) - 1
        at = [np.clip(np.searchsorted(EDGES, v, side="right") - 1, 0, bins - 1) for v in (truth, out)]
        found = np.bincount(at[0] * bins + at[1], minlength=bins * bins).reshape(bins, bins)
        held = self.counts.get(method)
        self.counts[method] = found.astype(np.float64) if held is None else held + found


@dataclass(frozen=True)
class Street:
    """A line of HR pixels across a street-like ridge. points: (n, 2), (row, col). distance: (n,), 0 on the street."""

    points: Doubles
    distance: Doubles


def find_street(truth: Doubles) -> Street | None:
    """Return the line across the brightest ridge of the truth (H, W); None where there is no ridge.

    On a ridge the most negative second derivative of the log radiance is large, and the one along the ridge is small.
    """
    if min(truth.shape) < 3 * PROFILE_HALF:
        return None
    image = _smooth(np.nan_to_num(logarithm(truth)), _RIDGE_SIGMA)
    dy, dx = np.gradient(image)
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    mean, spread = 0.5 * (dxx + dyy), np.hypot(0.5 * (dxx - dyy), dyx)
    across, along = mean - spread, mean + spread
    ridge = np.where(across < 0, -across - 2.0 * np.abs(along), 0.0) * image
    rim = PROFILE_HALF
    inner = ridge[rim:-rim, rim:-rim]
    if not inner.size or inner.max() <= 0:
        return None
    row, col = (int(i) + rim for i in np.unravel_index(int(inner.argmax()), inner.shape))
    # the eigenvector of the most negative curvature points across the ridge
    angle = 0.5 * np.arctan2(2.0 * dyx[row, col], dxx[row, col] - dyy[row, col]) + np.pi / 2
    distance = np.arange(-PROFILE_HALF + 1.0, PROFILE_HALF)
    points = np.stack([row + distance * np.sin(angle), col + distance * np.cos(angle)], axis=1)
    return Street(points, distance)


def along(image: Doubles, street: Street) -> Doubles:
    """Return the values of an image (H, W) on the line, bilinear between pixels."""
    top = np.floor(street.points).astype(int)
    (fr, fc), (r, c) = (street.points - top).T, top.T
    rows, cols = image.shape
    r1, c1 = np.minimum(r + 1, rows - 1), np.minimum(c + 1, cols - 1)
    upper = image[r, c] * (1 - fc) + image[r, c1] * fc
    lower = image[r1, c] * (1 - fc) + image[r1, c1] * fc
    return np.asarray(upper * (1 - fr) + lower * fr)


def _smooth(image: Doubles, sigma: float) -> Doubles:
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        image = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return image
