"""The estimate of the offset: one kernel computes window sums of every shift as products with banded matrices, another
combines the shifts in one pass."""

import triton
import triton.language as tl


@triton.jit
def _clamped(at, size):
    return tl.minimum(tl.maximum(at, 0), size - 1)


@triton.jit
def residuals(
    ntl,  # [B, h, w]
    lattice,  # [B, 2, 2h + N − 2, 2w + N − 2], the lights and their window mean at half pixels, with repeated edges
    mean,  # [B, h, w], window mean of ntl
    variance,  # [B, h, w], window variance of ntl
    window,  # [WINDOW]
    out,  # [B, N·N, h, w]
    height,
    width,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Residual variance of the shifts of one row of the lattice. One program computes N shifts of BLOCK × BLOCK pixels.

    A window sum is the product rows · values · columns, where the window stands along the diagonals of the matrices
    `rows` and `columns`. So only the result has a channel for each shift in memory. Products are computed in float32,
    since for such small matrices three TF32 products take more instructions. SPAN: side of a block with the pixels
    around it, a power of two.
    """
    reach: tl.constexpr = WINDOW // 2
    wide = tl.cdiv(width, BLOCK)
    high = tl.cdiv(height, BLOCK)
    pid = tl.program_id(0)
    shift_row = pid % N
    first_col = (pid // N % wide) * BLOCK
    first_row = (pid // N // wide % high) * BLOCK
    image = (pid // N // wide // high).to(tl.int64)
    plane = image * height * width
    p = tl.arange(0, BLOCK)
    s = tl.arange(0, SPAN)
    lag = s[None, :] - p[:, None]
    band = (lag >= 0) & (lag < WINDOW)
    rows = tl.load(window + lag, mask=band, other=0.0)
    lag = s[:, None] - p[None, :]
    band = (lag >= 0) & (lag < WINDOW)
    columns = tl.load(window + lag, mask=band, other=0.0)

    # i, j: the block and its surroundings, with repeated edges; pi, pj: the block, stored only inside the image
    i = _clamped(first_row - reach + s, height)
    j = _clamped(first_col - reach + s, width)
    pi = _clamped(first_row + p, height)
    pj = _clamped(first_col + p, width)
    seen = tl.load(ntl + plane + i[:, None] * width + j[None, :])
    inner = plane + pi[:, None] * width + pj[None, :]
    own_mean = tl.load(mean + inner)
    own_variance = tl.load(variance + inner)
    # the values of one shift are every second place of the lattice
    lattice_w = 2 * width + N - 2
    places = (2 * height + N - 2) * lattice_w
    points = lattice + image * 2 * places + shift_row * lattice_w
    mean_points = points + places + 2 * (pi[:, None] * lattice_w + pj[None, :])
    points += 2 * (i[:, None] * lattice_w + j[None, :])
    live = (first_row + p < height)[:, None] & (first_col + p < width)[None, :]
    zero = tl.zeros((BLOCK, SPAN), dtype=tl.float32)
    none = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for shift_col in range(N):
        moved = tl.load(points + shift_col)
        squares = tl.dot(rows, moved * moved, acc=zero, input_precision="ieee")
        squares = tl.dot(squares, columns, acc=none, input_precision="ieee")
        products = tl.dot(rows, seen * moved, acc=zero, input_precision="ieee")
        products = tl.dot(products, columns, acc=none, input_precision="ieee")
        moved_mean = tl.load(mean_points + shift_col)
        moved_variance = tl.maximum(squares - moved_mean * moved_mean, 0.0)
        covariance = products - own_mean * moved_mean
        gain = tl.minimum(tl.maximum(covariance / (moved_variance + 1e-3), 0.0), 3.0)
        result = own_variance + gain * (gain * moved_variance - 2.0 * covariance)
        to = out + (image * (N * N) + shift_row * N + shift_col) * height * width
        tl.store(to + pi[:, None] * width + pj[None, :], result, mask=live)


@triton.jit
def _tanh(x):
    """tanh as 1 − 2/(exp(2x) + 1), which stays finite where exp overflows."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def posterior(
    residual,  # [B, S, pixels]
    mean,  # [B, pixels], window mean of the NTL
    variance,  # [B, pixels], its window variance
    shift_xy,  # [2, S]
    strength,  # [2], logarithms of sharpness and prior
    sure_weight,  # [SURE, 3]
    sure_bias,  # [SURE]
    sure_head,  # [SURE]
    sure_head_bias,  # [1]
    first_weight,  # [H, S + 3]
    first_bias,  # [H]
    second_weight,  # [H, H]
    second_bias,  # [H]
    head,  # [2, H]
    head_bias,  # [2]
    out,  # [B, 2, pixels]
    pixels,
    d_max,
    S: tl.constexpr,
    SP: tl.constexpr,
    SURE: tl.constexpr,
    SUREP: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mean shift and its correction. One program computes BLOCK pixels of an image from all of their shifts."""
    blocks = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = p < pixels
    s = tl.arange(0, SP)
    shown = (s < S)[:, None] & live[None, :]
    # where there is no shift, a huge residual: it is not the smallest and gets no weight
    at = residual + image * S * pixels + s[:, None] * pixels + p[None, :]
    value = tl.load(at, mask=shown, other=1e30)
    level = tl.load(mean + image * pixels + p, mask=live, other=0.0)
    spread = tl.load(variance + image * pixels + p, mask=live, other=0.0)
    spread = tl.log(tl.maximum(spread, 0.0) + 1e-3)
    best = tl.log(tl.maximum(tl.min(value, 0), 0.0) + 1e-3)

    k = tl.arange(0, SUREP)
    known = k < SURE
    hidden = tl.load(sure_weight + 3 * k, mask=known, other=0.0)[:, None] * spread[None, :]
    hidden += tl.load(sure_weight + 3 * k + 1, mask=known, other=0.0)[:, None] * best[None, :]
    hidden += tl.load(sure_weight + 3 * k + 2, mask=known, other=0.0)[:, None] * level[None, :]
    hidden = tl.maximum(hidden + tl.load(sure_bias + k, mask=known, other=0.0)[:, None], 0.0)
    sure = tl.sum(hidden * tl.load(sure_head + k, mask=known, other=0.0)[:, None], 0)
    sure = _tanh(sure + tl.load(sure_head_bias))
    sharpness = tl.exp(tl.load(strength) + 2.0 * sure)
    prior = tl.exp(tl.load(strength + 1))

    x = tl.load(shift_xy + s, mask=s < S, other=0.0)
    y = tl.load(shift_xy + S + s, mask=s < S, other=0.0)
    logit = -sharpness[None, :] * value - (prior * (x * x + y * y))[:, None]
    logit = tl.where((s < S)[:, None], logit, -1e30)
    grown = tl.where(shown, tl.exp(logit - tl.max(logit, 0)[None, :]), 0.0)
    share = grown / tl.maximum(tl.sum(grown, 0), 1e-30)[None, :]
    mean_x = tl.sum(share * x[:, None], 0)
    mean_y = tl.sum(share * y[:, None], 0)

    h = tl.arange(0, HP)
    row = first_weight + h * (S + 3)
    used = h < H
    known = used[:, None] & (s < S)[None, :]
    weight = tl.load(row[:, None] + s[None, :], mask=known, other=0.0)
    acc = tl.load(row + S, mask=used, other=0.0)[:, None] * spread[None, :]
    acc += tl.load(row + S + 1, mask=used, other=0.0)[:, None] * best[None, :]
    acc += tl.load(row + S + 2, mask=used, other=0.0)[:, None] * level[None, :]
    acc += tl.load(first_bias + h, mask=used, other=0.0)[:, None]
    hidden = tl.maximum(tl.dot(weight, share * 5.0, acc=acc, input_precision="ieee"), 0.0)
    known = used[:, None] & used[None, :]
    weight = tl.load(second_weight + h[:, None] * H + h[None, :], mask=known, other=0.0)
    acc = tl.zeros((HP, BLOCK), dtype=tl.float32)
    acc += tl.load(second_bias + h, mask=used, other=0.0)[:, None]
    hidden = tl.maximum(tl.dot(weight, hidden, acc=acc, input_precision="ieee"), 0.0)
    mean_x += tl.sum(hidden * tl.load(head + h, mask=used, other=0.0)[:, None], 0) + tl.load(head_bias)
    mean_y += tl.sum(hidden * tl.load(head + H + h, mask=used, other=0.0)[:, None], 0) + tl.load(
        head_bias + 1
    )
    to = out + image * 2 * pixels + p
    tl.store(to, d_max * _tanh(mean_x / d_max), mask=live)
    tl.store(to + pixels, d_max * _tanh(mean_y / d_max), mask=live)
