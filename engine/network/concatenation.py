"""What the ablation puts in the place of the fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Concatenation(nn.Module):
    """The plain alternative to `model.Fusion`: a pointwise layer on all features, added. It starts at 0."""

    def __init__(self, main: int, aux: int, modalities: int = 2) -> None:
        super().__init__()
        self.mix = nn.Conv2d(main + modalities * aux, main, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, main: Tensor, aux: list[Tensor], masks: list[Tensor]) -> Tensor:
        """main: (B,C,H,W), features of the lights. aux, masks: of each modality, (B,A,H,W) and (B,1,H,W)."""
        given = [a * mask for a, mask in zip(aux, masks, strict=True)]
        mixed: Tensor = self.mix(torch.cat([main, *given], dim=1))
        return main + mixed

    def without(self, main: Tensor) -> Tensor:
        """What `forward` gives where all masks are 0."""
        return main + F.conv2d(main, self.mix.weight[:, : main.shape[1]], self.mix.bias)
