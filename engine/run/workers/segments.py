"""The packs that no worker has yet, as runs of neighbours.

A worker that computes neighbours decodes few source blocks twice.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

Key = tuple[int, int]
"""Row and column of a pack."""


class PackSegments:
    """Gives each worker the next pack of a run of its own; who has none left takes half of the longest."""

    def __init__(self, keys: Sequence[Key], workers: int) -> None:
        """keys: in order. workers: how many are expected; any number may come."""
        ends = [len(keys) * n // workers for n in range(workers + 1)]
        self._free = deque(deque(keys[a:b]) for a, b in itertools.pairwise(ends) if a < b)
        self._own: dict[int, deque[Key]] = {}
        self.left = len(keys)
        """How many are not given out."""

    def next(self, worker: int, most: int = 1) -> list[Key]:
        """The next packs for a worker, `most` at most, all neighbours; none where all are given out."""
        if not self.left:
            return []
        own = self._own.get(worker)
        if not own:
            own = self._own[worker] = self._more()
        taken = [own.popleft() for _ in range(min(most, len(own)))]
        self.left -= len(taken)
        return taken

    def _more(self) -> deque[Key]:
        """A run that nobody has, or the later half of the longest, which is the one that lasts longest."""
        if self._free:
            return self._free.popleft()
        longest = max(self._own.values(), key=len, default=deque())
        half = deque(list(longest)[len(longest) // 2 :])
        for _ in half:
            longest.pop()
        return half
