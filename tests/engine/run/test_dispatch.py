"""Who computes which pack: with stand-in workers and a clock of their own, so that nothing waits."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.run.executor import MOST_QUARANTINED, TRIES
from deeplight.engine.run.workers.dispatch import (
    CALL_S,
    DEPTH,
    MOST_A_CALL,
    Dispatch,
    Lost,
    Ready,
    Verdict,
)
from deeplight.engine.run.workers.segments import Key, PackSegments

KEYS = [(row, col) for row in range(5) for col in range(6)]
PACK_S, EMPTY_S = 10.0, 0.1
Fault = Callable[["Crew", int, Key], "Verdict | Lost | None"]


class Crew:
    """Workers that take PACK_S for a pack. fault: what comes of one in place of success; None: as usual. pack_s: the
    seconds that a pack takes; None for one without data, which takes EMPTY_S. frozen: those that do not answer."""

    def __init__(
        self,
        fault: Fault = lambda *_: None,
        start_s: float = 1.0,
        pack_s: Callable[[Key], float | None] = lambda _: PACK_S,
    ) -> None:
        self.now, self.fault, self.start_s, self.pack_s = 0.0, fault, start_s, pack_s
        self.hired = 0
        self.frozen: set[int] = set()
        self.gone: set[int] = set()
        self.calls: dict[int, list[Sequence[Key]]] = {}
        self.given: Counter[Key] = Counter()
        self.sizes: list[int] = []
        self.most_in_hand = 0
        self._made: dict[int, list[Verdict]] = {}
        self._order = 0
        self._events: list[tuple[float, int, int]] = []

    def hire(self) -> int:
        self.hired += 1
        self.calls[self.hired], self._made[self.hired] = [], []
        self._at(self.start_s, self.hired)
        return self.hired

    def give(self, worker: int, keys: Sequence[Key]) -> None:
        self.given.update(keys)
        self.calls[worker].append(keys)
        self.sizes.append(len(keys))
        self.most_in_hand = max(self.most_in_hand, sum(map(len, self.calls[worker])))
        if len(self.calls[worker]) == 1:
            self._begin(worker)

    def dismiss(self, worker: int) -> None:
        self.gone.add(worker)

    def wait(self) -> Sequence[Ready | Verdict | Lost]:
        """What happens next; a fifth of a second later where nothing does before."""
        if not self._events or self._events[0][0] > self.now + 0.2:
            self.now += 0.2
            return []
        self.now, _, worker = heapq.heappop(self._events)
        if worker in self.gone:
            return []
        if worker in self.frozen:
            self._at(1.0, worker)
            return []
        if not self.calls[worker]:
            return [Ready(worker, f"worker {worker}")]
        made, key = self._made[worker], self._at_work(worker)
        event = self.fault(self, worker, key) or Verdict(worker, key, seconds=self.pack_s(key))
        if isinstance(event, Lost):
            self.gone.add(worker)
            return [event]
        if worker in self.frozen:
            self._at(1.0, worker)
            return []
        made.append(event)
        if len(made) < len(self.calls[worker][0]):
            self._begin(worker)
            return []
        self.calls[worker].pop(0)
        self._made[worker] = []
        if self.calls[worker]:
            self._begin(worker)
        return made

    def _at_work(self, worker: int) -> Key:
        """The pack that a worker computes."""
        return self.calls[worker][0][len(self._made[worker])]

    def _begin(self, worker: int) -> None:
        took = self.pack_s(self._at_work(worker))
        self._at(EMPTY_S if took is None else took, worker)

    def _at(self, after: float, worker: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + after, self._order, worker))


def dispatched(
    crew: Crew, workers: int = 2, keys: Sequence[Key] = KEYS, at_once: int = 1
) -> tuple[Dispatch, list[Key]]:
    """A run to its end, and the packs that it was told are stored, each once."""
    stored: list[Key] = []
    for _ in range(workers):
        crew.hire()
    dispatch = Dispatch(
        crew, keys, workers, stored.append, lambda _: None, clock=lambda: crew.now, at_once=at_once
    )
    dispatch.run()
    assert len(stored) == len(set(stored))
    assert set(stored) | {g.key for g in dispatch.given_up} == set(keys)
    return dispatch, stored


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 40])
def test_every_pack_once(workers: int) -> None:
    crew = Crew()
    dispatched(crew, workers)
    assert set(crew.given.values()) == {1} and crew.most_in_hand <= DEPTH
    assert crew.now <= 1 + PACK_S * (-(-len(KEYS) // workers) + 1)


def test_runs_of_neighbours_halved_for_who_has_none() -> None:
    segments = PackSegments(KEYS, 2)
    first = [key for most in (1, 6, 7, 5) for key in segments.next(1, most)]
    assert first == KEYS[:15], "a run ends where it ends, whatever more is asked for"
    assert segments.next(2) == [KEYS[15]]
    taken = segments.next(1)
    assert taken == [KEYS[23]], "the later half of what the other has"
    rest = []
    while keys := segments.next(1, 4):
        rest += keys
    assert sorted([*first, KEYS[15], *taken, *rest]) == KEYS


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_at_any_pack(seed: int) -> None:
    at = random.Random(seed).randrange(1, len(KEYS))

    def kill(crew: Crew, worker: int, key: Key) -> Lost | None:
        return Lost(worker, "killed") if sum(crew.given.values()) >= at and crew.hired == 2 else None

    crew = Crew(kill)
    dispatch, _ = dispatched(crew)
    assert crew.hired == 3 and dispatch.lost == ["killed"] and not dispatch.given_up
    assert sum(crew.given.values()) - len(KEYS) <= DEPTH, "no more is computed again than what it had in hand"


FAST = [(row, col) for row in range(40) for col in range(10)]


@pytest.mark.parametrize(("pack_s", "most"), [(0.01, MOST_A_CALL), (0.1, 2), (0.2, 1)])
def test_fast_packs_go_several_a_call(pack_s: float, most: int) -> None:
    crew = Crew(pack_s=lambda _: pack_s)
    dispatched(crew, 2, FAST)
    assert set(crew.given.values()) == {1}
    assert max(crew.sizes) == most and crew.sizes[0] == crew.sizes[-1] == 1, (
        "few at the end, so that all end together"
    )
    assert crew.most_in_hand <= max(DEPTH, 2 * CALL_S / pack_s)
    assert len(crew.sizes) < 1.4 * len(FAST) / most + 10
    assert crew.now <= 1 + pack_s * (len(FAST) / 2 + 2) + 0.2


@pytest.mark.parametrize("pack_s", [0.01, 5.0])
def test_a_worker_has_packs_for_all_its_threads(pack_s: float) -> None:
    """From the first call, however long a pack takes; a large tile is a pack by itself, which one thread reads."""
    crew = Crew(pack_s=lambda _: pack_s)
    dispatched(crew, 2, FAST, at_once=16)
    assert set(crew.given.values()) == {1}
    assert crew.sizes[:4] == [16] * 4 and crew.most_in_hand == 32
    assert crew.sizes[-1] == 1, "few at the end, so that all end together"


def test_packs_without_data_tell_nothing_of_how_fast_the_next_is() -> None:
    sea = Crew(pack_s=lambda key: None if key[0] < 20 else PACK_S)
    dispatched(sea, 1, FAST)
    assert set(sea.sizes) == {1} and sea.most_in_hand == DEPTH


def test_the_first_pack_to_be_finished_is_no_measure_of_the_others() -> None:
    """It is the one with the least data: the others are still at work."""
    crew = Crew(pack_s=lambda key: 0.01 if key == (5, 0) else PACK_S)
    dispatched(crew, 8, FAST)
    assert set(crew.sizes) == {1} and crew.most_in_hand == DEPTH


def test_one_slow_pack_ends_calls_of_several_for_a_while() -> None:
    crew = Crew(pack_s=lambda key: PACK_S if key == (20, 0) else 0.01)
    dispatched(crew, 1, FAST)
    slow = crew.sizes.index(1, 10)
    assert set(crew.sizes[slow : slow + 40]) == {1} and MOST_A_CALL in crew.sizes[slow + 50 :]


def test_a_fast_pack_that_kills_its_worker_is_given_up_alone() -> None:
    poison = (17, 4)
    crew = Crew(
        lambda crew, worker, key: Lost(worker, "died") if key == poison else None, pack_s=lambda _: 0.01
    )
    dispatch, stored = dispatched(crew, 2, FAST)
    assert [g.key for g in dispatch.given_up] == [poison] and len(stored) == len(FAST) - 1
    assert crew.given[poison] == TRIES and sum(crew.given.values()) - len(FAST) <= DEPTH * MOST_A_CALL + TRIES


def test_a_fast_pack_that_fails_leaves_those_of_its_call_alone() -> None:
    bad = (17, 4)
    crew = Crew(
        lambda crew, worker, key: Verdict(worker, key, "bad") if key == bad else None, pack_s=lambda _: 0.01
    )
    dispatch, _ = dispatched(crew, 2, FAST)
    assert [g.key for g in dispatch.given_up] == [bad] and crew.given[bad] == TRIES
    assert sum(crew.given.values()) == len(FAST) + TRIES - 1 and not dispatch.lost


def test_all_workers_killed_at_once() -> None:
    killed: set[int] = set()

    def kill(crew: Crew, worker: int, key: Key) -> Lost | None:
        if sum(crew.given.values()) > 12 and worker <= 3:
            killed.add(worker)
            return Lost(worker, "killed")
        return None

    crew = Crew(kill)
    dispatch, _ = dispatched(crew, 3)
    assert killed == {1, 2, 3} and not dispatch.given_up
    assert sum(crew.given.values()) - len(KEYS) <= 3 * DEPTH


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_pack_that_kills_its_worker_is_given_up_alone(workers: int) -> None:
    poison = (2, 3)
    crew = Crew(lambda crew, worker, key: Lost(worker, "died") if key == poison else None)
    dispatch, stored = dispatched(crew, workers)
    assert [g.key for g in dispatch.given_up] == [poison] and len(stored) == len(KEYS) - 1
    assert len(dispatch.lost) == TRIES and crew.hired == workers + TRIES


@pytest.mark.parametrize("final", [False, True], ids=["tried again", "hopeless"])
def test_a_pack_that_always_fails(final: bool) -> None:
    bad = (0, 0)
    crew = Crew(lambda crew, worker, key: Verdict(worker, key, "bad", final) if key == bad else None)
    dispatch, _ = dispatched(crew, 4)
    (given_up,) = dispatch.given_up
    assert given_up.key == bad and given_up.reason == "bad"
    tries = 1 if final else TRIES
    assert crew.given[bad] == tries and len(set(given_up.workers)) == tries, "on another worker each time"


def test_a_pack_that_fails_once_is_stored() -> None:
    seen: set[Key] = set()

    def once(crew: Crew, worker: int, key: Key) -> Verdict | None:
        if key in seen:
            return None
        seen.add(key)
        return Verdict(worker, key, "hiccup") if key[1] == 3 else None

    dispatch, stored = dispatched(Crew(once))
    assert not dispatch.given_up and len(stored) == len(KEYS)


def test_a_frozen_worker_costs_no_more_than_three_packs_and_thaws_in_peace() -> None:
    calm = Crew()
    dispatched(calm, 2)

    def freeze(crew: Crew, worker: int, key: Key) -> None:
        if sum(crew.given.values()) >= len(KEYS) and not crew.frozen:
            crew.frozen.add(worker)

    crew = Crew(freeze)
    dispatch, _ = dispatched(crew, 2)
    assert crew.frozen and dispatch.duplicates >= 1 and not dispatch.lost
    assert crew.now - calm.now <= 3 * PACK_S + 1


def test_a_thawed_worker_that_answers_for_packs_that_others_have_stored() -> None:
    """Two freeze; the third has computed the packs of one when that thaws, and those of the other still to do."""
    thawed: list[float] = []

    def freeze(crew: Crew, worker: int, key: Key) -> None:
        if worker in (1, 2) and not thawed:
            crew.frozen.add(worker)

    class Thawing(Crew):
        def wait(self) -> Sequence[Ready | Verdict | Lost]:
            if max(self.given.values(), default=0) == 2 and not thawed:
                thawed.append(self.now + 2 * PACK_S + 1)
            if thawed and self.now > thawed[0]:
                self.frozen.discard(1)
            return super().wait()

    crew = Thawing(freeze)
    dispatch, stored = dispatched(crew, 3)
    assert thawed and crew.frozen == {2} and dispatch.duplicates >= DEPTH
    assert len(stored) == len(KEYS) and not dispatch.given_up and not dispatch.lost


def test_a_worker_killed_while_it_does_the_work_of_a_frozen_one() -> None:
    def fault(crew: Crew, worker: int, key: Key) -> Lost | None:
        if worker == 1:
            crew.frozen.add(worker)
        return Lost(worker, "killed") if worker == 2 and crew.given[key] == 2 else None

    crew = Crew(fault)
    dispatch, _ = dispatched(crew)
    assert dispatch.lost == ["killed"] and crew.frozen == {1} and not dispatch.given_up
    assert crew.now < (len(KEYS) + 8) * PACK_S


def test_losses_that_are_far_apart_end_no_run() -> None:
    seen: set[Key] = set()

    def fault(crew: Crew, worker: int, key: Key) -> Lost | None:
        known = key in seen
        seen.add(key)
        return None if known or key[1] != 3 else Lost(worker, "killed")

    keys = [(row, col) for row in range(MOST_QUARANTINED + 5) for col in range(6)]
    dispatch, _ = dispatched(Crew(fault), 1, keys)
    assert len(dispatch.lost) == MOST_QUARANTINED + 5 and not dispatch.given_up


def test_the_stuck_are_replaced() -> None:
    """A lone worker that answers nothing any more."""

    def freeze(crew: Crew, worker: int, key: Key) -> None:
        if worker == 1 and sum(crew.given.values()) > 9:
            crew.frozen.add(worker)

    crew = Crew(freeze)
    dispatch, _ = dispatched(crew, 1)
    assert crew.hired == 2 and crew.gone == {1} and "has not answered for 1800 s" in dispatch.lost[0]


def test_who_is_refused_is_not_replaced() -> None:
    class Refusing(Crew):
        def wait(self) -> Sequence[Ready | Verdict | Lost]:
            return [Lost(e.worker, "other version", True) if isinstance(e, Ready) and e.worker in self.no else e
                    for e in super().wait()]  # fmt: skip

        no: frozenset[int] = frozenset({1})

    crew = Refusing()
    dispatch, _ = dispatched(crew, 2)
    assert crew.hired == 2 and dispatch.lost == ["other version"]
    none = Refusing()
    none.no = frozenset({1, 2})
    with pytest.raises(InputError, match="no worker is left: other version"):
        dispatched(none, 2)


def test_a_run_in_which_all_fails_ends() -> None:
    crew = Crew(lambda crew, worker, key: Lost(worker, "no memory"))
    with pytest.raises(
        DeepLightError, match=r"failures came one after the other.*the last reason: no memory"
    ):
        dispatched(crew)
    assert crew.hired <= 2 + MOST_QUARANTINED + TRIES * MOST_QUARANTINED
    with pytest.raises(DeepLightError, match=rf"more than {MOST_QUARANTINED} packs failed.*: NaN"):
        dispatched(Crew(lambda crew, worker, key: Verdict(worker, key, "NaN", True)))
    with pytest.raises(DeepLightError, match="the disk is full"):
        dispatched(Crew(lambda crew, worker, key: Lost(worker, "the disk is full", fatal=True)))


def test_a_worker_that_comes_late_takes_part() -> None:
    crew = Crew()
    crew.hire()
    stored: list[Key] = []
    dispatch = Dispatch(crew, KEYS, 2, stored.append, lambda _: None, clock=lambda: crew.now)
    crew.start_s = 100.0
    crew.hire()
    dispatch.run()
    assert 100 + PACK_S * 10 < crew.now < 100 + PACK_S * 13 and set(crew.given.values()) == {1}
