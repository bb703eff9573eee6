"""The end of a run by workers: one assembles the output, all copy blocks. In this process and without Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.progress import Silent
from deeplight.engine.output import copying
from deeplight.engine.output.copying import Copying
from deeplight.engine.output.hands import Piece, Published, SharedJob
from deeplight.engine.output.levels import Grouping
from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run.events import Events
from deeplight.engine.run.workers.dispatch import DEPTH, Lost, Ready, Verdict
from deeplight.engine.run.workers.finishing import Finishing
from deeplight.engine.run.workers.lead import Lead
from deeplight.engine.run.workers.messages import Computed, Done, SharedWork, Trouble
from deeplight.engine.run.workers.ray_pool import Gone
from deeplight.engine.run.workers.relay import Relay, Voice
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.run.workers.segments import Key
from deeplight.engine.run.workers.site import Site
from tests.engine.run.test_site import begun, proposed, site, stored, told
from tests.engine.run.wholes import Whole

GROUPS = [(0, 0), (0, 1)]
"""Of four packs each, of which the overviews are made."""
Fault = Callable[["Sites", int, Sequence[Key]], "Lost | None"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is no worker's own, and the output has only 70 kB."""
    monkeypatch.setattr(Relay, "listen", lambda self: None)
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(copying, "ALIGN", 1024)
    yield


class Sites:
    """A pool of sites of this process, which answer one after the other. fault: what comes of a call in its place."""

    def __init__(
        self, sites: Sequence[Site], spare: Callable[[], Site], fault: Fault = lambda *_: None
    ) -> None:
        self.sites = dict(enumerate(sites))
        self.spare, self.fault = spare, fault
        self.calls: deque[tuple[int, Sequence[Key] | None]] = deque()
        self.done: dict[int, list[Key]] = {}
        self.dismissed: list[int] = []
        self.jobs: list[Published] = []

    def hire(self) -> int:
        worker = max(self.sites, default=-1) + 1 + len(self.dismissed)
        self.sites[worker] = self.spare()
        self.calls.append((worker, None))
        return worker

    def first(self) -> tuple[int, str]:
        return next((worker, found.name) for worker, found in self.sites.items())

    def has(self, worker: int) -> bool:
        return worker in self.sites

    def assemble(self, job: Published) -> None:
        self.jobs.append(job)
        self.calls = deque(call for call in self.calls if call[1] is None)

    def give(self, worker: int, keys: Sequence[Key]) -> None:
        self.calls.append((worker, keys))
        assert sum(call[0] == worker for call in self.calls) <= DEPTH

    def dismiss(self, worker: int) -> None:
        self.sites.pop(worker, None)
        self.dismissed.append(worker)
        self.calls = deque(call for call in self.calls if call[0] != worker)

    def wait(self) -> Sequence[Ready | Verdict | Lost]:
        if not self.calls:
            return []
        worker, keys = self.calls.popleft()
        if keys is None:
            return [Ready(worker, self.sites[worker].name)]
        if (lost := self.fault(self, worker, keys)) is not None:
            self.dismiss(worker)
            return [lost]
        found = self.sites[worker].assist(keys, self.jobs[-1])
        if isinstance(found, Trouble):
            self.dismiss(worker)
            return [Lost(worker, found.sentence, found.refused, found.fatal)]
        assert isinstance(found, Computed)
        self.done.setdefault(worker, []).extend(keys)
        return [
            Verdict(worker, key, m.error, m.final, m.seconds)
            for key, m in zip(keys, found.packs, strict=True)
        ]

    def ask(self, worker: int, method: str, *given: object) -> object:
        if worker not in self.sites:
            raise Gone("it was lost")
        return getattr(self.sites[worker], method)(*given)


class Counted(Silent):
    """What the command counted."""

    def __init__(self) -> None:
        self.done = 0
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def advance(self, done: int = 1) -> None:
        self.done += done


def names(pool: Sites) -> list[Path]:
    """The files that were copied into."""
    return [job.path for job in pool.jobs if isinstance(job, Copying)]


def computed(whole: Whole, count: int) -> tuple[list[Site], Done, Callable[[], Site]]:
    """Workers that have computed all packs, what they say, and one more."""
    sites = [site(whole) for _ in range(count)]
    proposal = proposed(sites[0])
    begun(whole, proposal.record, *sites)
    for number, key in enumerate(proposal.areas):
        stored(sites[number % count], key)

    def spare() -> Site:
        another = site(whole)
        assert another.begin(proposal.record, {}) is None
        return another

    return sites, Done([told(worker) for worker in sites], [], kept=0, stream_s=1.0), spare


def led_to_its_end(whole: Whole, pool: Sites, done: Done) -> Counted:
    """What the command was told while one of the pool assembled the output."""
    progress = Counted()
    with Events(None) as events:
        lead = Lead(whole.request, Workers(True, None, 2), Voice(progress, events), events, False)
        lead.idle = {worker: found.name for worker, found in pool.sites.items()}
        report = lead._finish(pool, done, list(pool.sites))  # type: ignore[arg-type]
    assert report is not None and report.packs["kept_from_earlier_run"] == 0
    return progress


