"""The blocks of a COG copied in parts, in any order, by threads, processes and hosts: the bytes are the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.files import DISK, Disk
from deeplight.engine.output import copying
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.copying import ByteRange, Copying, CopyJob, cut, read_table
from deeplight.engine.output.hands import Hands, Piece, SharedJob, Threads
from deeplight.engine.output.levels import Groups
from deeplight.engine.output.pack_format import DamagedPack
from deeplight.engine.output.packs import PackStore
from tests.engine.output.disks import FullDisk, Op, PowerLoss, RecordingDisk
from tests.engine.output.test_packs import fill, lights, output

ALIGN = 4096
UINT16: dict[str, Any] = {"dtype": "uint16", "scale": 0.05, "offset": -1.0, "nodata": 65535}


class Serial:
    """One thread, one part: the reference."""

    count = 1

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        for piece in [(pieces[0][0], pieces[-1][1])] if isinstance(job, CopyJob) else pieces:
            job.do(piece)


class Shuffled:
    """Each part several times, in a random order, by several threads at once."""

    count = 5

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        assert len(pieces) > self.count
        again = [*pieces, *pieces, *pieces[::2]]
        random.Random(3).shuffle(again)
        Threads(3).do(job, again)


def assembled(folder: Path, store: PackStore, hands: Hands, disk: Disk = DISK) -> bytes:
    folder.mkdir()
    assemble(store, folder / "o.tif", hands=hands, disk=disk)
    assert [path.name for path in folder.iterdir()] == ["o.tif"]
    return (folder / "o.tif").read_bytes()


@pytest.mark.parametrize("options", [{}, {"nodata": -9999.9}, UINT16], ids=["float32", "nodata", "uint16"])
@pytest.mark.parametrize(("bands", "holes"), [(1, False), (3, True)])
def test_parts_in_any_order_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bands: int, holes: bool
) -> None:
    spec = output(417, 391, bands=bands, **options)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec, holes=holes))
    serial = assembled(tmp_path / "serial", store, Serial())
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    for number, hands in enumerate((Serial(), Threads(1), Threads(3), Shuffled())):
        assert assembled(tmp_path / str(number), store, hands) == serial


@pytest.mark.parametrize(("options", "bands"), [({}, 1), ({**UINT16, "compression": "deflate"}, 2)])
def test_overviews_made_in_groups_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bands: int
) -> None:
    """Twenty groups of sixteen packs of one block, five levels; a group that is all nodata among them."""
    spec = output(300, 203, bands=bands, block=16, **options)
    pixels = lights(spec)
    store = fill(PackStore(tmp_path / "packs", spec, 16), pixels)
    assert len(Groups(store, "t").pieces()) == 20 and np.isnan(pixels[:, :64, :64]).all()
    expected = assembled(tmp_path / "serial", store, Serial())
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    for number, hands in enumerate((Threads(3), Shuffled())):
        assert assembled(tmp_path / str(number), store, hands) == expected
    assert all(path.suffix == ".pack" for path in store.folder.iterdir())


def test_a_damaged_group_is_no_damaged_pack(tmp_path: Path) -> None:
    spec = output(300, 203, block=16)
    store = fill(PackStore(tmp_path / "packs", spec, 16), lights(spec))
    groups = Groups(store, "t")
    groups.do((2, 1))
    path = next(store.folder.glob(".overviews-*"))
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 4
    path.write_bytes(raw)
    with pytest.raises(DeepLightError, match="overviews-t-2-1 is damaged: check the disk") as caught:
        groups.take((2, 1), lambda *_: None)
    assert not isinstance(caught.value, DamagedPack)


def test_parts_cover_the_file_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    for stop, hands in ((1 << 20, 1), ((1 << 20) + 1, 3), (10**9 + 7, 2), (10**12 + 1, 64)):
        start = copying.aligned(12345)
        parts = cut(start, max(stop, start), hands)
        assert [p.stop for p in parts[:-1]] == [p.start for p in parts[1:]]
        assert all(p.start % copying.ALIGN == 0 and p.start < p.stop for p in parts)
        assert all(p.stop - p.start <= copying.LARGEST for p in parts)
        assert not parts or (parts[0].start, parts[-1].stop) == (start, stop)
    assert len(cut(0, 10**9, 16)) >= 4 * 16


class Told(copying.Silent):
    """Counts bytes."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._lock = threading.Lock()

    def start(self, total: int, *_: object) -> None:
        self.total = total

    def advance(self, done: int = 1) -> None:
        with self._lock:
            self.done += done


