"""Auxiliary-to-main fusion in one pass over channels-last tensors."""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def _query(aux, main, bias, a, c, M: tl.constexpr, A: tl.constexpr, C: tl.constexpr):
    """The query weights and the bias of modality M in float32; weights beyond its channels are 0."""
    qa = tl.load(aux + M * A + a, mask=a < A, other=0.0).to(tl.float32)
    qc = tl.load(main + M * C + c, mask=c < C, other=0.0).to(tl.float32)
    return qa, qc, tl.load(bias + M).to(tl.float32)


@triton.jit
def _film(weight, bias, main, a, c, HALF: tl.constexpr, A: tl.constexpr, C: tl.constexpr):
    """Weights [AP, CP] in the type of `main` and bias [CP], of γ for HALF 0 and of β for HALF 1."""
    at = c[None, :] * A + a[:, None]
    inside = (c < C)[None, :] & (a < A)[:, None]
    shift = tl.load(bias + HALF * C + c, mask=c < C, other=0.0).to(tl.float32)
    return tl.load(weight + HALF * C * A + at, mask=inside, other=0.0).to(main.dtype.element_ty), shift


@triton.jit
def _gate(e, x, mask, qa, qc, bias):
    """mask · exp(4·tanh(logit / 4)) of a modality."""
    logit = tl.sum(e.to(tl.float32) * qa[None, :], 1) + tl.sum(x * qc[None, :], 1) + bias
    # tanh as 1 − 2/(exp(2z) + 1), which stays finite where exp overflows
    bounded = 1.0 - 2.0 / (tl.exp(0.5 * logit) + 1.0)
    return mask.to(tl.float32) * tl.exp(4.0 * bounded)


@triton.jit
def _block(
    start,
    main,
    aux0,
    aux1,
    mask0,
    mask1,
    query_aux,
    query_main,
    query_bias,
    film_weight,
    film_bias,
    out,
    pixels,
    stride0,
    stride1,
    held0,
    held1,
    gain,
    beta,
    C: tl.constexpr,
    A: tl.constexpr,
    CP: tl.constexpr,
    AP: tl.constexpr,
    MODALITIES: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK pixels. held0, held1, gain, beta: weights; with HOLD the caller has loaded them, else this does."""
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
    if not HOLD:
        held0 = _query(query_aux, query_main, query_bias, a, c, 0, A, C)
    g0 = _gate(e0, x, m0, held0[0], held0[1], held0[2])
    if MODALITIES == 2:
        e1 = tl.load(aux1 + start * A + at_aux, mask=in_aux, other=0.0)
        m1 = tl.load(mask1 + (start + p) * stride1, mask=live, other=0.0)
        if not HOLD:
            held1 = _query(query_aux, query_main, query_bias, a, c, 1, A, C)
        g1 = _gate(e1, x, m1, held1[0], held1[1], held1[2])
        scale = 1.0 / (g0 + g1 + 1e-3)
        mixed = (g0 * scale)[:, None] * e0.to(tl.float32) + (g1 * scale)[:, None] * e1.to(tl.float32)
    else:
        mixed = (g0 / (g0 + 1e-3))[:, None] * e0.to(tl.float32)
    mixed = mixed.to(raw_x.dtype)

    if not HOLD:
        gain = _film(film_weight, film_bias, main, a, c, 0, A, C)
    one = tl.zeros((BLOCK, CP), dtype=tl.float32) + (1.0 + gain[1])[None, :]
    result = raw_x.to(tl.float32) * dot(mixed, gain[0], one, PRECISION)
    if not HOLD:
        beta = _film(film_weight, film_bias, main, a, c, 1, A, C)
    result = dot(mixed, beta[0], result, PRECISION) + beta[1][None, :]
    tl.store(out + start * C + at_main, result.to(raw_x.dtype), mask=in_main)


@triton.jit(do_not_specialize=["repeat"])
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
    repeat,
    C: tl.constexpr,
    A: tl.constexpr,
    CP: tl.constexpr,
    AP: tl.constexpr,
    MODALITIES: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = main·(1 + γ) + β, with γ, β = film_weight · Σ w_m·aux_m + film_bias.

    CP, AP: the smallest powers of two that are at least C, A and 16. One program computes BLOCK pixels. With HOLD it
    computes `repeat` times as many with weights that it loads once, and loads the next pixels while it computes.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if HOLD:
        a = tl.arange(0, AP)
        c = tl.arange(0, CP)
        held0 = _query(query_aux, query_main, query_bias, a, c, 0, A, C)
        held1 = held0
        if MODALITIES == 2:
            held1 = _query(query_aux, query_main, query_bias, a, c, 1, A, C)
        gain = _film(film_weight, film_bias, main, a, c, 0, A, C)
        beta = _film(film_weight, film_bias, main, a, c, 1, A, C)
        for k in range(repeat):
            _block(
                first * repeat + k * BLOCK, main, aux0, aux1, mask0, mask1, query_aux, query_main, query_bias,
                film_weight, film_bias, out, pixels, stride0, stride1, held0, held1, gain, beta,
                C, A, CP, AP, MODALITIES, HOLD, PRECISION, BLOCK,
            )  # fmt: skip
    else:
        _block(
            first, main, aux0, aux1, mask0, mask1, query_aux, query_main, query_bias, film_weight,
            film_bias, out, pixels, stride0, stride1, None, None, None, None,
            C, A, CP, AP, MODALITIES, HOLD, PRECISION, BLOCK,
        )  # fmt: skip
