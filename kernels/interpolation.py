"""Interpolation whose results do not depend on where a tile lies: positions are integers only. All tensors are NCHW."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 8
"""HR pixels per LR pixel along each axis."""


def resample_offset(x: Tensor, offset: Tensor) -> Tensor:
    """Bilinear sample of `x` at p + offset(p), clamped to the image.

    x: (B, C, H, W). offset: (B, 2, H, W), (x, y) in pixels of `x`. Returns (B, C, H, W).

    The offset is split into integer and fraction *before* the pixel position is added. So the fraction has the same
    bits wherever the tile lies, which is not so with normalised coordinates (grid_sample). Pixels are read by
    index_select as rows of C values, which becomes one ONNX Gather for each of the four neighbours.
    """
    b, c, h, w = x.shape
    floor = torch.floor(offset)
    frac = offset - floor
    whole = floor.to(torch.int64)
    col = torch.arange(w, device=x.device)[None, None, :] + whole[:, 0]
    row = torch.arange(h, device=x.device)[None, :, None] + whole[:, 1]
    first = torch.arange(b, device=x.device)[:, None, None] * (h * w)
    col0, col1 = col.clamp(0, w - 1), (col + 1).clamp(0, w - 1)
    row0 = first + row.clamp(0, h - 1) * w
    row1 = first + (row + 1).clamp(0, h - 1) * w
    pixels = x.permute(0, 2, 3, 1).reshape(b * h * w, c)

    def tap(r: Tensor, q: Tensor) -> Tensor:
        return pixels.index_select(0, (r + q).reshape(-1)).reshape(b, h, w, c)

    fx = frac[:, 0, :, :, None].to(x.dtype)
    fy = frac[:, 1, :, :, None].to(x.dtype)
    top = _lerp(tap(row0, col0), tap(row0, col1), fx)
    bottom = _lerp(tap(row1, col0), tap(row1, col1), fx)
    return _lerp(top, bottom, fy).permute(0, 3, 1, 2)


def _lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    # not torch.lerp, whose ONNX form selects by t < 0.5, which takes three more passes over memory
    return a + (b - a) * t


def sample(x: Tensor, offset: Tensor) -> Tensor:
    """`x` (B, C, 8h, 8w) at p + 8·offset(p), with `offset` (B, 2, h, w) in LR pixels interpolated linearly."""
    kernel = _linear_on_gpu(offset) if offset.is_cuda else interpolation_kernel(SCALE, "linear").to(offset)
    return resample_offset(x, resize_fixed(offset * float(SCALE), kernel, SCALE))


def _linear_on_gpu(like: Tensor) -> Tensor:
    """`interpolation_kernel(SCALE, "linear")` made where `like` is: a CUDA graph cannot hold a copy from the host. All
    numbers are multiples of 2⁻⁸, so that no order of operations rounds."""
    along = torch.arange(SCALE, device=like.device) / SCALE + (0.5 / SCALE - 0.5)
    taps = torch.arange(3, device=like.device) - 1
    line = (1 - (along[:, None] - taps).abs()).clamp(min=0)
    return (line[:, None, :, None] * line[:, None]).reshape(SCALE**2, 1, 3, 3).to(like.dtype)


def interpolation_kernel(factor: int, kind: str) -> Tensor:
    """Weights (factor², 1, K, K) that make `resize_fixed` a half-pixel-centred interpolation by `factor`.

    kind: "linear" (K = 3) or "cubic" (K = 5; Keys 1981 with a = −0.75, as PyTorch's and OpenCV's bicubic).
    """
    taps = {"linear": 3, "cubic": 5}[kind]
    weight = _keys if kind == "cubic" else _hat
    centres = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    lines = [[weight(centre - (k - taps // 2)) for k in range(taps)] for centre in centres]
    squares = [[[[a * b for b in across] for a in down]] for down in lines for across in lines]
    return torch.tensor(squares, dtype=torch.float32)


def interpolation_line(factor: int, kind: str) -> Tensor:
    """Weights (factor, K) of the same interpolations along one axis, except that "cubic" has a = −0.5 (Keys 1981)."""
    taps = {"linear": 3, "cubic": 5}[kind]
    centres = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    weight = (lambda x: _keys(x, -0.5)) if kind == "cubic" else _hat
    return torch.tensor(
        [[weight(centre - (k - taps // 2)) for k in range(taps)] for centre in centres], dtype=torch.float32
    )


def _hat(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _keys(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def resize_fixed(x: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """Interpolate by an integer factor, with edge padding, a grouped convolution with `kernel`, and PixelShuffle.

    x: (B, C, H, W). kernel: from `interpolation_kernel`. Returns (B, C, factor·H, factor·W). The result is
    that of F.interpolate(align_corners=False) but for rounding; ONNX Runtime runs this form many times faster.
    """
    c = x.shape[1]
    radius = kernel.shape[-1] // 2
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernel.repeat(c, 1, 1, 1), groups=c), factor)
