"""Decides who computes which pack, and what to do when a worker dies, hangs or fails. It does not know how workers run.

A pack is settled when a worker says that it is stored, or when it is given up. Since packs are stored under their own
names and the first stays, the same pack may be computed twice, wherever it is not known to be done.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.run.executor import MOST_QUARANTINED, TILE_TIMEOUT_S, TRIES
from deeplight.engine.run.workers.segments import Key, PackSegments

DEPTH = 2
"""Calls in a worker's hands, so that it never waits for the next. A call is one pack, or several fast ones."""
CALL_S = 0.25
"""A call has as many packs as take so long together: each costs the process that leads about a millisecond."""
MOST_A_CALL = 8
"""Packs of a call at most, unless a worker needs more at once."""
_REMEMBERED = 50
"""So many packs tell how long one takes."""
_SHARE = 4
"""A call has at most this part of a worker's share of the packs that are left, so that all end together."""
LATE = 2.0
"""A worker that takes so many times the usual for a pack is late: its packs are given to another that is idle, too."""
_LEAST_LATE_S = 2.0
_QUIET_S = 30.0
"""After so long without any worker it is said that the run waits for one."""


@dataclass(frozen=True)
class Ready:
    """A worker can be given packs. name: for people."""

    worker: int
    name: str


@dataclass(frozen=True)
class Verdict:
    """What became of a pack. error: None where it is stored. final: another try would not help. seconds: that it took;
    None where it had no data."""

    worker: int
    key: Key
    error: str | None = None
    final: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Lost:
    """A worker is gone. refused: it cannot take part, so that another in its place could not either. fatal: no other
    could go on, as where the disk is full."""

    worker: int
    reason: str
    refused: bool = False
    fatal: bool = False


class Pool(Protocol):
    """The workers of a run, wherever they are."""

    def hire(self) -> int:
        """Start one more worker. Returns its number; `wait` tells when it is ready."""

    def give(self, worker: int, keys: Sequence[Key]) -> None:
        """Let a worker compute packs, after those that it has. Their verdicts come together."""

    def dismiss(self, worker: int) -> None:
        """End a worker, whatever it does; `wait` tells nothing more of it."""

    def wait(self) -> Sequence[Ready | Verdict | Lost]:
        """What has happened; returns after a moment where nothing has. Raises what ends the run."""


@dataclass(frozen=True)
class GivenUp:
    """A pack that was given up, the last reason, and the workers that it failed on."""

    key: Key
    reason: str
    workers: tuple[str, ...]


@dataclass
class _Hands:
    """The packs that a worker has, call by call, and since when it works on the first."""

    name: str
    calls: list[list[Key]] = field(default_factory=list)
    since: float = 0.0

    @property
    def keys(self) -> list[Key]:
        """All packs, in order."""
        return [key for call in self.calls for key in call]

    def remove(self, key: Key) -> None:
        """Take a pack out, and its call with the last one."""
        call = next(call for call in self.calls if key in call)
        call.remove(key)
        if not call:
            self.calls.remove(call)


