"""The network in three parts, so that tiles with the same layers share the lights that these suggest.

Each part is compiled by itself, and none knows whether the lights are new or an earlier tile's, so both give the same
bits. A whole program with the suggestion and one without it might be fused, and so rounded, differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeplight.engine.network.compiled import channels_last
from deeplight.engine.network.model import Auxiliary, DeepLightSR
from deeplight.engine.network.normalise import Normalise
from deeplight.kernels.dispatch import never_interpreted


class Divided:
    """fuse: makes of each part what is called, as `compiled.compiled` does.

    normalise: between physical units and those of `Auxiliary`, and dtype: of that, for who makes it without the first
    part.
    """

    def __init__(self, network: DeepLightSR, fuse: Callable[[nn.Module], Callable[..., Any]]) -> None:
        self._layers, self._suggestion = fuse(Layers(network)), fuse(Suggestion(network))
        self._after = fuse(AfterSuggestion(network))
        self.normalise: Normalise = network.normalise
        self.dtype = torch.float32 if network.features is None else network.features

    def __call__(
        self, inputs: Sequence[Tensor], lights: Tensor, *, known: bool, aux: Auxiliary | None = None
    ) -> Sequence[Tensor]:
        """Outputs and inputs as the network's `forward`. lights: (B,1,h,w), read where they are known, else written.
        aux: the layers, DMO and DEM apart; what the inputs hold of them is not read then."""
        given = [channels_last(x) for x in inputs]
        with never_interpreted():
            aux = self._layers(*given) if aux is None else aux
            if not known:
                lights.copy_(self._suggestion(aux))
            found: Sequence[Tensor] = self._after(aux, lights, *given)
        return found

    def suggest(self, inputs: Sequence[Tensor]) -> Tensor:
        """The lights (B,1,h,w) that layers suggest."""
        given = [channels_last(x) for x in inputs]
        with never_interpreted():
            found: Tensor = self._suggestion(self._layers(*given))
        return found

    @property
    def fallbacks(self) -> dict[str, str]:
        """What of it runs uncompiled although a compiler was asked, and why."""
        found: dict[str, str] = {}
        for part in (self._layers, self._suggestion, self._after):
            found |= getattr(part, "fallbacks", {})
        return found


class Layers(nn.Module):
    """What `DeepLightSR.layers` makes of the layers, as a module of its own, which shares the weights."""

    def __init__(self, network: DeepLightSR) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Auxiliary:
        """Inputs as the network's `forward`. Returns the auxiliary, as `DeepLightSR.layers`."""
        return self.network.layers(*inputs)[1]


class Suggestion(nn.Module):
    """`DeepLightSR.suggest` as a module of its own."""

    def __init__(self, network: DeepLightSR) -> None:
        super().__init__()
        self.network = network

    def forward(self, aux: Auxiliary) -> Tensor:
        """The lights (B,1,h,w) that the auxiliary suggests, normalised."""
        return self.network.suggest(aux)


class AfterSuggestion(nn.Module):
    """`DeepLightSR.rest` as a module of its own."""

    def __init__(self, network: DeepLightSR) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, aux: Auxiliary, lights: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The network's outputs, from what the other parts gave and its inputs, as `DeepLightSR.rest`."""
        return self.network.rest(aux, lights, *inputs)
