"""Work on an output that can be done piece by piece, side by side, and who does it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from deeplight.engine.output.packs import PackStore

Piece = tuple[int, int]
"""A range of bytes, or row and column of a group of packs."""
MOST_THREADS = 8
"""More do not make a disk faster."""


class SharedJob(Protocol):
    """Work that consists of pieces. One may be done several times, at the same time too: what comes of it is equal."""

    def do(self, piece: Piece, stop: threading.Event | None = None) -> None:
        """Do a piece, or end early where `stop` is set. Raises DeepLightError."""

    def published(self) -> contextlib.AbstractContextManager[Published]:
        """What other processes need to know; they can do the job while the block runs."""


class Published(Protocol):
    """A job as other processes know it: small, to be pickled."""

    def job(self, store: PackStore) -> SharedJob:
        """The job, in a process that has the packs; each piece is on the disk when it is done. Raises DeepLightError
        where it is over."""

    def size(self, piece: Piece) -> int:
        """Bytes of the output that a piece is, for the progress."""


class Hands(Protocol):
    """Who does a job. count: how many can work at the same time."""

    count: int

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        """Return when all pieces are done. Raises what SharedJob.do does."""


class Threads:
    """Threads of this process. Reading, checksums and writing leave the interpreter's lock to the others."""

    def __init__(self, count: int) -> None:
        self.count = max(1, min(count, MOST_THREADS))

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        """Return when all pieces are done. Raises what SharedJob.do does."""
        if self.count == 1 or len(pieces) == 1:
            for piece in pieces:
                job.do(piece)
            return
        stop = threading.Event()
        with ThreadPoolExecutor(self.count, "assemble") as pool:
            done = [pool.submit(job.do, piece, stop) for piece in pieces]
            try:
                for each in as_completed(done):
                    each.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
