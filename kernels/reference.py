"""Plain PyTorch definitions of the operations. Everything faster is tested against these.

All tensors are NCHW. Nothing here depends on where a tile lies in its scene: positions enter as integers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_BOUND = 4.0
"""Modality logits are bounded softly to ±4, so that exp() needs no running maximum and stays inside fp16."""

MASK_EPSILON = 1e-3
"""Added to the softmax's denominator: weights fade to 0, continuously, where every modality is missing."""


def resample_offset(x: Tensor, offset: Tensor) -> Tensor:
    """Bilinear sample of `x` at p + offset(p), clamped to the image.

    x: (B, C, H, W). offset: (B, 2, H, W), (x, y) in pixels of `x`. Returns (B, C, H, W).

    The offset is split into integer and fraction *before* the pixel position is added: the fraction then has the
    same bits wherever the tile lies, which normalised coordinates (grid_sample) do not give. Reading through
    index_select on rows of C values exports to one ONNX Gather a tap.
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
    # not torch.lerp: it exports to ONNX with a Where on t < 0.5, three passes more
    return a + (b - a) * t


def fuse(
    main: Tensor,
    aux: Sequence[Tensor],
    masks: Sequence[Tensor],
    query_aux: Tensor,
    query_main: Tensor,
    query_bias: Tensor,
    film_weight: Tensor,
    film_bias: Tensor,
) -> Tensor:
    """Auxiliary-to-main fusion: masked softmax over the modalities, mixing, pointwise γ and β, modulation.

    main: (B, C, H, W). aux: M tensors (B, A, H, W). masks: M tensors (B, 1, H, W) in [0, 1].
    query_aux: (M, A), query_main: (M, C), query_bias: (M,). film_weight: (2C, A), film_bias: (2C,).

        l_m = 4·tanh((query_aux_m · aux_m + query_main_m · main + query_bias_m) / 4)
        w_m = mask_m·exp(l_m) / (Σ_k mask_k·exp(l_k) + ε)
        γ, β = film_weight · Σ_m w_m·aux_m + film_bias
        out = main·(1 + γ) + β

    A missing modality (mask 0) has weight exactly 0.
    """
    main_logits = F.conv2d(main, query_main[:, :, None, None], query_bias)
    gates: list[Tensor] = []
    for m, (features, mask) in enumerate(zip(aux, masks, strict=True)):
        logit = F.conv2d(features, query_aux[m][None, :, None, None]) + main_logits[:, m : m + 1]
        gates.append(mask * torch.exp(LOGIT_BOUND * torch.tanh(logit * (1.0 / LOGIT_BOUND))))
    scale = 1.0 / (reduce(torch.add, gates) + MASK_EPSILON)
    mixed = reduce(torch.add, [(gate * scale) * features for gate, features in zip(gates, aux, strict=True)])
    c = main.shape[1]
    gain = F.conv2d(mixed, film_weight[:c, :, None, None], film_bias[:c] + 1.0)  # 1 + γ
    beta = F.conv2d(mixed, film_weight[c:, :, None, None], film_bias[c:])
    return main * gain + beta


def upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """×2: 3×3 convolution to 4·C channels, ReLU, PixelShuffle.

    x: (B, K, H, W). weight: (4C, K, 3, 3). bias: (4C,). Returns (B, C, 2H, 2W).
    """
    return F.pixel_shuffle(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)


def interpolation_kernel(factor: int, kind: str) -> Tensor:
    """Weights (factor², 1, K, K) that make `resize_fixed` a half-pixel-centred interpolation by `factor`.

    kind: "linear" (K = 3) or "cubic" (K = 5; Keys 1981 with a = −0.75, as PyTorch's and OpenCV's bicubic).
    """
    taps = {"linear": 3, "cubic": 5}[kind]
    radius = taps // 2
    line = torch.zeros(factor, taps, dtype=torch.float64)
    for phase in range(factor):
        centre = (phase + 0.5) / factor - 0.5
        for k in range(taps):
            line[phase, k] = (
                _keys(centre - (k - radius)) if kind == "cubic" else max(0.0, 1 - abs(centre - (k - radius)))
            )
    square = torch.einsum("ai,bj->abij", line, line)
    return square.reshape(factor * factor, 1, taps, taps).float()


def _keys(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def resize_fixed(x: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """Interpolate by an integer factor: edge padding, grouped convolution with `kernel`, PixelShuffle.

    x: (B, C, H, W). kernel: from `interpolation_kernel`. Returns (B, C, factor·H, factor·W). Equal to
    F.interpolate(align_corners=False) away from rounding; ONNX Runtime runs this form many times faster.
    """
    c = x.shape[1]
    radius = kernel.shape[-1] // 2
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernel.repeat(c, 1, 1, 1), groups=c), factor)