def finished(whole: Whole, pool: Sites, done: Done) -> Counted:
    progress = led_to_its_end(whole, pool, done)
    assert whole.request.out.read_bytes() == whole.expected and not parts_folder(whole.request.out).exists()
    assert not list(whole.request.out.parent.glob(".*.tmp"))
    return progress


@pytest.mark.parametrize("count", [2, 3])
def test_all_workers_copy_blocks(whole: Whole, count: int) -> None:
    sites, done, spare = computed(whole, count)
    pool = Sites(sites, spare)
    progress = finished(whole, pool, done)
    assert sorted(pool.done) == list(range(count)) and [type(job) for job in pool.jobs] == [Grouping, Copying]
    parts = [part for pieces in pool.done.values() for part in pieces if part not in GROUPS]
    assert len(set(parts)) == len(parts) >= 3 * count
    assert progress.done == sum(stop - start for start, stop in parts) > len(whole.expected) / 2
    assert not progress.lines and not pool.dismissed


def test_a_worker_alone_copies_by_itself(whole: Whole) -> None:
    sites, done, spare = computed(whole, 1)
    pool = Sites(sites, spare)
    finished(whole, pool, done)
    assert not pool.jobs


def torn(pool: Sites, worker: int, parts: Sequence[Key], held: list[int]) -> Lost | None:
    """The first call of a worker that is held ends in the middle of a part."""
    if worker in held and isinstance(pool.jobs[-1], Copying):
        held.remove(worker)
        job = pool.jobs[-1].job(pool.sites[worker]._packs.store)  # type: ignore[union-attr]
        start, stop = parts[0]
        job.do((start, (start + stop) // 2))
        return Lost(worker, f"worker {worker} was lost")
    return None


def test_what_a_lost_worker_has_begun_another_writes_again(whole: Whole) -> None:
    sites, done, spare = computed(whole, 2)
    held = [1]
    pool = Sites(sites, spare, lambda *call: torn(*call, held))
    progress = finished(whole, pool, done)
    assert not held and pool.dismissed == [1] and progress.lines == ["warning: worker 1 was lost"]
    assert len(names(pool)) == 1


class Mortal(Finishing):
    """Ends where it waits, if it is to."""

    dies = False

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        super().do(job, pieces)
        if self.dies:
            raise DeepLightError("this process is gone")


def test_who_assembles_is_lost_and_another_begins_a_file_of_its_own(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight.engine.run.workers.site.Finishing", Mortal)
    sites, done, spare = computed(whole, 2)
    held = [0]

    def fault(pool: Sites, worker: int, parts: Sequence[Key]) -> Lost | None:
        lost = torn(pool, worker, parts, held)
        if lost is not None:
            finishing = sites[0]._finishing
            assert isinstance(finishing, Mortal)
            finishing.dies = True
            # its lock is free then, as that of a process that ends
            assert isinstance(finishing.go_on(), Trouble)
            names(pool)[0].write_bytes(b"half of it")
        return lost

    pool = Sites(sites, spare, fault)
    progress = finished(whole, pool, done)
    assert len(names(pool)) == 2 and names(pool)[0] != names(pool)[1]
    assert progress.lines == ["warning: the worker that assembled the output was lost: worker 0 was lost"]


def test_a_damaged_pack_ends_the_run_and_is_removed(whole: Whole) -> None:
    sites, done, spare = computed(whole, 2)
    store = sites[0]._packs.store  # type: ignore[union-attr]
    path = store.path((0, 3))
    raw = bytearray(path.read_bytes())
    raw[store.index((0, 3)).start + 2000] ^= 1
    path.write_bytes(raw)
    # the worker that finishes verifies all packs first; this one went bad after that
    with pytest.MonkeyPatch.context() as m:
        m.setattr(type(store), "done", lambda self, keys=None: set(self.keys()))
        with pytest.raises(DeepLightError, match=r"00000_00003.pack is damaged .*`resume=True`"):
            finished(whole, Sites(sites, spare), done)
    assert not path.exists() and not whole.request.out.exists()


def test_a_copy_into_a_run_that_has_ended_is_trouble(whole: Whole) -> None:
    sites, done, spare = computed(whole, 2)
    order = sites[0].finish(done, 1.0, 2)
    assert isinstance(order, SharedWork) and isinstance(order.job, Grouping)
    assert isinstance(sites[1].assist(order.pieces, order.job), Computed)
    order = sites[0].go_on()
    assert isinstance(order, SharedWork) and len(order.pieces) >= 8
    for part in order.pieces:
        assert isinstance(sites[1].assist([part], order.job), Computed)
    late = spare()
    report = sites[0].go_on()
    assert report is not None and not isinstance(report, Trouble | SharedWork)
    for worker in (late, sites[1]):
        found = worker.assist(order.pieces[:1], order.job)
        assert isinstance(found, Trouble) and found.fatal and "another run has finished" in found.sentence
    assert whole.request.out.read_bytes() == whole.expected
