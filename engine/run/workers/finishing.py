"""A worker assembles the output, and has others do what can be done side by side: the process that leads tells them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deeplight.engine.output.hands import Piece, SharedJob
from deeplight.engine.run.workers.messages import SharedWork, Trouble

if TYPE_CHECKING:
    from deeplight.engine.run.report import RunReport


class Finishing:
    """The end of a run, in a thread that waits while others work. They are its `hands.Hands`. count: of them."""

    def __init__(self, count: int, finish: Callable[[Finishing], RunReport | Trouble | None]) -> None:
        self.count = count
        self._said: queue.SimpleQueue[SharedWork | RunReport | Trouble | None] = queue.SimpleQueue()
        self._carried_out: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=lambda: self._said.put(finish(self)), name="finish", daemon=True).start()

    def next(self) -> SharedWork | RunReport | Trouble | None:
        """What others are to do, or how it ended."""
        return self._said.get()

    def go_on(self) -> SharedWork | RunReport | Trouble | None:
        """The work is done: go on. Returns what `next` does."""
        self._carried_out.put(None)
        return self.next()

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        """Have others do these pieces."""
        with job.published() as known:
            self._said.put(SharedWork(known, tuple(pieces)))
            self._carried_out.get()
