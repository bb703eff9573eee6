"""The last refinement as one implicit GEMM with everything around it."""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def _embedded(x, at, inside, query, query_bias, embed, EMBED: tl.constexpr):
    """Features at `at`, with the embedded ISP probability where EMBED; 0 outside the image."""
    features = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(tl.sum(features * query[None, :], 1) + query_bias)
    if EMBED:
        features = tl.where(inside, features + share[:, None] * embed[None, :], 0.0)
    return features, share


@triton.jit
def _expm1(v):
    """exp(v) − 1 for v ≥ 0 without cancellation near 0 (Taylor to v⁶ below ¼: 4e-9 relative)."""
    series = 1.0 + v * (1.0 / 6.0)
    series = 1.0 + v * (1.0 / 5.0) * series
    series = 1.0 + v * (1.0 / 4.0) * series
    series = 1.0 + v * (1.0 / 3.0) * series
    series = v * (1.0 + v * (1.0 / 2.0) * series)
    return tl.where(v < 0.25, series, tl.exp(v) - 1.0)


@triton.jit
def refine(
    x,  # [B, H, W, C]
    level,  # [B, H, W]
    weight,  # [9, C, C]
    bias,  # [C]
    isp_weight,  # [C]
    isp_bias,  # [1]
    embed,  # [C]
    residual_weight,  # [C]
    residual_bias,  # [1]
    radiance,  # [B, H, W]
    isp,  # the same; unused without EMBED
    height,
    width,
    unit,
    gain,
    top,
    C: tl.constexpr,
    CP: tl.constexpr,
    EMBED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Last residual block, NTL residual on its base, inverse transform; with EMBED the ISP head too.

    Without EMBED `x` is embedded already. One program: BLOCK pixels of a row. The neighbours' probabilities are
    computed again for each tap: 8 channels from cache cost less than a pass.
    """
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK
    i = row % height
    p = tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    j = first + p
    live = j < width
    query = tl.load(isp_weight + c, mask=c < C, other=0.0).to(tl.float32)
    query_bias = tl.load(isp_bias).to(tl.float32)
    share_weight = tl.load(embed + c, mask=c < C, other=0.0).to(tl.float32)
    at = p[:, None] * C + c[None, :]
    acc = tl.zeros((BLOCK, CP), dtype=tl.float32)
    for tap in range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        start = ((row + dy).to(tl.int64) * width + first + dx) * C
        inside = (j + dx >= 0) & (j + dx < width) & (i + dy >= 0) & (i + dy < height) & live
        inside = inside[:, None] & (c < C)[None, :]
        y, _ = _embedded(x, start + at, inside, query, query_bias, share_weight, EMBED)
        w = tl.load(
            weight + tap * (C * C) + (c[:, None] * C + c[None, :]),
            mask=(c < C)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        acc = dot(y.to(w.dtype), w, acc, PRECISION)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    start = (row.to(tl.int64) * width + first) * C
    inside = live[:, None] & (c < C)[None, :]
    y, share = _embedded(x, start + at, inside, query, query_bias, share_weight, EMBED)
    y += tl.maximum(acc + shift[None, :], 0.0)
    head = tl.load(residual_weight + c, mask=c < C, other=0.0).to(tl.float32)
    residual = tl.sum(y * head[None, :], 1) + tl.load(residual_bias).to(tl.float32)
    to = row.to(tl.int64) * width + j
    value = tl.load(level + to, mask=live, other=0.0).to(tl.float32) + residual
    tl.store(radiance + to, _expm1(tl.minimum(tl.maximum(value * gain, 0.0), top)) * unit, mask=live)
    if EMBED:
        tl.store(isp + to, share, mask=live)
