"""The network's offset for whole places, made once while its layers rest: a window cuts their surroundings off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS
from deeplight.engine.core.windows import Window
from deeplight.engine.network.model import DeepLightSR, area_means
from deeplight.train.clips.samples import Sample, SampleSource

LARGEST_LR_PX = 8_000_000
"""LR pixels over all places for which estimates are made and kept: 64 MB of them, minutes of work."""


def affordable(source: SampleSource) -> bool:
    """Whether the places are few and small enough to be estimated whole."""
    return sum(int(np.prod(source.size(i))) for i in range(len(source))) <= LARGEST_LR_PX


class EstimatedSource:
    """A source whose offset is the estimate of `model.localise` from the whole place. Reads every place once."""

    def __init__(
        self, source: SampleSource, model: DeepLightSR, advance: Callable[[], None] = lambda: None
    ) -> None:
        """advance: called after each place."""
        self._source = source
        self._offsets = []
        for index in range(len(source)):
            self._offsets.append(_estimate(source, index, model))
            advance()

    def __len__(self) -> int:
        """How many places there are."""
        return len(self._source)

    def size(self, index: int) -> tuple[int, int]:
        """Return the place's height and width in LR pixels."""
        return self._source.size(index)

    def name(self, index: int) -> str:
        """Return the name that the source gives the place."""
        return self._source.name(index)

    def key(self, index: int) -> str:
        """Return the key that the source gives the place."""
        return self._source.key(index)

    def read(self, index: int, window: Window) -> Sample:
        """Return the source's sample of a window, with the estimate as its offset."""
        offset = self._offsets[index][:, *window.slices_in(Window(0, 0, *self.size(index)))]
        return replace(self._source.read(index, window), offset=offset)

    def fingerprint(self) -> str:
        """Return the source's fingerprint: the estimates follow from the data and the weights."""
        return self._source.fingerprint()


@torch.no_grad()
def _estimate(source: SampleSource, index: int, model: DeepLightSR) -> NDArray[np.float32]:
    """(2,h,w) in LR pixels; zeros for a place that cannot be read, which the loader will name."""
    size = source.size(index)
    try:
        sample = source.read(index, Window(0, 0, *size))
    except InputError:
        return np.zeros((2, *size), np.float32)
    device = next(model.parameters()).device
    inputs = (
        torch.from_numpy(np.ascontiguousarray(getattr(sample, s.name)))[None].to(device) for s in INPUTS
    )
    ntl, aux = model.layers(*inputs)
    found: NDArray[np.float32] = model.localise(ntl, area_means(aux))[0].cpu().numpy()
    return found
