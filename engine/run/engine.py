"""What runs a scene, open: the model, and who is told. A stack hands it from date to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplight.engine.core.machine import bytes_moved
from deeplight.engine.core.progress import Progress
from deeplight.engine.run.events import Events
from deeplight.engine.runtime.artifact import Artifact

if TYPE_CHECKING:
    from deeplight.engine.output.hands import Hands
    from deeplight.engine.run.device_dates import DatesOnDevice
    from deeplight.engine.run.result import RunResult
    from deeplight.engine.run.suggested import SuggestedLights
    from deeplight.engine.runtime.backends.base import Backend


@dataclass(frozen=True)
class Began:
    """When a run began. moved: `bytes_moved` then."""

    seconds: float
    moved: tuple[int, int] | None

    @classmethod
    def now(cls) -> Began:
        """It begins now."""
        return cls(time.perf_counter(), bytes_moved())


@dataclass
class Engine:
    """What runs a scene, or the dates of a stack one after the other. begun: told before a scene's first tile. core:
    side of the tiles that the last date took, for the next; None: none yet. told: makes of a scene's result what is
    reported. dates: what the dates share on a device; None for a single scene. suggested: what their layers suggest, on
    the host; None where no dates share layers.
    hands: who assembles the output; None: threads of this process."""

    artifact: Artifact
    backend: Backend
    threads: int
    events: Events
    progress: Progress
    begun: Callable[[], None] = lambda: None
    core: int | None = None
    told: Callable[[RunResult], RunResult] = lambda result: result
    dates: DatesOnDevice | None = None
    hands: Hands | None = None
    suggested: SuggestedLights | None = None
    _split: tuple[int, tuple[str, ...], bool, bool, bool] | None = None

    def split(self, streams: int, outputs: Sequence[str], *, layers: bool, offset: bool = False) -> None:
        """Open so many streams, as Backend.split; dates that ask for the same share what it opens."""
        suggested = self.suggested is not None and layers and not offset
        wanted = streams, tuple(outputs), layers, offset, suggested
        if self._split != wanted:
            self.backend.split(
                streams, self.threads, outputs, layers=layers, offset=offset, suggested=suggested
            )
            self._split = wanted