def test_progress_counts_every_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    spec = output(300, 391)
    told = Told()
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    assemble(store, tmp_path / "o.tif", hands=Threads(3), progress=told)
    assert told.done == told.total == (tmp_path / "o.tif").stat().st_size


def test_a_damaged_pack_ends_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    spec = output(417, 391)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    path, index = store.path((2, 1)), store.index((2, 1))
    raw = bytearray(path.read_bytes())
    raw[index.start + 99] ^= 16
    path.write_bytes(raw)
    with pytest.raises(DamagedPack, match=r"00002_00001.pack is damaged"):
        assemble(store, tmp_path / "o.tif", hands=Threads(3))
    assert [p.name for p in tmp_path.iterdir()] == ["packs"]
    assert set(store.keys()) - store.present() == {(2, 1)}


@pytest.mark.parametrize("room", [120_000, 300_000])
def test_a_disk_that_fills_up_in_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    spec = output(417, 391)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    with pytest.raises(DeepLightError, match=r"^the disk is full while writing .*o\.tif"):
        assemble(store, tmp_path / "o.tif", hands=Threads(2), disk=FullDisk(room))
    assert [p.name for p in tmp_path.iterdir()] == ["packs"] and len(store.done()) == len(store.keys())


COPIER = """
import sys, time
from pathlib import Path
from deeplight.engine.output import copying
from deeplight.engine.output.copying import CopyJob, read_table
from deeplight.engine.output.packs import PackStore
from tests.engine.output.test_packs import output
packs, table, path, hold = sys.argv[1:5]
blocks = copying.placed_blocks
def held(*given):
    for number, placed in enumerate(blocks(*given)):
        if hold == "hold" and number == 1:
            print("held", flush=True)
            time.sleep(600)
        yield placed
copying.placed_blocks = held
copying.LOOK_BYTES = 1
store = PackStore(Path(packs), output(417, 391, bands=2), 128)
job = CopyJob(store, read_table(Path(table)), Path(path), sync=True)
print("ready", flush=True)
for line in sys.stdin:
    job.do(tuple(map(int, line.split())))
    print("done", flush=True)
"""


