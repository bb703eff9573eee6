"""Plain PyTorch definitions of the operations. Everything faster is tested against these.

All tensors are NCHW. Nothing here depends on where a tile lies in its scene: positions enter as integers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

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
        logit = logit.to(torch.promote_types(main.dtype, torch.float32))
        gates.append(mask * torch.exp(LOGIT_BOUND * torch.tanh(logit * (1.0 / LOGIT_BOUND))))
    scale = 1.0 / (reduce(torch.add, gates) + MASK_EPSILON)
    weights = [(gate * scale).to(main.dtype) for gate in gates]
    mixed = reduce(torch.add, [weight * features for weight, features in zip(weights, aux, strict=True)])
    c = main.shape[1]
    gain = F.conv2d(mixed, film_weight[:c, :, None, None], film_bias[:c] + 1.0)  # 1 + γ
    beta = F.conv2d(mixed, film_weight[c:, :, None, None], film_bias[c:])
    return main * gain + beta


def upsample(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """×2: 3×3 convolution to 4·C channels, ReLU, PixelShuffle, then + skip.

    x: (B, K, H, W). weight: (4C, K, 3, 3). bias: (4C,). skip: (B, C, 2H, 2W). Returns (B, C, 2H, 2W).
    """
    out = F.pixel_shuffle(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
    return out if skip is None else out + skip


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
    """Interpolate by an integer factor: edge padding, grouped convolution with `kernel`, PixelShuffle.

    x: (B, C, H, W). kernel: from `interpolation_kernel`. Returns (B, C, factor·H, factor·W). Equal to
    F.interpolate(align_corners=False) away from rounding; ONNX Runtime runs this form many times faster.
    """
    c = x.shape[1]
    radius = kernel.shape[-1] // 2
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernel.repeat(c, 1, 1, 1), groups=c), factor)


SCALE = 8
"""HR pixels per LR pixel along each axis."""

HALF = 0.499999
"""Sum of weights from which a resampled pixel is valid: one half, less the rounding of four float32 weights."""


class Mesh(NamedTuple):
    """Where the HR pixels of a tile lie in a raster on its own grid: nodes every `step` HR pixels, bilinear between.

    whole: (B, 2, N, M) int32 and fraction: (B, 2, N, M) float32: [:, 0] rows and [:, 1] columns of the nodes; their
    sum k.0 is the centre of source pixel k. Integer and fraction are apart, so that a pixel's coordinate has the
    same bits in every tile and source window. A fraction of NaN marks a place that the projection does not know.
    row, col: HR pixel (relative to the tile, ≤ 0) of the first node. step: HR pixels between nodes.
    """

    whole: Tensor
    fraction: Tensor
    row: int
    col: int
    step: int


def split_nodes(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """float64 coordinates → (int32 whole, float32 fraction in [0, 1]), 0 and NaN where they are not finite or beyond
    2³⁰, so that differences of wholes stay in 32 bits."""
    known = nodes.abs() < 2.0**30
    whole = torch.floor(torch.where(known, nodes, 0.0))
    return whole.to(torch.int32), torch.where(known, nodes - whole, torch.nan).to(torch.float32)


def align(
    raw: Tensor,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    offset: Tensor | None = None,
    mesh: Mesh | None = None,
    size: tuple[int, int] | None = None,
    bounds: tuple[float, float] = (-4.0, 8.0),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Raw pixels → normalised features on the HR grid, moved by the offset field.

    raw: (B, R, h, w), any real dtype, of which the first C ≤ R bands are used. gain, bias: (B, C), file units to
    normalised units; None: all bands are normalised already and stay as they are. mask: (B, 1, h, w), nonzero =
    valid. offset: (B, 2, H/8, W/8), (x, y) in LR pixels.
    size: (H, W), by default (h, w). bounds: the range of normalised values, with 0 in it.

        r(q), v(q) = raw and mask at HR pixel q: of the same pixel, or through `mesh` Σ w m raw / Σ w m over the four
                     neighbours and (Σ w m ≥ ½), v = 0 outside the raster
        n(q) = clip(gain·r(q) + bias, bounds) · v(q)
        out(p) = bilinear sample of [n, v] at p + 8·(offset, interpolated linearly), taps clamped to the tile

    Returns (B, C + 1, H, W), the last channel being v; without mask and mesh (B, C, H, W). Computed in raw's dtype
    where that is floating, else in float32, and returned in `dtype`, by default the same.
    """
    c = raw.shape[1] if gain is None else gain.shape[1]
    work = raw.dtype if raw.dtype.is_floating_point else torch.float32
    values = raw[:, :c].to(work)
    valid = None if mask is None else (mask != 0).to(work)
    if mesh is not None:
        valid = torch.ones_like(values[:, :1]) if valid is None else valid
        values, valid = _through_mesh(values, valid, mesh, size or (raw.shape[2], raw.shape[3]))
    elif valid is not None:
        values = torch.where(valid != 0, values, torch.zeros_like(values))
    out = values
    if gain is not None and bias is not None:
        out = (values * gain[:, :, None, None] + bias[:, :, None, None]).to(work).clamp(*bounds)
    if valid is not None:
        out = torch.cat([out * valid, valid], dim=1)
    out = out if offset is None else sample(out, offset)
    return out if dtype is None else out.to(dtype)


