"""Plain PyTorch definition of the fusion. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_BOUND = 4.0
"""The logits of the modalities are bounded smoothly to ±4, so that exp() needs no maximum subtracted and fits fp16."""


MASK_EPSILON = 1e-3
"""Added to the softmax's denominator, so that the weights go continuously to 0 where every modality is missing."""


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
    """Auxiliary-to-main fusion: a masked softmax mixes the modalities, whose mixture gives γ and β to modulate `main`.

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
    work = torch.promote_types(main.dtype, torch.float32)
    # 1 + γ in 8 bits is wrong by the same share at all pixels
    film, shift = film_weight[:, :, None, None].to(work), film_bias.to(work)
    gain = F.conv2d(mixed.to(work), film[:c], shift[:c] + 1.0)  # 1 + γ
    beta = F.conv2d(mixed.to(work), film[c:], shift[c:])
    return (main * gain + beta).to(main.dtype)
