"""Pointwise layers at ×4, area means, and pointwise layers at ×1, all in one pass."""

import triton
import triton.language as tl


@triton.jit
def _layers(x, w1, b1, w2, b2, head, PRECISION: tl.constexpr):
    """Two layers with ReLU and a head of one channel, whose bias is not added yet: x [M, CP] → [M]."""
    y = tl.dot(x, w1, input_precision=PRECISION)
    y = tl.maximum(y + b1[None, :], 0.0)
    y = tl.dot(y, w2, input_precision=PRECISION)
    y = tl.maximum(y + b2[None, :], 0.0)
    return tl.sum(y * head[None, :], 1)


@triton.jit
def suggest(
    aux,  # [B, 4h, 4w, C]
    share_weight1,  # [H, C]
    share_bias1,  # [H]
    share_weight2,  # [H, H]
    share_bias2,  # [H]
    share_head,  # [H]
    share_head_bias,  # [1]
    light_weight1,  # [W, C + 1], the share first
    light_bias1,  # [W]
    light_weight2,  # [W, W]
    light_bias2,  # [W]
    light_head,  # [W]
    light_head_bias,  # [1]
    out,  # [B, h, w]
    height,
    width,
    C: tl.constexpr,
    CP: tl.constexpr,
    H: tl.constexpr,
    HP: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log1p(softplus(lights([mean σ(impervious(aux)), mean aux]))) / 2. One program computes BLOCK results of a row.

    The sixteen pixels behind a result are loaded one after the other, so that a mean is a sum over one axis.
    """
    pixels: tl.constexpr = 16 * BLOCK
    blocks = tl.cdiv(width, BLOCK)
    first = (tl.program_id(0) % blocks) * BLOCK
    row = tl.program_id(0) // blocks  # of all images
    m = tl.arange(0, pixels)
    c = tl.arange(0, CP)
    # for results beyond the row, its last pixels are used and nothing is stored
    col = 4 * tl.minimum(first + m // 16, width - 1) + m % 4
    down = m // 4 % 4
    start = row.to(tl.int64) * 16 * width * C
    at = (down * (4 * width) + col)[:, None] * C + c[None, :]
    x = tl.load(aux + start + at, mask=(c < C)[None, :], other=0.0).to(tl.float32)

    h = tl.arange(0, HP)
    used = h < H
    w1 = tl.load(
        share_weight1 + h[None, :] * C + c[:, None], mask=used[None, :] & (c < C)[:, None], other=0.0
    )
    w2 = tl.load(share_weight2 + h[None, :] * H + h[:, None], mask=used[None, :] & used[:, None], other=0.0)
    b1 = tl.load(share_bias1 + h, mask=used, other=0.0)
    b2 = tl.load(share_bias2 + h, mask=used, other=0.0)
    head = tl.load(share_head + h, mask=used, other=0.0)
    share = tl.sigmoid(_layers(x, w1, b1, w2, b2, head, PRECISION) + tl.load(share_head_bias))
    share = tl.sum(tl.reshape(share, (BLOCK, 16)), 1) * 0.0625
    mean = tl.sum(tl.reshape(x, (BLOCK, 16, CP)), 1) * 0.0625

    n = tl.arange(0, WP)
    used = n < W
    w1 = tl.load(
        light_weight1 + n[None, :] * (C + 1) + c[:, None] + 1,
        mask=used[None, :] & (c < C)[:, None],
        other=0.0,
    )
    w2 = tl.load(light_weight2 + n[None, :] * W + n[:, None], mask=used[None, :] & used[:, None], other=0.0)
    b1 = tl.load(light_bias1 + n, mask=used, other=0.0)
    b2 = tl.load(light_bias2 + n, mask=used, other=0.0)
    head = tl.load(light_head + n, mask=used, other=0.0)
    of_share = tl.load(light_weight1 + n * (C + 1), mask=used, other=0.0)
    y = tl.dot(mean, w1, input_precision=PRECISION) + share[:, None] * of_share[None, :]
    y = tl.maximum(y + b1[None, :], 0.0)
    y = tl.maximum(tl.dot(y, w2, input_precision=PRECISION) + b2[None, :], 0.0)
    value = tl.sum(y * head[None, :], 1) + tl.load(light_head_bias)
    radiance = tl.log(1.0 + tl.exp(tl.minimum(value, 80.0)))
    j = first + tl.arange(0, BLOCK)
    tl.store(out + row.to(tl.int64) * width + j, tl.log(1.0 + radiance) * 0.5, mask=j < width)
