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
        """Return the generator of the random numbers that augment the window."""
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
        """Return the height and width of the draw's place in LR pixels."""
        at = int(np.searchsorted(self.places, draw.place))
        return int(self.sizes[at, 0]), int(self.sizes[at, 1])

    def draw(self, seed: tuple[int, ...]) -> Draw:
        """Return the window that belongs to these numbers."""
        rng = np.random.default_rng(seed)
        at = int(np.searchsorted(self._upto, rng.integers(self._upto[-1]), side="right"))
        h, w = (int(v) for v in self.sizes[at])
        height, width = min(h, self.crop), min(w, self.crop)
        row, col = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
        return Draw(int(self.places[at]), Window(row, col, height, width), seed)

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Return a window that takes the place of one that cannot be read."""
        return self.draw((*draw.seed, _AGAIN, attempt))

    def other(self, draw: Draw) -> Draw:
        """Return a window that has nothing to do with the draw's."""
        return self.draw((*draw.seed, _OTHER))


class StepSampler(Sampler[list[Draw]]):
    """Gives the draws of each step of `steps` as a list. Of `world` processes the one of `rank` gets every world-th
    draw."""

    def __init__(
        self,
        windows: Windows,
        batch: int,
        seed: tuple[int, ...],
        steps: range,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """batch: windows of a step over all processes. seed: of the run and the stage."""
        self._windows, self._batch, self._seed, self._steps = windows, batch, seed, steps
        self._mine = range(rank, batch, world)

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield one list of draws for each step."""
        for step in self._steps:
            yield [self._windows.draw((*self._seed, step, k)) for k in self._mine]
