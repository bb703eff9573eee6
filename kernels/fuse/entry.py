"""Auxiliary-to-main fusion: plan of the launch, custom operator, gradient, checked entry point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.fuse import reference
from deeplight.kernels.launch import (
    Launch,
    arch_of,
    ceil_div,
    channels_last,
    dot_precision,
    like_channels_last,
    next_power,
    ready,
    run,
)
from deeplight.kernels.table import Config, configuration

REPEAT, PROGRAMS = 8, 2048
"""A program computes at most REPEAT blocks one after the other, and only so many that PROGRAMS programs are left for
all multiprocessors."""

HELD = 64
"""Most channels for which a program keeps all weights in registers; with more, too few registers are left."""

MAX_CHANNELS = 128
"""Most channels of `main` and of a modality: a program holds all channels of its pixels and one product's weights."""


def plan(
    main: Tensor,
    aux: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[Tensor],
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch for channels-last `main`, `aux` and `out`, and masks for which `pixel_stride` is a number."""
    (b, c, h, w), a = main.shape, aux[0].shape[1]
    pixels = b * h * w
    cp, ap = next_power(c), next_power(a)
    config = config or configuration("fuse", arch_of(main.device), max(cp, ap), w, main.itemsize)
    hold = holds(main)
    again = repeats(pixels, config.block) if hold else 1
    names = ("query_aux", "query_main", "query_bias", "film_weight", "film_bias")
    strides = [stride for stride in map(pixel_stride, masks) if stride is not None]
    return Launch(
        "fuse",
        ceil_div(pixels, again * config.block),
        {
            "main": main,
            "aux0": aux[0],
            "aux1": aux[-1],
            "mask0": masks[0],
            "mask1": masks[-1],
            **dict(zip(names, weights, strict=True)),
            "out": out,
            "pixels": pixels,
            "stride0": strides[0],
            "stride1": strides[-1],
            "repeat": again,
        },
        {
            "C": c,
            "A": a,
            "CP": cp,
            "AP": ap,
            "MODALITIES": len(aux),
            "HOLD": hold,
            "PRECISION": dot_precision(main.dtype),
        },
        config,
    )


def holds(main: Tensor) -> bool:
    """Whether a program keeps all weights: it does for few channels of two bytes."""
    return main.itemsize == 2 and main.shape[1] <= HELD


def repeats(pixels: int, block: int) -> int:
    """How many blocks one program computes."""
    return max(1, min(REPEAT, pixels // (block * PROGRAMS)))


def pixel_stride(mask: Tensor) -> int | None:
    """The distance in elements from each pixel of a mask (B, 1, H, W) to the next, None where it varies.

    A channel of a channels-last tensor has such a distance and needs no copy.
    """
    b, _, h, w = mask.shape
    step = mask.stride(3) if w > 1 else mask.stride(2) if h > 1 else mask.stride(0) if b > 1 else 1
    wanted = ((b, mask.stride(0), h * w * step), (h, mask.stride(2), w * step), (w, mask.stride(3), step))
    return step if all(n == 1 or have == want for n, have, want in wanted) else None


@torch.library.custom_op("deeplight::fuse", mutates_args=())
def _op(
    main: Tensor,
    aux: list[Tensor],
    masks: list[Tensor],
    query_aux: Tensor,
    query_main: Tensor,
    query_bias: Tensor,
    film_weight: Tensor,
    film_bias: Tensor,
) -> Tensor:
    weights = [query_aux, query_main, query_bias, film_weight, film_bias]
    if not dispatch.operator_runs_kernel(main.device):
        out = reference.fuse(main, aux, masks, *(t.to(main.dtype) for t in weights))
        return out.contiguous(memory_format=torch.channels_last)
    out = like_channels_last(main, *main.shape)
    masks = [m if pixel_stride(m) is not None else m.contiguous() for m in masks]
    images = [channels_last(t) for t in aux]
    run(plan(channels_last(main), images, masks, [ready(t) for t in weights], out))
    return out


@_op.register_fake
def _(main: Tensor, *_: Any) -> Tensor:
    return like_channels_last(main, *main.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    main, aux, masks, *weights = inputs
    ctx.modalities = len(aux)
    ctx.save_for_backward(main, *aux, *masks, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    m = ctx.modalities
    main, *rest = ctx.saved_tensors
    return gradients(grad, main, rest[:m], rest[m : 2 * m], *rest[2 * m :])


def gradients(
    grad: Tensor,
    main: Tensor,
    aux: Sequence[Tensor],
    masks: Sequence[Tensor],
    query_aux: Tensor,
    query_main: Tensor,
    query_bias: Tensor,
    film_weight: Tensor,
    film_bias: Tensor,
) -> tuple[Any, ...]:
    """Gradients of `reference.fuse` for all its arguments. The softmax is computed again instead of being kept.

    Sums are computed in float32 or wider; each gradient has the dtype of its argument.
    """
    work = torch.promote_types(main.dtype, torch.float32)
    x, g = (t.permute(0, 2, 3, 1).to(work) for t in (main, grad))
    e = torch.stack([t.permute(0, 2, 3, 1).to(work) for t in aux])  # (M, B, H, W, A)
    mask = torch.stack([t[:, 0].to(work) for t in masks])
    qa, qm, fw = query_aux.to(work), query_main.to(work), film_weight.to(work)
    c = x.shape[-1]
    logit = torch.einsum("mbhwa,ma->mbhw", e, qa) + torch.einsum("bhwc,mc->mbhw", x, qm)
    squashed = torch.tanh((logit + query_bias.to(work)[:, None, None, None]) / reference.LOGIT_BOUND)
    force = torch.exp(reference.LOGIT_BOUND * squashed)
    total = (mask * force).sum(0) + reference.MASK_EPSILON
    share = mask * force / total
    mixed = (share[..., None] * e).sum(0)
    gain = mixed @ fw[:c].T + (film_bias[:c].to(work) + 1.0)

    g_film = torch.cat([g * x, g], dim=-1)
    g_mixed = g_film @ fw
    g_share = (g_mixed * e).sum(-1)
    # ∂share_k/∂gate_m = (δ_km − share_k) / total
    g_gate = (g_share - (g_share * share).sum(0)) / total
    g_logit = g_gate * mask * force * (1 - squashed * squashed)
    g_aux = share[..., None] * g_mixed + g_logit[..., None] * qa[:, None, None, None, :]
    g_main = g * gain + torch.einsum("mbhw,mc->bhwc", g_logit, qm)

    def image(t: Tensor, like: Tensor) -> Tensor:
        return t.permute(0, 3, 1, 2).to(like.dtype)

    return (
        image(g_main, main),
        [image(t, like) for t, like in zip(g_aux, aux, strict=True)],
        [(d * f).unsqueeze(1).to(like.dtype) for d, f, like in zip(g_gate, force, masks, strict=True)],
        torch.einsum("mbhw,mbhwa->ma", g_logit, e).to(query_aux.dtype),
        torch.einsum("mbhw,bhwc->mc", g_logit, x).to(query_main.dtype),
        g_logit.sum((1, 2, 3)).to(query_bias.dtype),
        torch.einsum("bhwf,bhwa->fa", g_film, mixed).to(film_weight.dtype),
        g_film.sum((0, 1, 2)).to(film_bias.dtype),
    )


torch.library.register_autograd("deeplight::fuse", _backward, setup_context=_setup)


def fuse(
    main: Tensor,
    aux: Sequence[Tensor],
    masks: Sequence[Tensor],
    query_aux: Tensor,
    query_main: Tensor,
    query_bias: Tensor,
    film_weight: Tensor,
    film_bias: Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Auxiliary-to-main fusion: a masked softmax mixes the modalities, whose mixture gives γ and β to modulate `main`.

        l_m = 4·tanh((query_aux_m · aux_m + query_main_m · main + query_bias_m) / 4)
        w_m = mask_m·exp(l_m) / (Σ_k mask_k·exp(l_k) + ε),  ε = 1e-3
        γ, β = film_weight · Σ_m w_m·aux_m + film_bias
        out = main·(1 + γ) + β

    main: (B, C, H, W), float32, float16 or bfloat16. aux: M tensors (B, A, H, W) of main's dtype. masks: M tensors
    (B, 1, H, W) in [0, 1], of main's dtype; a missing modality (mask 0) has weight exactly 0. query_aux: (M, A),
    query_main: (M, C), query_bias: (M,), film_weight: (2C, A), film_bias: (2C,), of main's dtype or float32.
    The reference takes float64 too. Features have no units.

    Returns (B, C, H, W) of main's dtype; the kernel's result is in channels-last memory. The kernel takes one or two
    modalities of at most 128 channels; beyond that "auto" takes the reference. It reads each channels-last tensor once
    and copies others first. It computes in float32, except that products with film_weight have main's dtype (for
    float32 they are three TF32 products).

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    aux, masks = list(aux), list(masks)
    weights = {
        "query_aux": query_aux,
        "query_main": query_main,
        "query_bias": query_bias,
        "film_weight": film_weight,
        "film_bias": film_bias,
    }
    _check(main, aux, masks, weights)
    tensors = [main, *aux, *masks, *weights.values()]
    limit = _limit(main, aux)
    if not dispatch.use_kernel("fuse", implementation, tensors, differentiable=True, limit=limit):
        return reference.fuse(main, aux, masks, *(t.to(main.dtype) for t in weights.values()))
    dispatch.check_dtype("fuse", "main", main, dispatch.ACTIVATIONS)
    result: Tensor = _op(main, aux, masks, *weights.values())
    return result


def _limit(main: Tensor, aux: list[Tensor]) -> str | None:
    if len(aux) > 2:
        return f"the kernel takes one or two modalities, not {len(aux)}"
    widest = max(main.shape[1], aux[0].shape[1])
    if widest > MAX_CHANNELS:
        return f"the kernel takes at most {MAX_CHANNELS} channels, not {widest}"
    return None


def _check(main: Tensor, aux: list[Tensor], masks: list[Tensor], weights: dict[str, Tensor]) -> None:
    dispatch.check_shape("fuse", "main", main, (None, None, None, None))
    m = len(aux)
    if m == 0 or len(masks) != m:
        raise ValueError(
            f"fuse: aux and masks must be equally many and at least one, not {m} and {len(masks)}"
        )
    (b, c, h, w), a = main.shape, aux[0].shape[1]
    for i, (features, mask) in enumerate(zip(aux, masks, strict=True)):
        dispatch.check_shape("fuse", f"aux[{i}]", features, (b, a, h, w))
        dispatch.check_shape("fuse", f"masks[{i}]", mask, (b, 1, h, w))
        dispatch.check_together("fuse", {"main": main, f"aux[{i}]": features, f"masks[{i}]": mask})
    shapes = {
        "query_aux": (m, a),
        "query_main": (m, c),
        "query_bias": (m,),
        "film_weight": (2 * c, a),
        "film_bias": (2 * c,),
    }
    for name, shape in shapes.items():
        dispatch.check_shape("fuse", name, weights[name], shape)
        dispatch.check_dtype("fuse", name, weights[name], (main.dtype, torch.float32))
    dispatch.check_together("fuse", {"main": main, **weights}, dtype=False)