class Processes:
    """Two processes; the first is killed in the middle of a part, which the second writes again."""

    count = 2

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        assert isinstance(job, CopyJob)
        parts = [ByteRange(*piece) for piece in pieces]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p),
        }
        with job.published() as known:
            argv = [sys.executable, "-c", COPIER, str(job.store.folder), str(known.table), str(known.path)]
            doomed, other = (
                subprocess.Popen(
                    [*argv, hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
                )
                for hold in ("hold", "")
            )
            wide = max(
                parts[:-1], key=lambda part: len(list(copying.placed_blocks(job.store, job.table, part)))
            )
            assert self.asked(doomed, wide) == ["ready\n", "held\n"]
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
            told = [self.asked(other, part, first=number == 0)[-1] for number, part in enumerate(parts)]
            assert told == ["done\n"] * len(parts)
            other.communicate()
            assert other.returncode == 0

    def asked(self, process: subprocess.Popen[str], part: ByteRange, first: bool = True) -> list[str]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{part.start} {part.stop}\n")
        process.stdin.flush()
        return [process.stdout.readline() for _ in range(1 + first)]


def test_a_process_killed_in_the_middle_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = output(417, 391, bands=2)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    serial = assembled(tmp_path / "serial", store, Serial())
    monkeypatch.setattr(copying, "ALIGN", 1 << 18)
    assert assembled(tmp_path / "shared", store, Processes()) == serial
    assert all(path.suffix == ".pack" for path in store.folder.iterdir())


class Late(Serial):
    """Keeps the job, for a worker that wakes up when the run is over."""

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        super().do(job, pieces)
        assert isinstance(job, CopyJob)
        self.job, self.part = job, ByteRange(*pieces[0])
        self.file = DISK.reopen(job.path)


@pytest.mark.parametrize("ended", ["finished", "begun anew"])
def test_who_wakes_late_writes_into_no_later_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    monkeypatch.setattr(copying, "LOOK_BYTES", 1)
    spec = output(417, 391)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    late = Late()
    expected = assembled(tmp_path / "out", store, late)
    if ended == "begun anew":
        (tmp_path / "out" / "o.tif").unlink()
        assemble(
            fill(PackStore(tmp_path / "new", spec, 128), lights(spec, seed=4)), tmp_path / "out" / "o.tif"
        )
        expected = (tmp_path / "out" / "o.tif").read_bytes()
    with pytest.raises(
        DeepLightError, match="is not there any more: another process has finished or stopped"
    ):
        late.job.do(late.part)
    # it opened the file before it fell asleep
    with late.file as file, pytest.raises(DeepLightError, match="is not there any more"):
        file.seek(late.part.start)
        late.job.copy_into(file, ByteRange(late.part.start, late.part.start + 300_000))
    assert (tmp_path / "out" / "o.tif").read_bytes() == expected


def test_a_damaged_or_missing_table_is_refused(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "packs", output(300, 391), 128)
    table = np.zeros(3, copying.PLACED)
    table["at"] = (5, 6, 7)
    with CopyJob(store, table, tmp_path / "o.tif").published() as known:
        path = known.table
        assert known == Copying(path, tmp_path / "o.tif")
        np.testing.assert_array_equal(read_table(path), table)
        raw = path.read_bytes()
        for damaged in (b"", raw[:-1], raw[:30] + b"\x09" + raw[31:]):
            path.write_bytes(damaged)
            with pytest.raises(DeepLightError, match="is damaged: check the disk"):
                read_table(path)
    with pytest.raises(DeepLightError, match="is not there any more"):
        read_table(path)


class Hosts:
    """Parts in turn on this host and on another, whose page cache is its own. sync: see CopyJob."""

    count = 2

    def __init__(self, other: Disk, sync: bool) -> None:
        self.other, self.sync = other, sync

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        assert isinstance(job, CopyJob)
        with job.published() as known:
            away = replace(known.job(job.store), disk=self.other, sync=self.sync)
            for number, part in enumerate(pieces):
                (away if number % 2 else replace(job, sync=self.sync)).do(part)


def ends(folder: Path, disk: RecordingDisk) -> list[object]:
    """What is under the final name after power loss, at any point of what a disk has recorded."""
    loss, rng = PowerLoss({PurePosixPath("packs"): None}), random.Random(5)
    found: list[object] = []
    for op in [Op("sync folder", PurePosixPath("packs")), *disk.log]:
        loss.do(op)
        found += [state.get(PurePosixPath("o.tif")) for state in loss.states(64, rng)]
    return found


@pytest.mark.parametrize("sync", [True, False])
def test_power_loss_while_two_hosts_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    """Without a sync of its own a host's part could be missing under the final name, which the model sees."""
    monkeypatch.setattr(copying, "ALIGN", ALIGN)
    spec = output(300, 200)
    store = fill(PackStore(tmp_path / "packs", spec, 128), lights(spec))
    disk = RecordingDisk(tmp_path)
    assemble(store, tmp_path / "o.tif", disk=disk, hands=Hosts(RecordingDisk(tmp_path, beside=disk), sync))
    expected = (tmp_path / "o.tif").read_bytes()
    seen = ends(tmp_path, disk)
    assert None in seen and (expected in seen) == sync
    assert all(state in (None, expected) for state in seen) == sync
