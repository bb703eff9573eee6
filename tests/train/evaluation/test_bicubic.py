"""The baseline: Keys' formula with a = −0.5, as the picture beside a map and the network's base have it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.output import quicklook
from deeplight.kernels.agree.reference import enlarged
from deeplight.train.evaluation.bicubic import bicubic

LR = np.random.default_rng(0).lognormal(0.0, 1.0, (7, 9))


def keys(t: float) -> float:
    """Keys (1981), equation 15, with a = −0.5."""
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def plain(lr: np.ndarray) -> np.ndarray:
    """Pixel by pixel; an LR pixel beyond the edge is the one at the edge."""
    h, w = lr.shape
    out = np.zeros((8 * h, 8 * w))
    for row in range(8 * h):
        for col in range(8 * w):
            y, x = (row + 0.5) / 8 - 0.5, (col + 0.5) / 8 - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = lr[min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
                    out[row, col] += keys(abs(y - i)) * keys(abs(x - j)) * value
    return np.maximum(out, 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    """Within a few roundings of the dtype at values of up to about 10."""
    found = bicubic(torch.from_numpy(LR)[None, None].to(dtype))
    assert found.dtype == dtype and found.shape == (1, 1, 56, 72)
    np.testing.assert_allclose(found[0, 0].numpy(), plain(LR), rtol=0, atol=tolerance)
    assert plain(LR).min() == 0.0, "the cut at 0 must be at work"


def test_the_picture_and_the_network_s_base_begin_with_the_same() -> None:
    """The picture's is Pillow's, which at the edge weighs only the pixels that there are."""
    lr = torch.from_numpy(LR.astype(np.float32))[None, None]
    inner = np.s_[16:-16, 16:-16]
    shown = quicklook.bicubic(LR.astype(np.float32))
    np.testing.assert_allclose(bicubic(lr)[0, 0].numpy()[inner], shown[inner], rtol=0, atol=1e-5)
    model = DeepLightSR(ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8))
    assert torch.equal(enlarged(lr, model.cubic_line).clamp(min=0.0), bicubic(lr))