class Dispatch:
    """Hands packs out until each is settled. stored: told of every pack that is; said: of what people should know.
    ready: names of workers that are ready already. what: a pack is called; parts of the output are handed out, too.
    at_once: packs that a worker needs at once to have work for all its threads.

    given_up: packs in quarantine. lost: reasons for which workers are gone. ready: workers, the last to answer at the
    end.
    """

    def __init__(
        self,
        pool: Pool,
        keys: Sequence[Key],
        workers: int,
        stored: Callable[[Key], None],
        said: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        ready: Mapping[int, str] | None = None,
        what: str = "pack",
        at_once: int = 1,
    ) -> None:
        self._pool, self._stored, self._said, self._clock = pool, stored, said, clock
        self._what, self._at_once = what, at_once
        self._left = set(keys)
        self._segments = PackSegments(keys, workers)
        self._again: deque[Key] = deque()
        self._failed: dict[Key, list[str]] = {}
        self._hands = {worker: _Hands(name) for worker, name in (ready or {}).items()}
        self._coming = workers - len(self._hands)
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._any_stored = False
        self._late: list[tuple[_Hands, Key]] | None = None
        self._in_a_row = 0
        self._quiet_since = clock()
        self.given_up: list[GivenUp] = []
        self.lost: list[str] = []
        self.duplicates = 0

    def run(self) -> None:
        """Settle all packs; the workers have been hired before. Raises DeepLightError where that cannot be done."""
        while self._left:
            for event in self._pool.wait():
                self._take(event)
            self._give_up_the_stuck()
            self._hand_out()
            self._say_if_quiet()

    @property
    def idle(self) -> dict[int, str]:
        """The names of those workers that have nothing in hand."""
        return {worker: hands.name for worker, hands in self._hands.items() if not hands.calls}

    @property
    def ready(self) -> list[int]:
        """The workers that are ready; those with nothing in hand come first."""
        return sorted(self._hands, key=lambda worker: len(self._hands[worker].calls))

    def _take(self, event: Ready | Verdict | Lost) -> None:
        if isinstance(event, Ready):
            self._coming -= 1
            self._hands[event.worker] = _Hands(event.name)
        elif isinstance(event, Verdict):
            self._judge(event)
        else:
            self._lose(event)

    def _judge(self, verdict: Verdict) -> None:
        hands, now = self._hands[verdict.worker], self._clock()
        if verdict.error is None and verdict.seconds is not None:
            self._took.append(verdict.seconds)
        hands.remove(verdict.key)
        hands.since = now
        if verdict.key not in self._left:  # another had it too and was first
            return
        if verdict.error is None:
            self._in_a_row = 0
            self._any_stored = True
            self._left.discard(verdict.key)
            self._stored(verdict.key)
            return
        self._fail(verdict.key, hands.name, verdict.error, verdict.final)
        self._count_failure(verdict.error)

    def _lose(self, lost: Lost) -> None:
        """A worker is gone: its packs are tried again, another comes in its place."""
        if lost.fatal:
            raise DeepLightError(lost.reason)
        hands = self._hands.pop(lost.worker, None)
        self._coming -= hands is None
        self.lost.append(lost.reason)
        self._said(f"warning: {lost.reason}")
        for key in hands.keys if hands is not None else ():
            if key in self._left:
                self._fail(key, hands.name if hands is not None else "", lost.reason, False)
        if not lost.refused:
            self._count_failure(lost.reason)
            self._pool.hire()
            self._coming += 1
        elif not self._hands and not self._coming:
            raise InputError(f"no worker is left: {lost.reason}")

    def _fail(self, key: Key, worker: str, reason: str, final: bool) -> None:
        """Have a pack tried again, alone in its worker, so that no other pack is lost if this one is at fault."""
        failed = self._failed.setdefault(key, [])
        failed.append(worker)
        if not final and len(failed) < TRIES:
            if key not in self._again:
                self._again.append(key)
        elif not any(key in hands.keys for hands in self._hands.values()):  # else another may still make it
            self._give_up(GivenUp(key, reason, tuple(failed)))

    def _give_up(self, pack: GivenUp) -> None:
        """Put a pack into quarantine. Raises DeepLightError where there are too many."""
        self._left.discard(pack.key)
        self.given_up.append(pack)
        self._said(f"warning: {self._what} {pack.key[0]},{pack.key[1]} is given up: {pack.reason}")
        if len(self.given_up) > MOST_QUARANTINED:
            raise DeepLightError(
                f"more than {MOST_QUARANTINED} {self._what}s failed, so the run was stopped: {pack.reason}"
            )

    def _count_failure(self, reason: str) -> None:
        self._in_a_row += 1
        if self._in_a_row > MOST_QUARANTINED + TRIES * len(self.given_up):
            raise DeepLightError(
                f"{self._in_a_row} failures came one after the other and no pack was finished, so the run was "
                f"stopped; the last reason: {reason}"
            )

    def _give_up_the_stuck(self) -> None:
        """A worker that has answered nothing for longer than a tile may take is as good as dead."""
        limit = max(TILE_TIMEOUT_S, 10 * LATE * self._usual())
        now = self._clock()
        for worker, hands in list(self._hands.items()):
            if hands.calls and now - hands.since > limit:
                self._pool.dismiss(worker)
                self._lose(Lost(worker, f"{hands.name} has not answered for {limit:.0f} s and was stopped"))

    def _hand_out(self) -> None:
        self._late = None
        for worker, hands in self._hands.items():
            while len(hands.calls) < DEPTH and (keys := self._next(worker, hands)):
                if not hands.calls:
                    hands.since = self._clock()
                hands.calls.append(keys)
                self._pool.give(worker, tuple(keys))

    def _next(self, worker: int, hands: _Hands) -> list[Key]:
        """Choose the next call of a worker: packs of its own run; when all runs are given out, one that failed, which
        is then computed alone; after those, one that another worker is late with. Who has work gets no more where there
        is not enough for all."""
        few = len(self._hands) + (0 if self._any_stored else self._coming)
        if hands.calls and self._segments.left <= few:
            return []
        if self._failed and any(key in self._failed for key in hands.keys):
            return []
        if keys := self._segments.next(worker, self._packs_a_call()):
            return keys
        key = (None if hands.calls else self._failed_before(hands)) or self._overdue(hands)
        return [] if key is None else [key]

    def _packs_a_call(self) -> int:
        """As few as keep a worker busy, until it is known that packs with data are fast: those without tell nothing of
        the next, and the first to be finished are those with the least data."""
        fair = len(self._left) // (_SHARE * max(1, len(self._hands)))
        fast = 1
        if len(self._took) >= min(2 * len(self._hands), _REMEMBERED):
            fast = min(MOST_A_CALL, int(CALL_S / max(max(self._took), CALL_S / MOST_A_CALL)))
        return max(1, min(fair, max(self._at_once, fast)))

    def _failed_before(self, idle: _Hands) -> Key | None:
        """A pack that failed before, on another worker if there is one."""
        if not self._again:
            return None
        others = {other.name for other in self._hands.values() if other is not idle}
        for key in self._again:
            if key in self._left and (idle.name not in self._failed[key] or others <= set(self._failed[key])):
                self._again.remove(key)
                return key
        return None

    def _overdue(self, idle: _Hands) -> Key | None:
        """A pack that a late worker has, and no other."""
        if self._late is None:  # looked for once for all that are idle
            self._late = self._late_packs()
        for number, (hands, key) in enumerate(self._late):
            if hands is not idle:
                self.duplicates += 1
                del self._late[number]
                return key
        return None

    def _late_packs(self) -> list[tuple[_Hands, Key]]:
        now, limit = self._clock(), max(_LEAST_LATE_S, LATE * self._usual())
        late = [hands for hands in self._hands.values() if hands.calls and now - hands.since > limit]
        if not late or not self._any_stored:
            return []
        copies = Counter(key for hands in self._hands.values() for key in hands.keys)
        return [(h, key) for h in late for key in h.keys if copies[key] == 1 and key in self._left]

    def _usual(self) -> float:
        """The seconds that a pack with data usually takes; 0 as long as none is finished."""
        return statistics.median(self._took) if self._took else 0.0

    def _say_if_quiet(self) -> None:
        now = self._clock()
        if self._hands:
            self._quiet_since = now
        elif now - self._quiet_since > _QUIET_S:
            self._quiet_since = now
            self._said(f"no worker is ready: waiting for {self._coming}")
