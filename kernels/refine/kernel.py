"""The last refinement: one kernel for few channels, which includes the ISP head, and one of the last block for many."""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def _expm1(v):
    """exp(v) − 1 for v ≥ 0 without cancellation near 0: below ¼ by Taylor's series to v⁶, relative error 4e-9."""
    series = 1.0 + v * (1.0 / 6.0)
    series = 1.0 + v * (1.0 / 5.0) * series
    series = 1.0 + v * (1.0 / 4.0) * series
    series = 1.0 + v * (1.0 / 3.0) * series
    series = v * (1.0 + v * (1.0 / 2.0) * series)
    return tl.where(v < 0.25, series, tl.exp(v) - 1.0)


@triton.jit
def _radiance(value, unit, gain, top):
    """unit · expm1(gain · value), where gain · value is clamped."""
    return _expm1(tl.minimum(tl.maximum(value * gain, 0.0), top)) * unit


@triton.jit
def refine(
    x,  # [B, H, W, C], with the embedding added
    level,  # [B, H, W]
    weight,  # [9, C, C]
    bias,  # [C]
    residual_weight,  # [C]
    residual_bias,  # [1]
    radiance,  # [B, H, W]
    height,
    width,
    unit,
    gain,
    top,
    C: tl.constexpr,
    CP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last residual block, the NTL residual added to its base, and the radiance. One program computes BLOCK pixels
    of a row."""
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK
    i = row % height
    p = tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    j = first + p
    used = c < C
    at = p[:, None] * C + c[None, :]
    acc = tl.zeros((BLOCK, CP), dtype=tl.float32)
    for tap in range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        start = ((row + dy).to(tl.int64) * width + first + dx) * C
        inside = (j + dx >= 0) & (j + dx < width) & (i + dy >= 0) & (i + dy < height)
        y = tl.load(x + start + at, mask=inside[:, None] & used[None, :], other=0.0)
        w = tl.load(
            weight + tap * (C * C) + (c[:, None] * C + c[None, :]),
            mask=used[:, None] & used[None, :],
            other=0.0,
        )
        acc = dot(y, w, acc, PRECISION)
    shift = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
    start = (row.to(tl.int64) * width + first) * C
    live = j < width
    y = tl.load(x + start + at, mask=live[:, None] & used[None, :], other=0.0).to(tl.float32)
    y += tl.maximum(acc + shift[None, :], 0.0)
    head = tl.load(residual_weight + c, mask=used, other=0.0).to(tl.float32)
    residual = tl.sum(y * head[None, :], 1) + tl.load(residual_bias).to(tl.float32)
    to = row.to(tl.int64) * width + j
    value = tl.load(level + to, mask=live, other=0.0).to(tl.float32) + residual
    tl.store(radiance + to, _radiance(value, unit, gain, top), mask=live)


@triton.jit
def _share(x, row, i, height, width, first, p, c, query, query_bias, C: tl.constexpr):
    """The ISP probability of pixels first + p of a row, 0 outside the image, and their features."""
    inside = (first + p >= 0) & (first + p < width) & (i >= 0) & (i < height)
    start = (row.to(tl.int64) * width + first) * C
    at = p[:, None] * C + c[None, :]
    features = tl.load(x + start + at, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    share = tl.sigmoid(tl.sum(features * query[None, :], 1) + query_bias)
    return tl.where(inside, share, 0.0), features


@triton.jit
def _triples(x, row, i, height, width, first, p, k, C: tl.constexpr):
    """The channels [BLOCK, KP] of pixels first + p − 1 to first + p + 1 of a row, which are contiguous in memory."""
    start = (row.to(tl.int64) * width + first - 1) * C
    at = p[:, None] * C + k[None, :]
    inside = ((first - 1) * C + at >= 0) & ((first - 1) * C + at < width * C) & (k < 3 * C)[None, :]
    return tl.load(x + start + at, mask=inside & ((i >= 0) & (i < height)), other=0.0)


@triton.jit
def _spread(embed, row_weight, DY: tl.constexpr, C: tl.constexpr, KP: tl.constexpr, PRECISION: tl.constexpr):
    """How the probabilities of row DY enter a result, [16, CP]: the product of embedding and weights, made once in a
    program.

    The taps are in the order of `_around`: tap t < 8 is at 2·r, where r is t with three bits reversed; tap 8 is at 1.
    """
    n = tl.arange(0, 16)
    k = tl.arange(0, KP)
    q = n // 2
    tap = q % 2 * 4 + q // 2 % 2 * 2 + q // 4
    tap = tl.where(n == 1, 8, tl.where(n % 2 == 0, tap, 9))
    own = (tap[:, None] == 3 * DY + (k // C)[None, :]) & (k < 3 * C)[None, :]
    value = tl.load(embed + (k % C)[None, :] + tl.zeros((16, KP), dtype=tl.int32), mask=own, other=0.0)
    return dot(value.to(row_weight.dtype), row_weight, None, PRECISION)


@triton.jit
def _neighbours(share, p, BLOCK: tl.constexpr):
    """The probabilities of the pixels before and after each pixel, taken from this program's pixels."""
    return tl.gather(share, tl.maximum(p - 1, 0), 0), tl.gather(share, tl.minimum(p + 1, BLOCK - 1), 0)


@triton.jit
def _around(l0, s0, r0, l1, s1, r1, l2, s2, r2, BLOCK: tl.constexpr):
    """The probabilities at the nine taps as [BLOCK, 16]. r2 is at every odd place, of which `_spread` uses one."""
    first = tl.join(tl.join(l0, s0), tl.join(r0, l1))
    second = tl.join(tl.join(s1, r1), tl.join(l2, s2))
    eight = tl.reshape(tl.join(first, second), (BLOCK, 8))
    last = r2[:, None] + tl.zeros((BLOCK, 8), dtype=tl.float32)
    return tl.reshape(tl.join(eight, last), (BLOCK, 16))


@triton.jit
def refine_narrow(
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
    isp,  # [B, H, W]
    height,
    width,
    unit,
    gain,
    top,
    C: tl.constexpr,
    CP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All of the last refinement. One program computes ROWS rows of BLOCK − 2 pixels, with one sigmoid for each of them
    and for each pixel of the rim around them.

    conv(x + s·embed) = conv(x) + conv(s·embed). So features are multiplied as they are in memory, three pixels at once,
    and the probabilities, one for each pixel, in a product of their own. A program takes the neighbours of a pixel from
    its own pixels; therefore the first and the last pixel of its block only serve as neighbours.
    """
    columns: tl.constexpr = BLOCK - 2
    blocks = tl.cdiv(width, columns)
    strips = tl.cdiv(height, ROWS)
    pid = tl.program_id(0)
    first = (pid % blocks) * columns - 1
    i = (pid // blocks % strips) * ROWS
    row = pid // blocks // strips * height + i
    p = tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    k = tl.arange(0, KP)
    used = c < C
    query = tl.load(isp_weight + c, mask=used, other=0.0).to(tl.float32)
    query_bias = tl.load(isp_bias).to(tl.float32)
    own_embed = tl.load(embed + c, mask=used, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
    head = tl.load(residual_weight + c, mask=used, other=0.0).to(tl.float32)
    head_bias = tl.load(residual_bias).to(tl.float32)
    at = weight + k[:, None] * C + c[None, :]
    there = (k < 3 * C)[:, None] & used[None, :]
    w0 = tl.load(at, mask=there, other=0.0)
    w1 = tl.load(at + 3 * C * C, mask=there, other=0.0)
    w2 = tl.load(at + 6 * C * C, mask=there, other=0.0)
    spread = _spread(embed, w0, 0, C, KP, PRECISION) + _spread(embed, w1, 1, C, KP, PRECISION)
    spread = (spread + _spread(embed, w2, 2, C, KP, PRECISION)).to(w0.dtype)
    j = first + p
    a0 = _triples(x, row - 1, i - 1, height, width, first, p, k, C)
    a1 = _triples(x, row, i, height, width, first, p, k, C)
    s0, _ = _share(x, row - 1, i - 1, height, width, first, p, c, query, query_bias, C)
    s1, features = _share(x, row, i, height, width, first, p, c, query, query_bias, C)
    l0, r0 = _neighbours(s0, p, BLOCK)
    l1, r1 = _neighbours(s1, p, BLOCK)
    for r in tl.static_range(ROWS):
        a2 = _triples(x, row + r + 1, i + r + 1, height, width, first, p, k, C)
        s2, below = _share(x, row + r + 1, i + r + 1, height, width, first, p, c, query, query_bias, C)
        l2, r2 = _neighbours(s2, p, BLOCK)
        acc = dot(a0, w0, None, PRECISION)
        acc = dot(a1, w1, acc, PRECISION)
        acc = dot(a2, w2, acc, PRECISION)
        around = _around(l0, s0, r0, l1, s1, r1, l2, s2, r2, BLOCK)
        acc = dot(around.to(w0.dtype), spread, acc, PRECISION)
        y = features + s1[:, None] * own_embed[None, :] + tl.maximum(acc + shift[None, :], 0.0)
        residual = tl.sum(y * head[None, :], 1) + head_bias
        live = (p > 0) & (p < BLOCK - 1) & (j < width) & (i + r < height)
        to = (row + r).to(tl.int64) * width + j
        value = tl.load(level + to, mask=live, other=0.0).to(tl.float32) + residual
        tl.store(radiance + to, _radiance(value, unit, gain, top), mask=live)
        tl.store(isp + to, s1, mask=live)
        a0, a1, features = a1, a2, below
        s0, l0, r0 = s1, l1, r1
        s1, l1, r1 = s2, l2, r2
