"""The end of the network as one implicit GEMM with everything around it."""

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
def _cubic_base(level, row, j, live, height, width):
    """Keys' cubic (a = −0.75) ×2 of `level` at row `row` of all images and columns j, edges repeated."""
    half_h = height // 2
    half_w = width // 2
    image = row // height
    i = row % height
    down = i % 2
    across = j % 2
    total = tl.zeros(j.shape, dtype=tl.float32)
    for t in tl.static_range(4):
        line = tl.zeros(j.shape, dtype=tl.float32)
        r = tl.minimum(tl.maximum(i // 2 + down - 2 + t, 0), half_h - 1)
        for s in tl.static_range(4):
            q = tl.minimum(tl.maximum(j // 2 + across - 2 + s, 0), half_w - 1)
            at = (image * half_h + r).to(tl.int64) * half_w + q
            # even pixels lie 1.75, 0.75, 0.25, 1.25 from the four taps, odd ones the other way round
            even = -0.03515625 if s == 0 else 0.26171875 if s == 1 else 0.87890625 if s == 2 else -0.10546875
            odd = -0.10546875 if s == 0 else 0.87890625 if s == 1 else 0.26171875 if s == 2 else -0.03515625
            line += tl.where(across == 0, even, odd) * tl.load(level + at, mask=live, other=0.0).to(
                tl.float32
            )
        even = -0.03515625 if t == 0 else 0.26171875 if t == 1 else 0.87890625 if t == 2 else -0.10546875
        odd = -0.10546875 if t == 0 else 0.87890625 if t == 1 else 0.26171875 if t == 2 else -0.03515625
        total += tl.where(down == 0, even, odd) * line
    return total


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
    level,  # [B, H/2, W/2]
    weight,  # [9, C, C]
    bias,  # [C]
    isp_weight,  # [C]
    isp_bias,  # [1]
    embed,  # [C]
    residual_weight,  # [C]
    residual_bias,  # [1]
    valid,  # [B, H/8, W/8]; unused without HAS_VALID
    ntl,  # [B, H − 2·crop, W − 2·crop]
    isp,  # the same; unused without EMBED
    height,
    width,
    crop,
    unit,
    gain,
    top,
    scale,
    offset,
    nodata,
    C: tl.constexpr,
    CP: tl.constexpr,
    EMBED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Last residual block, NTL residual, base, inverse transform, nodata, crop, cast; with EMBED the ISP head too.

    Without EMBED `x` is embedded already. HIGH: highest uint16 value, 0 for float32 output. One program: BLOCK output
    pixels of a row. The probability is computed again for each tap: 8 channels from cache cost less than a pass.
    """
    inner_h = height - 2 * crop
    inner_w = width - 2 * crop
    blocks = tl.cdiv(inner_w, BLOCK)
    pid = tl.program_id(0)
    first = (pid % blocks) * BLOCK
    out_row = pid // blocks
    i = out_row % inner_h + crop
    row = out_row // inner_h * height + i
    p = tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    j = first + crop + p
    live = first + p < inner_w
    query = tl.load(isp_weight + c, mask=c < C, other=0.0).to(tl.float32)
    query_bias = tl.load(isp_bias).to(tl.float32)
    share_weight = tl.load(embed + c, mask=c < C, other=0.0).to(tl.float32)
    at = p[:, None] * C + c[None, :]
    acc = tl.zeros((BLOCK, CP), dtype=tl.float32)
    for tap in range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        start = ((row + dy).to(tl.int64) * width + first + crop + dx) * C
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
    start = (row.to(tl.int64) * width + first + crop) * C
    y, share = _embedded(
        x, start + at, live[:, None] & (c < C)[None, :], query, query_bias, share_weight, EMBED
    )
    y += tl.maximum(acc + shift[None, :], 0.0)
    head = tl.load(residual_weight + c, mask=c < C, other=0.0).to(tl.float32)
    residual = tl.sum(y * head[None, :], 1) + tl.load(residual_bias).to(tl.float32)
    value = _cubic_base(level, row, j, live, height, width) + residual
    radiance = _expm1(tl.minimum(tl.maximum(value * gain, 0.0), top)) * unit
    if HIGH > 0:
        # adding 2²³ rounds half to even, as torch.round; the clamp keeps the sum exact
        radiance = tl.minimum(tl.maximum((radiance - offset) * (1.0 / scale), LOW), HIGH)
        radiance = (radiance + 8388608.0) - 8388608.0
    if HAS_VALID:
        known = tl.load(
            valid + (row // height * (height // 8) + i // 8).to(tl.int64) * (width // 8) + j // 8,
            mask=live,
            other=0,
        )
        radiance = tl.where(known != 0, radiance, nodata)
    to = out_row.to(tl.int64) * inner_w + first + p
    if HIGH > 0:
        tl.store(ntl + to, radiance.to(tl.int32).to(tl.uint16), mask=live)
    else:
        tl.store(ntl + to, radiance, mask=live)
    if EMBED:
        tl.store(isp + to, share, mask=live)
