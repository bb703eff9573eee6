"""The learnt blocks: encoders of the auxiliary, its fusion into the lights, refinement with the impervious share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.network.normalise import Normalise


class Encoder(nn.Module):
    """One modality → features at ×4, ×2, ×1 (returned coarse to fine). Channel −1 of the input is its mask.

    Nothing is computed at ×8: a 4×4 convolution with stride 2 takes the finest pixels in.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, widths[2], 4, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(widths[s + 1], widths[s], 2, stride=2) for s in (1, 0))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """x: (B,channels,8h,8w); bias: (B,A) or None, added to the first features. Three tensors, ×1 first."""
        y = self.first(x)
        features = [F.relu(y if bias is None else y + bias[:, :, None, None])]
        for layer in self.down:
            features.append(F.relu(layer(features[-1])))
        return features[::-1]


class Fusion(nn.Module):
    """Parameters of `kernels.fuse` for two modalities. γ and β start at 0: fusion starts as the identity."""

    def __init__(self, main: int, aux: int, modalities: int = 2) -> None:
        super().__init__()
        self.query_aux = nn.Parameter(torch.randn(modalities, aux) * aux**-0.5)
        self.query_main = nn.Parameter(torch.zeros(modalities, main))
        self.query_bias = nn.Parameter(torch.zeros(modalities))
        self.film_weight = nn.Parameter(torch.randn(2 * main, aux) * 0.1 * aux**-0.5)
        self.film_bias = nn.Parameter(torch.zeros(2 * main))

    def forward(self, main: Tensor, aux: list[Tensor], masks: list[Tensor]) -> Tensor:
        """main: (B,C,H,W); aux: per modality (B,A,H,W); masks: per modality (B,1,H,W)."""
        return kernels.fuse(
            main,
            aux,
            masks,
            self.query_aux,
            self.query_main,
            self.query_bias,
            self.film_weight,
            self.film_bias,
        )

    def without(self, main: Tensor) -> Tensor:
        """What `forward` gives where all masks are 0."""
        work = torch.promote_types(main.dtype, torch.float32)
        gain, beta = self.film_bias.to(work).reshape(2, 1, -1, 1, 1)
        out: Tensor = main * (gain + 1.0) + beta
        return out.to(main.dtype)


class Refine(nn.Module):
    """Auxiliary-embedded refinement: ISP logit, its probability embedded back, then the NTL residual."""

    embed: Tensor

    def __init__(self, width: int, depth: int, embed_isp: bool = True) -> None:
        super().__init__()
        self.isp = nn.Conv2d(width, 1, 1)
        if embed_isp:
            self.embed = nn.Parameter(torch.randn(width) * 0.1)
        else:
            self.register_buffer("embed", torch.zeros(width))
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.residual = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.isp.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B,C,H,W); carried: (B,1,H,W) or None. Returns features, NTL residual + carried, ISP logits."""
        logits = self.isp(x)
        x = x + torch.sigmoid(logits) * self.embed[None, :, None, None]
        for layer in self.layers:
            x = x + F.relu(layer(x))
        residual = self.residual(x).float()
        return x, residual if carried is None else carried + residual, logits

    def restore(
        self, x: Tensor, base: kernels.Base, norm: Normalise, cubic: Tensor, linear: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x: (B,C,H,W). cubic, linear: see `kernels.restore`. Returns radiance and ISP probability, (B,1,H,W) each."""
        blocks = [_parameters(layer) for layer in self.layers]
        return kernels.restore(
            x,
            base,
            *_parameters(self.isp),
            self.embed,
            [weight for weight, _ in blocks],
            [bias for _, bias in blocks],
            *_parameters(self.residual),
            cubic=cubic,
            linear=linear,
            range=kernels.Radiance(norm.unit, norm.gain, norm.ceiling),
        )


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution."""
    return layer.weight, layer.bias  # type: ignore[return-value]
