"""Augmentation of one sample. Its random numbers come from the caller, so a sample is the same whoever makes it."""

from __future__ import annotations

import numpy as np
import torch

from deeplight.engine.core.spec import SCALE
from deeplight.train.fit.config import AugmentConfig, VarietyConfig
from deeplight.train.fit.parts import Parts
from deeplight.train.fit.variety import Other, gaps, varied

_LAYERS = (("ntl", "ntl_valid"), ("dmo", "dmo_valid"), ("dem", "dem_valid"))


def turned(parts: Parts, flip_x: bool, flip_y: bool, transpose: bool) -> Parts:
    """Apply one of the eight symmetries of the square to the last two axes (y, x) of every part that has them.

    The components (x, y) of `offset`, on axis −3, turn with the image, and so does `psf`, of rows and columns.
    """
    dims = [-1] * flip_x + [-2] * flip_y
    out = {name: p.flip(dims) if dims and p.ndim > 2 else p for name, p in parts.items()}
    if "offset" in out:
        sign = torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0])
        out["offset"] = out["offset"] * sign[:, None, None]
    if transpose:
        out = {name: p.transpose(-2, -1) if p.ndim > 2 else p for name, p in out.items()}
        if "psf" in out:
            out["psf"] = out["psf"].flip(-1)
        if "offset" in out:
            out["offset"] = out["offset"].flip(-3)
    return out


def augmented(
    parts: Parts,
    config: AugmentConfig,
    rng: np.random.Generator,
    variety: VarietyConfig | None = None,
    other: Other = lambda: None,
) -> Parts:
    """Change a window: symmetry, another world, brightness, elevation, a cut-out country, missing layers, holes.

    other: see variety.varied.
    """
    turn, flips = rng.random() < config.turn, rng.integers(2, size=3)
    out = turned(parts, *(bool(f) for f in flips)) if turn else dict(parts)
    if variety is not None:
        out = varied(out, variety, rng, other)
        for value, mask in _LAYERS:
            if rng.random() < variety.gaps and bool(out[mask].any()):
                out[mask] = gaps(out[mask], rng)
                out[value] = out[value] * out[mask]
    gain = float(2.0 ** rng.uniform(-config.gain_octaves, config.gain_octaves))
    out["ntl"], out["ntl_hr"] = out["ntl"] * gain, out["ntl_hr"] * gain
    out["limits"] = out["limits"] * gain  # what is negative stays so: unknown
    out["dem"] = (out["dem"] + float(rng.uniform(*config.dem_shift))) * out["dem_valid"]
    if rng.random() < config.cut:
        _cut(out, rng)
    _drop(out, config, rng)
    return out


def _cut(parts: Parts, rng: np.random.Generator) -> None:
    """Zero NTL and truth beyond a random line, in whole LR pixels; in place."""
    h, w = parts["ntl"].shape[1:]
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * min(h, w)
    x = torch.arange(w, dtype=torch.float32) - (w - 1) / 2
    y = torch.arange(h, dtype=torch.float32) - (h - 1) / 2
    kept = (x[None, :] * np.cos(angle) + y[:, None] * np.sin(angle) < shift).float()
    parts["ntl"] = parts["ntl"] * kept
    parts["ntl_hr"] = parts["ntl_hr"] * kept.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)


def _drop(parts: Parts, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Modality and band dropout, and rectangular holes; in place. Holes in the NTL carry no loss."""
    both = rng.random() < config.drop_both
    if both or rng.random() < config.drop_dmo:
        _clear(parts, "dmo", "dmo_valid", "dmo_bands")
    elif rng.random() < config.drop_bands:
        parts["dmo_bands"] = parts["dmo_bands"] * torch.from_numpy((rng.random(7) < 0.7).astype(np.float32))
        parts["dmo"] = parts["dmo"] * parts["dmo_bands"][:, None, None]
    if both or rng.random() < config.drop_dem:
        _clear(parts, "dem", "dem_valid")
    for value, mask in _LAYERS:
        if rng.random() < config.hole:
            _hole(parts, value, mask, rng)
    parts["weight"] = parts["weight"] * parts["ntl_valid"]


def _clear(parts: Parts, *names: str) -> None:
    for name in names:
        parts[name] = torch.zeros_like(parts[name])


def _hole(parts: Parts, value: str, mask: str, rng: np.random.Generator) -> None:
    rows, cols = parts[mask].shape[1:]
    h, w = int(rng.integers(1, max(2, rows // 3))), int(rng.integers(1, max(2, cols // 3)))
    r, c = int(rng.integers(0, rows - h)), int(rng.integers(0, cols - w))
    parts[mask] = parts[mask].clone()
    parts[mask][:, r : r + h, c : c + w] = 0
    parts[value] = parts[value] * parts[mask]