def sample(x: Tensor, offset: Tensor) -> Tensor:
    """`x` (B, C, 8h, 8w) at p + 8·offset(p), with `offset` (B, 2, h, w) in LR pixels interpolated linearly."""
    kernel = interpolation_kernel(SCALE, "linear").to(offset)
    return resample_offset(x, resize_fixed(offset * float(SCALE), kernel, SCALE))


def _through_mesh(values: Tensor, valid: Tensor, mesh: Mesh, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Masked bilinear at the mesh's coordinates: (B, C, H, W), 0 where invalid, and (B, 1, H, W)."""
    b, _, h, w = values.shape
    row, row_fraction = _place(mesh, 0, size)
    col, col_fraction = _place(mesh, 1, size)
    known = torch.isfinite(row_fraction) & torch.isfinite(col_fraction)
    known &= (row >= -1) & (row < h) & (col >= -1) & (col < w)
    batch = torch.arange(b, device=values.device)[:, None, None]
    total = torch.zeros_like(row_fraction)
    summed = torch.zeros((b, *size, values.shape[1]), dtype=values.dtype, device=values.device)
    for i, wi in ((row, 1 - row_fraction), (row + 1, row_fraction)):
        for j, wj in ((col, 1 - col_fraction), (col + 1, col_fraction)):
            there = known & (i >= 0) & (i < h) & (j >= 0) & (j < w)
            at = (batch, i.clamp(0, h - 1), j.clamp(0, w - 1))
            there &= valid[:, 0][at] != 0
            weight = torch.where(there, wi * wj, 0.0)
            total = total + weight
            tap = values.permute(0, 2, 3, 1)[at]
            summed = summed + weight.to(values.dtype)[..., None] * torch.where(there[..., None], tap, 0.0)
    found = total >= HALF
    out = torch.where(
        found[..., None], summed / torch.where(found, total, 1.0)[..., None].to(values.dtype), 0.0
    )
    return out.permute(0, 3, 1, 2), found[:, None].to(values.dtype)


def _place(mesh: Mesh, axis: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Source coordinates of every HR pixel along one axis: (B, H, W) whole and fraction (NaN where unknown)."""
    device = mesh.whole.device
    cells = [
        torch.arange(length, device=device) - first
        for length, first in zip(size, (mesh.row, mesh.col), strict=True)
    ]
    i, j = cells[0][:, None] // mesh.step, cells[1][None, :] // mesh.step
    dtype = mesh.fraction.dtype
    u = ((cells[0] % mesh.step).to(dtype) / mesh.step)[:, None]
    v = ((cells[1] % mesh.step).to(dtype) / mesh.step)[None, :]
    whole, fraction = mesh.whole[:, axis].long(), mesh.fraction[:, axis]
    base = whole[:, i, j]

    def node(di: int, dj: int) -> Tensor:
        return (whole[:, i + di, j + dj] - base).to(dtype) + fraction[:, i + di, j + dj]

    left = node(0, 0) + u * (node(1, 0) - node(0, 0))
    right = node(0, 1) + u * (node(1, 1) - node(0, 1))
    relative = left + v * (right - left)
    floor = torch.floor(relative)
    return base + torch.nan_to_num(floor).long(), relative - floor


@dataclass(frozen=True)
class Finish:
    """How normalised NTL becomes output pixels.

    unit, gain, ceiling: radiance = unit·expm1(gain·n), clamped to [0, ceiling]. crop: HR pixels of halo cut from each
    side. dtype: "float32", or "uint16" for round((radiance − offset) / scale), clamped beside `nodata` (0 or 65535).
    """

    unit: float = 1.0
    gain: float = 2.0
    ceiling: float = 1e6
    crop: int = 0
    dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint16"):
            raise ValueError(f"dtype must be 'float32' or 'uint16', not {self.dtype!r}")
        if self.dtype == "uint16" and self.nodata not in (0, 65535):
            raise ValueError(f"nodata of uint16 must be 0 or 65535, not {self.nodata}")
        if not (self.unit > 0 and self.gain > 0 and self.ceiling > 0 and self.scale > 0 and self.crop >= 0):
            raise ValueError(f"unit, gain, ceiling and scale must be above 0 and crop at least 0: {self}")

    @property
    def top(self) -> float:
        """log1p of the ceiling in units: where the argument of expm1 is clamped."""
        return math.log1p(self.ceiling / self.unit)

    @property
    def steps(self) -> tuple[int, int]:
        """Lowest and highest uint16 value beside nodata."""
        return (1, 65535) if self.nodata == 0 else (0, 65534)


def residual_block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + ReLU(3×3 convolution of x). x: (B, C, H, W). weight: (C, C, 3, 3). bias: (C,)."""
    return x + F.relu(F.conv2d(x, weight, bias, padding=1))


def embed_isp(x: Tensor, weight: Tensor, bias: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
    """ISP logits (B, 1, H, W), and x + sigmoid(logits)·embed. weight: (1, C, 1, 1). bias: (1,). embed: (C,)."""
    logits = F.conv2d(x, weight, bias)
    return logits, x + torch.sigmoid(logits) * embed[None, :, None, None]


def refine(
    x: Tensor,
    level: Tensor,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    valid: Tensor | None,
    finish: Finish,
) -> tuple[Tensor, Tensor]:
    """The end of the network: ISP head and embedding, residual blocks, NTL residual, output pixels.

    x: (B, C, H, W). level: (B, 1, H/2, W/2), the previous output, normalised. isp_weight, residual_weight:
    (1, C, 1, 1). isp_bias, residual_bias: (1,). embed: (C,). weights: (C, C, 3, 3) each, biases: (C,) each.
    valid: (B, 1, H/8, W/8), 0 where the output is nodata.

        s = sigmoid(isp_weight · x + isp_bias);  y = x + s·embed;  y ← y + ReLU(conv(y)) for each block
        n = cubic ×2 of level + residual_weight · y + residual_bias
        radiance = unit · expm1(clip(gain·n, 0, log1p(ceiling / unit)))

    Returns radiance in `finish.dtype` and s in float32 (or float64), both (B, 1, H − 2·crop, W − 2·crop).
    """
    logits, y = embed_isp(x, isp_weight, isp_bias, embed)
    for weight, bias in zip(weights, biases, strict=True):
        y = residual_block(y, weight, bias)
    base = resize_fixed(level, interpolation_kernel(2, "cubic").to(level), 2)
    value = base + F.conv2d(y, residual_weight, residual_bias)
    radiance = torch.expm1((value * finish.gain).clamp(0.0, finish.top)) * finish.unit
    isp = torch.sigmoid(logits)
    if finish.crop:
        inner = (..., slice(finish.crop, -finish.crop), slice(finish.crop, -finish.crop))
        radiance, isp = radiance[inner], isp[inner]
    work = torch.promote_types(isp.dtype, torch.float32)
    return _to_pixels(radiance.to(work), valid, finish), isp.to(work)


def _to_pixels(radiance: Tensor, valid: Tensor | None, finish: Finish) -> Tensor:
    """Quantised where asked for, nodata where LR pixels are invalid."""
    if finish.dtype == "uint16":
        low, high = finish.steps
        radiance = torch.round((radiance - finish.offset) * (1.0 / finish.scale)).clamp(low, high)
    if valid is not None:
        known = valid.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) != 0
        if finish.crop:
            known = known[..., finish.crop : -finish.crop, finish.crop : -finish.crop]
        radiance = torch.where(known, radiance, finish.nodata)
    return radiance.to(torch.int32).to(torch.uint16) if finish.dtype == "uint16" else radiance
