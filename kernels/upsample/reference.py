"""Plain PyTorch definition of the ×2 upsampling. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """Upsample by 2: a 3×3 convolution to 4·C channels, ReLU, PixelShuffle, then the addition of `skip`.

    x: (B, K, H, W). weight: (4C, K, 3, 3). bias: (4C,). skip: (B, C, 2H, 2W). Returns (B, C, 2H, 2W).
    """
    out = F.pixel_shuffle(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
    return out if skip is None else out + skip
