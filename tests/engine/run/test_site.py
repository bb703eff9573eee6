"""A worker's own part, in this process and without Ray: it opens, proposes, computes packs, assembles."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from deeplight.engine.core.progress import PIXELS, Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode, Record, claimed_parts, parts_folder
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import contents, preparation, work
from deeplight.engine.run.events import Events
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import TilePlan
from deeplight.engine.run.workers.lead import Lead
from deeplight.engine.run.workers.messages import Computed, Done, Made, Proposal, Told, Trouble
from deeplight.engine.run.workers.relay import Relay, Voice
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.run.workers.site import Site
from tests.engine.run.wholes import PACKS, Whole
from tests.scenes import write_raster


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's process is its own; this one is not."""
    monkeypatch.setattr(Relay, "listen", lambda self: None)
    monkeypatch.chdir(Path.cwd())
    yield


def site(whole: Whole, **changes: object) -> Site:
    options = dataclasses.replace(whole.request, workers=Workers(True, None, 2), **changes)  # type: ignore[arg-type]
    worker = Site(options, str(Path.cwd()))
    assert worker.open() == worker.name
    return worker


def proposed(worker: Site) -> Proposal:
    proposal = worker.propose()
    assert isinstance(proposal, Proposal) and len(proposal.areas) == PACKS and proposal.record.shared
    return proposal


def begun(whole: Whole, record: Record, *workers: Site) -> None:
    with claimed_parts(whole.request.out, record, Mode.NEW, stay=True):
        for worker in workers:
            assert worker.begin(record, {}) is None


def stored(worker: Site, key: tuple[int, int]) -> None:
    found = worker.compute([key])
    assert isinstance(found, Computed) and [made.error for made in found.packs] == [None]


def told(worker: Site) -> Told:
    found = worker.told()
    assert isinstance(found, Told)
    return found


def test_two_workers_make_the_file_of_one_process(whole: Whole, tmp_path: Path) -> None:
    first, second = site(whole, report=tmp_path / "run.json"), site(whole)
    proposal = proposed(first)
    assert proposal.areas == proposed(second).areas
    assert sum(proposal.areas.values()) == 64 * 4 * (256 * (PACKS - 1) + 8)
    begun(whole, proposal.record, first, second)
    for number, key in enumerate(reversed(list(proposal.areas))):
        stored((first, second)[number % 2], key)
    stored(second, (0, 0))  # computed twice: the first stays
    stored(second, (0, 0))
    both = [told(first), told(second)]
    done = Done(both, ["worker 3 was lost"], kept=0, stream_s=1.0)
    report = first.finish(done, 2.0)
    assert report is not None and not isinstance(report, Trouble)
    assert whole.request.out.read_bytes() == whole.expected and not parts_folder(whole.request.out).exists()
    assert sum(report.packs.values()) == PACKS and report.packs["kept_from_earlier_run"] == 0
    assert [w.get("packs") for w in report.workers] == [3, 3, None] and report.workers[2] == {
        "lost": "worker 3 was lost"
    }
    assert report.inputs["ntl"]["bytes_read"] == sum(each.read[0] for each in both)
    assert all(each.read[0] > 0 for each in both)
    assert report.tiles["computed"] + report.tiles["skipped"] == 17 + 4  # those of the first pack twice
    assert (
        report.seconds["stream"] == 1.0 and report.seconds["total"] >= 2 and (tmp_path / "run.json").exists()
    )


