"""Auxiliary-to-main fusion in one pass over channels-last tensors."""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def _gate(
    e, x, mask, query_aux, query_main, query_bias, a, c, M: tl.constexpr, A: tl.constexpr, C: tl.constexpr
):
    """mask · exp(4·tanh(logit / 4)) of modality M."""
    qa = tl.load(query_aux + M * A + a, mask=a < A, other=0.0).to(tl.float32)
    qc = tl.load(query_main + M * C + c, mask=c < C, other=0.0).to(tl.float32)
    logit = tl.sum(e.to(tl.float32) * qa[None, :], 1) + tl.sum(x * qc[None, :], 1)
    logit += tl.load(query_bias + M).to(tl.float32)
    # tanh through exp: 1 − 2/(exp(2z) + 1) stays finite where exp overflows
    bounded = 1.0 - 2.0 / (tl.exp(0.5 * logit) + 1.0)
    return mask.to(tl.float32) * tl.exp(4.0 * bounded)


@triton.jit
def fuse(
    main,  # [pixels, C]
    aux0,  # [pixels, A]
    aux1,  # [pixels, A]; unused with one modality
    mask0,  # [pixels], stride0 elements apart
    mask1,
    query_aux,  # [M, A]
    query_main,  # [M, C]
    query_bias,  # [M]
    film_weight,  # [2C, A]
    film_bias,  # [2C]
    out,  # [pixels, C]
    pixels,
    stride0,
    stride1,
    C: tl.constexpr,
    A: tl.constexpr,
    CP: tl.constexpr,
    AP: tl.constexpr,
    MODALITIES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = main·(1 + γ) + β, with γ, β = film_weight · Σ w_m·aux_m + film_bias. CP, AP: C, A as powers of two ≥ 16."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    p = tl.arange(0, BLOCK)
    a = tl.arange(0, AP)
    c = tl.arange(0, CP)
    live = start + p < pixels
    at_main = p[:, None] * C + c[None, :]
    at_aux = p[:, None] * A + a[None, :]
    in_main = live[:, None] & (c < C)[None, :]
    in_aux = live[:, None] & (a < A)[None, :]

    raw_x = tl.load(main + start * C + at_main, mask=in_main, other=0.0)
    x = raw_x.to(tl.float32)
    e0 = tl.load(aux0 + start * A + at_aux, mask=in_aux, other=0.0)
    m0 = tl.load(mask0 + (start + p) * stride0, mask=live, other=0.0)
    g0 = _gate(e0, x, m0, query_aux, query_main, query_bias, a, c, 0, A, C)
    if MODALITIES == 2:
        e1 = tl.load(aux1 + start * A + at_aux, mask=in_aux, other=0.0)
        m1 = tl.load(mask1 + (start + p) * stride1, mask=live, other=0.0)
        g1 = _gate(e1, x, m1, query_aux, query_main, query_bias, a, c, 1, A, C)
        scale = 1.0 / (g0 + g1 + 1e-3)
        mixed = (g0 * scale)[:, None] * e0.to(tl.float32) + (g1 * scale)[:, None] * e1.to(tl.float32)
    else:
        mixed = (g0 / (g0 + 1e-3))[:, None] * e0.to(tl.float32)
    mixed = mixed.to(raw_x.dtype)

    at_weight = c[None, :] * A + a[:, None]
    in_weight = (c < C)[None, :] & (a < A)[:, None]
    w_gain = tl.load(film_weight + at_weight, mask=in_weight, other=0.0).to(raw_x.dtype)
    one = 1.0 + tl.load(film_bias + c, mask=c < C, other=0.0).to(tl.float32)
    gain = dot(mixed, w_gain, tl.zeros((BLOCK, CP), dtype=tl.float32) + one[None, :], PRECISION)
    result = raw_x.to(tl.float32) * gain
    w_beta = tl.load(film_weight + C * A + at_weight, mask=in_weight, other=0.0).to(raw_x.dtype)
    result = dot(mixed, w_beta, result, PRECISION)
    result += tl.load(film_bias + C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(out + start * C + at_main, result.to(raw_x.dtype), mask=in_main)
