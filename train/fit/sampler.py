"""Which windows a step sees: a function of (seed, stage, step, position), so that its state is the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import SampleSource

_AUGMENT, _AGAIN, _OTHER = 1, 2, 3


@dataclass(frozen=True)
class Draw:
    """One window of one place; `seed` starts its random numbers."""

    place: int
    window: Window
    seed: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """The random numbers of its augmentation."""
        return np.random.default_rng((*self.seed, _AUGMENT))


class Windows:
    """Draws windows of at most crop × crop LR pixels: places in proportion to their area, then any position."""

    def __init__(self, source: SampleSource, crop: int, places: Sequence[int] = ()) -> None:
        """places: indices to draw from; empty: all."""
        self.places = np.asarray(places if len(places) else range(len(source)), dtype=np.int64)
        self.sizes = np.array([source.size(int(i)) for i in self.places], dtype=np.int64).reshape(-1, 2)
        self.crop = min(crop, int(self.sizes.max()))
        self._upto = np.cumsum(self.sizes.prod(axis=1))

    def size(self, draw: Draw) -> tuple[int, int]:
        """(h, w) of the draw's place."""
        at = int(np.searchsorted(self.places, draw.place))
        return int(self.sizes[at, 0]), int(self.sizes[at, 1])

    def draw(self, seed: tuple[int, ...]) -> Draw:
        """The window that belongs to these numbers."""
        rng = np.random.default_rng(seed)
        at = int(np.searchsorted(self._upto, rng.integers(self._upto[-1]), side="right"))
        h, w = (int(v) for v in self.sizes[at])
        height, width = min(h, self.crop), min(w, self.crop)
        row, col = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
        return Draw(int(self.places[at]), Window(row, col, height, width), seed)

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Another window in the place of one that cannot be read."""
        return self.draw((*draw.seed, _AGAIN, attempt))

    def other(self, draw: Draw) -> Draw:
        """A window that has nothing to do with the draw's."""
        return self.draw((*draw.seed, _OTHER))


class StepSampler(Sampler[list[Draw]]):
    """The draws of the steps [first, last), one list a step; of a process `rank` of `world`, every world-th of them."""

    def __init__(
        self,
        windows: Windows,
        batch: int,
        seed: tuple[int, ...],
        steps: range,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """batch: over all processes. seed: of the run and the stage."""
        self._windows, self._batch, self._seed, self._steps = windows, batch, seed, steps
        self._mine = range(rank, batch, world)

    def __len__(self) -> int:
        """Steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        """One list of draws a step."""
        for step in self._steps:
            yield [self._windows.draw((*self._seed, step, k)) for k in self._mine]
