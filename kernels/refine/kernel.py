"""The last refinement: one kernel for few channels, which includes the ISP head, and one of the last block for many."""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def _expm1(v):
    """exp(v) − 1 without cancellation near 0: for |v| < ¼ by Taylor's series to v⁶, relative error 5e-8."""
    series = 1.0 + v * (1.0 / 6.0)
    series = 1.0 + v * (1.0 / 5.0) * series
    series = 1.0 + v * (1.0 / 4.0) * series
    series = 1.0 + v * (1.0 / 3.0) * series
    series = v * (1.0 + v * (1.0 / 2.0) * series)
    return tl.where(tl.abs(v) < 0.25, series, tl.exp(v) - 1.0)


@triton.jit
def _radiance(value, unit, gain, top):
    """unit · expm1(gain · value), where gain · value is clamped."""
    return _expm1(tl.minimum(tl.maximum(value * gain, 0.0), top)) * unit


@triton.jit
def _places(j, width):
    """Where pixels j of a row find their neighbours. In the coarse residual: four columns, in the order of `_cubic`, to
    the right for even pixels and to the left for odd ones. In the lights' grid: two columns and the share of the
    second."""
    m = j // 2
    step = 1 - 2 * (j & 1)
    last = width // 2 - 1
    q0 = tl.minimum(tl.maximum(m - 2 * step, 0), last)
    q1 = tl.minimum(tl.maximum(m - step, 0), last)
    q2 = tl.minimum(tl.maximum(m, 0), last)
    q3 = tl.minimum(tl.maximum(m + step, 0), last)
    after = tl.maximum(j + 4, 0)
    l0 = tl.minimum(tl.maximum(after // 8 - 1, 0), width // 8 - 1)
    l1 = tl.minimum(after // 8, width // 8 - 1)
    share = (after % 8).to(tl.float32) * 0.125 + 0.0625
    return q0, q1, q2, q3, l0, l1, share


@triton.jit
def _cubic(a, b, c, d):
    """Three quarters of the way from b to c, by the cubic convolution with a = −0.75."""
    return b * 0.26171875 + c * 0.87890625 - a * 0.03515625 - d * 0.10546875


@triton.jit
def _coarse(carried, image, m, height, width, places):
    """Row m of the coarse residual, interpolated along the row. Beyond the edge the outermost row is repeated."""
    m = tl.minimum(tl.maximum(m, 0), height // 2 - 1)
    row = carried + (image * (height // 2) + m).to(tl.int64) * (width // 2)
    return _cubic(
        tl.load(row + places[0]), tl.load(row + places[1]), tl.load(row + places[2]), tl.load(row + places[3])
    )


@triton.jit
def _trusted(trust, image, k, height, width, places):
    """Row k of the shares on the lights' grid, interpolated along the row."""
    k = tl.minimum(tl.maximum(k, 0), height // 8 - 1)
    row = trust + (image * (height // 8) + k).to(tl.int64) * (width // 8)
    v0 = tl.load(row + places[4])
    return v0 + (tl.load(row + places[5]) - v0) * places[6]


@triton.jit
def _restored(start, value, share, unit, gain, top, ceiling):
    """The radiance `start`, moved by a share towards what the residual `value` makes of it.

    unit · expm1(log1p(start / unit) + gain · value) = start + (start + unit) · expm1(gain · value)
    """
    held = tl.minimum(tl.maximum(start, 0.0), ceiling)
    refined = held + (held + unit) * _expm1(tl.minimum(value * gain, top))
    return start + (tl.minimum(tl.maximum(refined, 0.0), ceiling) - start) * share


@triton.jit
def refine(
    x,  # [B, H, W, C], with the embedding added
    level,  # [B, H, W]
    carried,  # [B, H/2, W/2]; used with WHOLE
    trust,  # [B, H/8, W/8]; used with WHOLE
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
    ceiling,
    C: tl.constexpr,
    CP: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last residual block, the NTL residual added to its base, and the radiance. One program computes BLOCK pixels
    of a row. WHOLE: `level` is the radiance of the base, see `_restored`."""
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
    below = tl.load(level + to, mask=live, other=0.0).to(tl.float32)
    if WHOLE:
        image = row // height
        places = _places(j, width)
        m = i // 2
        step = 1 - 2 * (i % 2)
        value = residual + _cubic(
            _coarse(carried, image, m - 2 * step, height, width, places),
            _coarse(carried, image, m - step, height, width, places),
            _coarse(carried, image, m, height, width, places),
            _coarse(carried, image, m + step, height, width, places),
        )
        t0 = _trusted(trust, image, (i + 4) // 8 - 1, height, width, places)
        t1 = _trusted(trust, image, (i + 4) // 8, height, width, places)
        share = t0 + (t1 - t0) * (((i + 4) % 8).to(tl.float32) * 0.125 + 0.0625)
        result = _restored(below, value, share, unit, gain, top, ceiling)
    else:
        result = _radiance(below + residual, unit, gain, top)
    tl.store(radiance + to, result, mask=live)


@triton.jit
def _pixels(x, row, i, height, width, first, p, c, C: tl.constexpr):
    """The features of pixels first + p of a row, and which of them lie inside the image."""
    inside = (first + p >= 0) & (first + p < width) & (i >= 0) & (i < height)
    start = (row.to(tl.int64) * width + first) * C
    at = p[:, None] * C + c[None, :]
    found = tl.load(x + start + at, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    return found.to(tl.float32), inside


@triton.jit
def _share(x, row, i, height, width, first, p, c, query, query_bias, C: tl.constexpr):
    """The ISP probability of pixels first + p of a row, 0 outside the image."""
    features, inside = _pixels(x, row, i, height, width, first, p, c, C)
    return tl.where(inside, tl.sigmoid(tl.sum(features * query[None, :], 1) + query_bias), 0.0)


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
    carried,  # [B, H/2, W/2]; used with WHOLE
    trust,  # [B, H/8, W/8]; used with WHOLE
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
    ceiling,
    C: tl.constexpr,
    CP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All of the last refinement. One program computes ROWS rows of BLOCK − 2 pixels, with one sigmoid for each of them
    and for each pixel of the rim around them.

    conv(x + s·embed) = conv(x) + conv(s·embed). So features are multiplied as they are in memory, three pixels at once,
    and the probabilities, one for each pixel, in a product of their own. A program takes the neighbours of a pixel from
    its own pixels; therefore the first and the last pixel of its block only serve as neighbours.

    WHOLE: `level` is the radiance of the base, see `_restored`. Each row of the coarse residual is interpolated along
    the row once for all of a program's rows, four of which share six.
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
    s0 = _share(x, row - 1, i - 1, height, width, first, p, c, query, query_bias, C)
    s1 = _share(x, row, i, height, width, first, p, c, query, query_bias, C)
    l0, r0 = _neighbours(s0, p, BLOCK)
    l1, r1 = _neighbours(s1, p, BLOCK)
    if WHOLE:
        tl.static_assert(
            ROWS == 4, "rows begin at a multiple of 4, where the lights' grid has an edge or a middle"
        )
        image = pid // blocks // strips
        places = _places(j, width)
        m = i // 2
        c0 = _coarse(carried, image, m - 2, height, width, places)
        c1 = _coarse(carried, image, m - 1, height, width, places)
        c2 = _coarse(carried, image, m, height, width, places)
        c3 = _coarse(carried, image, m + 1, height, width, places)
        t0 = _trusted(trust, image, (i + 4) // 8 - 1, height, width, places)
        t1 = _trusted(trust, image, (i + 4) // 8, height, width, places)
        t1 = (t1 - t0) * 0.125
        t0 += t1 * (((i + 4) % 8).to(tl.float32) + 0.5)
    for r in tl.static_range(ROWS):
        a2 = _triples(x, row + r + 1, i + r + 1, height, width, first, p, k, C)
        s2 = _share(x, row + r + 1, i + r + 1, height, width, first, p, c, query, query_bias, C)
        l2, r2 = _neighbours(s2, p, BLOCK)
        acc = dot(a0, w0, None, PRECISION)
        acc = dot(a1, w1, acc, PRECISION)
        acc = dot(a2, w2, acc, PRECISION)
        around = _around(l0, s0, r0, l1, s1, r1, l2, s2, r2, BLOCK)
        acc = dot(around.to(w0.dtype), spread, acc, PRECISION)
        # again, from the cache: kept, they would take registers that are not there
        features, _ = _pixels(x, row + r, i + r, height, width, first, p, c, C)
        y = features + s1[:, None] * own_embed[None, :] + tl.maximum(acc + shift[None, :], 0.0)
        # loaded for each pixel, so that what follows is computed by the thread that loads and stores it, once
        residual = tl.load(residual_bias + p * 0).to(tl.float32) + tl.sum(y * head[None, :], 1)
        live = (p > 0) & (p < BLOCK - 1) & (j < width) & (i + r < height)
        to = (row + r).to(tl.int64) * width + j
        under = tl.load(level + to, mask=live, other=0.0).to(tl.float32)
        if WHOLE:
            if r % 2 == 1:
                c0, c1, c2 = c1, c2, c3
                c3 = _coarse(carried, image, m + r // 2 + 2, height, width, places)
                value = _cubic(c3, c2, c1, c0) + residual
            else:
                value = _cubic(c0, c1, c2, c3) + residual
            share = t0 + t1 * r
            result = _restored(under, value, share, unit, gain, top, ceiling)
        else:
            result = _radiance(under + residual, unit, gain, top)
        tl.store(radiance + to, result, mask=live)
        tl.store(isp + to, s1, mask=live)
        a0, a1 = a1, a2
        s0, l0, r0 = s1, l1, r1
        s1, l1, r1 = s2, l2, r2
