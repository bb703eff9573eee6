"""A worker assembles the output, and has others do what can be done side by side: the process that leads tells them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deeplight.engine.output.copying import ByteRange, Copying, CopyJob, published
from deeplight.engine.run.workers.messages import SharedWork, Trouble

if TYPE_CHECKING:
    from deeplight.engine.run.report import RunReport


class Finishing:
    """The end of a run, in a thread that waits while others work. They are its `copying.Hands`. count: of them."""

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

    def copy(self, job: CopyJob, parts: Sequence[ByteRange]) -> None:
        """Have others copy these parts."""
        with published(job) as table:
            self._said.put(SharedWork(Copying(table, job.path), tuple(parts)))
            self._carried_out.get()