def test_other_options_or_no_folder_are_refused_by_name(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = site(whole), site(whole, dtype="uint16")
    record = proposed(first).record
    missing = first.begin(record, {})
    assert isinstance(missing, Trouble) and missing.refused
    assert "was not begun where this worker looks: give all hosts the same folder" in missing.sentence
    begun(whole, record, first)
    stored(first, (0, 0))
    differs = other.begin(record, {})
    assert isinstance(differs, Trouble) and differs.refused and not differs.fatal
    assert (
        "the option dtype was float32 and is now uint16" in differs.sentence
        and other.name in differs.sentence
    )
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.run.provenance.processor", lambda: "x86_64 Other avx")
        host = site(whole).begin(record, {})
    assert isinstance(host, Trouble) and host.refused and "the processor was" in host.sentence


def test_all_bytes_of_an_input_are_read_once_on_a_host(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever plans reads them, and other workers on the host take its word as long as the file is the same."""
    read: list[str] = []
    digest = hashlib.file_digest

    def reading(file: BinaryIO, name: str) -> object:
        read.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", reading)
    known: dict[contents.Seen, str] = {}
    monkeypatch.setattr(contents, "_KNOWN", known)
    ntl = shutil.copy(whole.request.scene.ntl, tmp_path)
    first, second, late = (site(whole, scene=SceneOptions(ntl=ntl)) for _ in range(3))
    proposal = proposed(first)
    begun(whole, proposal.record, first)
    assert read == [ntl]
    known.clear()  # as in another process
    assert second.begin(proposal.record, proposal.digests) is None
    assert read == [ntl]
    monkeypatch.setattr(contents, "_host", lambda: "another")
    assert late.begin(proposal.record, proposal.digests) is None
    assert read == [ntl, ntl]


def test_an_input_that_differs_on_a_host_is_refused_by_name(whole: Whole, tmp_path: Path) -> None:
    ntl = shutil.copy(whole.request.scene.ntl, tmp_path)
    first, other = (site(whole, scene=SceneOptions(ntl=ntl)) for _ in range(2))
    proposal = proposed(first)
    begun(whole, proposal.record, first)
    with Path(ntl).open("r+b") as file:  # one bit, far from all samples
        file.seek(file.seek(0, os.SEEK_END) // 32 * 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    differs = other.begin(proposal.record, proposal.digests)
    assert isinstance(differs, Trouble) and differs.refused
    assert "the file of `ntl` was" in differs.sentence and other.name in differs.sentence


def test_a_worker_whose_run_was_finished_or_begun_anew_says_so(whole: Whole) -> None:
    first, late = site(whole), site(whole)
    record = proposed(first).record
    begun(whole, record, first, late)
    stored(first, (0, 0))
    whole.check_finished(kept=1)
    found = late.compute([(0, 1)])
    assert isinstance(found, Trouble) and found.fatal
    assert "was removed meanwhile: another run has finished" in found.sentence


def test_a_pack_that_fails_leaves_the_others_alone(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    read = work.TileWork.read
    broken = [True]

    def fail(self: work.TileWork, core: Window) -> work.Tile:
        if core.col == 64 and broken[0]:
            raise OSError("the disk is away")
        return read(self, core)

    monkeypatch.setattr(work.TileWork, "read", fail)
    first = site(whole)
    record = proposed(first).record
    begun(whole, record, first)
    found = first.compute([(0, 0), (0, 2)])
    assert isinstance(found, Computed)
    failed, other = found.packs
    assert failed.error == "the disk is away" and not failed.final and other.error is None
    assert any("tile at row 0, column 64 failed" in str(message) for message in found.messages)
    stored(first, (0, 1))
    broken[0] = False
    stored(first, (0, 0))
    whole_again = told(first)
    assert len(whole_again.retried) == 2
    whole.check_finished(kept=3)


def test_how_long_packs_took_is_told_of_those_with_data(whole: Whole, tmp_path: Path) -> None:
    sea = np.full((4, 256 * (PACKS - 1) + 8), 7, np.float32)
    sea[:, 512:768] = -1
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "sea.tif", sea, nodata=-1)))
    first = site(whole, scene=scene)
    begun(whole, proposed(first).record, first)
    found = first.compute([(0, 0), (0, 2), (0, 1)])
    assert isinstance(found, Computed)
    took = [made.seconds for made in found.packs]
    assert took[1] is None and all(seconds is not None and seconds > 0 for seconds in took[::2])
    for _ in range(2):  # which is there
        assert first.compute([(0, 0)]) == Computed([Made()], [])


def test_a_full_disk_ends_the_run(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplight.engine.core.errors import DiskRefused
    from deeplight.engine.output.packs import PackStore

    def full(*_: object) -> int:
        raise DiskRefused("the disk is full")

    first = site(whole)
    begun(whole, proposed(first).record, first)
    monkeypatch.setattr(PackStore, "write", full)
    found = first.compute([(0, 0)])
    assert isinstance(found, Trouble) and found.fatal and found.sentence.startswith("the disk is full")
    again = first.compute([(0, 1)])
    assert isinstance(again, Trouble) and again.fatal


def test_workers_on_one_host_plan_with_their_share_of_its_memory(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def plan(*given: object, **more: object) -> TilePlan:
        planned.append(more["memory"])
        return original(*given, **more)  # type: ignore[arg-type]

    original = preparation.plan_tiles
    monkeypatch.setattr(preparation, "plan_tiles", plan)
    monkeypatch.setattr(preparation, "available_memory", lambda: 9 << 30)
    for beside in (1, 3):
        proposed(site(whole, beside=beside))
    assert planned == [9 << 30, 3 << 30]


def test_what_workers_say_is_said_once(tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.lines: list[object] = []

        def log(self, message: str) -> None:
            self.lines.append(message)

        def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
            self.lines.append((total, unit, what))

    heard = Heard()
    with Events(tmp_path / "e.jsonl") as events:
        voice = Voice(heard, events)
        for _ in range(2):
            relay = Relay()
            relay.log("a line")
            relay.start(7)
            relay.events.emit("started", packs=1)
            relay.events.emit("tile", row=3)
            relay.counting = True
            relay.start(3, "places")
            voice.say(relay.taken())
            assert relay.taken() == []
    silent = Relay(events=False)
    silent.events.emit("tile", row=3)
    assert silent.taken() == []
    assert heard.lines == ["a line", (3, "places", ""), (3, "places", "")]
    text = (tmp_path / "e.jsonl").read_text()
    assert text.count('"event": "tile", "row": 3') == 2 and "started" not in text


def test_half_of_the_pixels_are_nodata_somewhere(whole: Whole) -> None:
    """The scene has what the tests above count on: skipped tiles and tiles with data."""
    import rasterio

    with rasterio.open(whole.request.scene.ntl) as dataset:
        assert 0 < np.mean(dataset.read(1) == -1) < 0.5


def test_a_resumed_run_takes_the_threads_of_its_packs(whole: Whole) -> None:
    request = dataclasses.replace(whole.request, workers=Workers(True, None, 2), threads=None)
    resumed = dataclasses.replace(request, mode=Mode.RESUME)
    with Events(None) as events:

        def threads(options: RunOptions) -> int | None:
            return (
                Lead(options, Workers(True, None, 2), Voice(Silent(), events), events, False)
                ._like_before()
                .threads
            )

        assert threads(resumed) is None
        first = site(whole, threads=3)
        begun(whole, proposed(first).record, first)
        assert threads(request) is None and threads(resumed) == 3
        assert threads(dataclasses.replace(resumed, threads=2)) == 2
