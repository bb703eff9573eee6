"""Shards of a run: whoever computes packs, in whatever order and however often, the output has the same bytes."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deeplight.engine import cli
from deeplight.engine.core import locks
from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.machine import processor
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.shards import AnotherPlan, Shard, joined_parts
from deeplight.engine.run.options import parse_shard
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine import processes
from tests.engine.output.test_facts import Stopper
from tests.engine.run.wholes import PACKS, Whole


def test_shares_are_runs_of_neighbours_and_all_there_is() -> None:
    for count in (1, 2, 3, 7, 12):
        shares = [Shard(i, count).share(range(7)) for i in range(count)]
        assert [n for share in shares for n in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "0/0", "1/2/3", "a/b", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a shard: give I/N, with I from 0 to N − 1, as in 0/4"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "4/4"], "'4/4' is not a shard: give I/N, with I from 0 to N − 1"),
        (
            ["--shard", "0/4", "--whole"],
            "error: --whole computes the scene in one piece, which no --shard can",
        ),
        (["--shard", "0/4", "--overwrite"], "error: --overwrite would drop what other shards have computed"),
    ],
    ids=["number", "whole", "overwrite"],
)
def test_the_command_line_says_it_in_flags(
    whole: Whole,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = processes.arguments(whole.request, *arguments)
    if "--whole" in arguments:
        line[line.index("--tiles") : line.index("--tiles") + 2] = []
    monkeypatch.setattr(sys, "argv", ["deeplight-infer", *line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cpuinfo", "told"),
    [
        (
            "vendor_id : GenuineIntel\nflags : fpu avx2 sse4_2 avx avx512f\n\nvendor_id : Other\n",
            "GenuineIntel avx avx2 avx512f sse4_2",
        ),
        ("CPU implementer : 0x41\nFeatures : fp asimd sve crc32\n", "0x41 asimd sve"),
        ("", "unknown"),
    ],
    ids=["x86", "ARM", "unknown"],
)
def test_processors_are_told_apart_by_maker_and_vector_extensions(
    tmp_path: Path, cpuinfo: str, told: str
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    assert processor(tmp_path) == f"{os.uname().machine} {told}"


@pytest.mark.parametrize("count", [1, 3, 8], ids="{} shards".format)
def test_shards_and_a_last_run_make_the_same_file(whole: Whole, count: int) -> None:
    for index in reversed(range(count)):
        infer(whole.shard(index, count))
        assert not whole.request.out.exists()
    assert len(whole.packs()) == PACKS
    whole.check_finished(kept=PACKS)
    assert infer(whole.shard(0, count)) is None, "a shard that comes late finds nothing to do"
    assert not parts_folder(whole.request.out).exists()


def test_a_missing_shard_is_computed_by_the_last_run(whole: Whole) -> None:
    infer(whole.shard(0))
    infer(whole.shard(2))
    packs = whole.packs()
    assert 0 < len(packs) < PACKS
    whole.check_finished(kept=len(packs))


def test_a_shard_that_was_stopped_goes_on(whole: Whole) -> None:
    with pytest.raises(Interrupted):
        infer(whole.shard(0, 1), Stopper(9))
    before = whole.packs()
    assert 0 < len(before) < PACKS
    report = infer(whole.shard(0, 1))
    assert report is not None and report.packs["kept_from_earlier_run"] == len(before)
    assert before.items() <= whole.packs().items()
    whole.check_finished(kept=PACKS)


def test_other_cuts_and_the_same_shard_again_change_nothing(whole: Whole) -> None:
    infer(whole.shard(1, 2))
    before = whole.packs()
    again = infer(whole.shard(1, 2))
    assert again is not None and again.packs["written"] == again.packs["all_nodata"] == 0
    infer(whole.shard(2, 4))
    assert whole.packs() == before
    infer(whole.shard(0, 2))
    whole.check_finished(kept=PACKS)


class At(Silent):
    """Does something once, in the middle of a run, whose writers wait."""

    def __init__(self, act: Callable[[], object], tiles: int = 2) -> None:
        self.act, self.left = act, tiles
        self.lock = threading.Lock()

    def advance(self, pixels: int) -> None:
        with self.lock:
            self.left -= 1
            if self.left == 0:
                self.act()


def test_who_is_refused_while_a_shard_runs(whole: Whole) -> None:
    def others() -> None:
        with pytest.raises(InputError, match=r"shards of .* are still at work: wait for them or stop them"):
            infer(whole.last)
        with pytest.raises(InputError, match=r"shards of .* are still at work"):
            infer(dataclasses.replace(whole.request, mode=Mode.OVERWRITE))
        with pytest.raises(InputError, match="another process computes shard 0/2 of"):
            infer(whole.shard(0, 2))
        with pytest.raises(
            InputError, match="cannot be shared: the option dtype was float32 and is now uint16"
        ):
            infer(whole.shard(1, 2, dtype="uint16"))
        infer(whole.shard(1, 2))

    infer(whole.shard(0, 2), At(others))
    whole.check_finished(kept=PACKS)


def test_a_shard_is_refused_while_a_run_by_one_process_works(whole: Whole) -> None:
    def shard() -> None:
        with pytest.raises(InputError, match="another run is writing"):
            infer(whole.shard(0))

    infer(whole.request, At(shard))
    assert whole.request.out.read_bytes() == whole.expected


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network disk whose hosts do not see each other's locks."""
    monkeypatch.setattr(locks.fcntl, "flock", lambda file, kind: None)


@pytest.mark.usefixtures("no_locks")
def test_a_last_run_too_early_where_locks_do_not_meet(whole: Whole) -> None:
    """It finishes; the shard, which is in the middle of its packs, says so and can do no harm."""
    early = At(lambda: infer(whole.last))
    with pytest.raises(
        DeepLightError, match=r"was removed while shard 0/1 was computed: another run has finished"
    ):
        infer(whole.shard(0, 1), early)
    assert early.left <= 0 and whole.request.out.read_bytes() == whole.expected
    assert not parts_folder(whole.request.out).exists()


@pytest.mark.usefixtures("no_locks")
def test_the_same_shard_twice_at_once_where_locks_do_not_meet(whole: Whole) -> None:
    infer(whole.shard(0, 1), At(lambda: infer(whole.shard(0, 1)), 7))
    whole.check_finished(kept=PACKS)


@pytest.mark.usefixtures("no_locks")
def test_a_run_with_other_options_takes_over_where_locks_do_not_meet(whole: Whole) -> None:
    """An old shard cannot put packs into the new run."""
    other = dataclasses.replace(whole.request, tiles=TileRequest(32), mode=Mode.OVERWRITE)

    def take_over() -> None:
        with pytest.raises(Interrupted):
            infer(other, Stopper(12))

    with pytest.raises(DeepLightError, match=r"was removed while shard 0/1 was computed: .* or began anew"):
        infer(whole.shard(0, 1), At(take_over))
    with pytest.raises(InputError, match=r"cannot be resumed: .*tile"):
        infer(whole.last)
    infer(dataclasses.replace(other, mode=Mode.RESUME))
    calm = dataclasses.replace(other, out=other.out.with_name("calm.tif"))
    infer(calm)
    assert other.out.read_bytes() == calm.out.read_bytes()


def test_a_file_system_without_locks(whole: Whole, monkeypatch: pytest.MonkeyPatch, caplog: object) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    infer(whole.shard(0, 2))
    infer(whole.shard(1, 2))
    whole.check_finished(kept=PACKS)
    assert "cannot be locked (Function not implemented)" in caplog.text  # type: ignore[attr-defined]


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a+b") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        old = signal.signal(signal.SIGALRM, lambda *_: fcntl.flock(looking, fcntl.LOCK_UN))
        try:
            with locks.shared(path, "busy"), locks.shared(path, "busy"):
                assert locks.is_held(path) and not locks.is_held(path, alone=True)
            fcntl.flock(looking, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert not locks.is_held(path, alone=True)
            fcntl.flock(looking, fcntl.LOCK_SH)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with locks.exclusive(path, "busy"):
                pass
        finally:
            signal.signal(signal.SIGALRM, old)
    with locks.exclusive(path, "busy"):
        assert locks.is_held(path, alone=True)
        with pytest.raises(InputError, match="busy"), locks.shared(path, "busy"):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiles": None}, "computes the scene in one piece"),
        ({"mode": Mode.OVERWRITE}, "would drop what other shards have computed"),
    ],
    ids=["whole", "overwrite"],
)
def test_what_no_shard_can_do(whole: Whole, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        infer(whole.shard(0, 2, **changes))
    assert not parts_folder(whole.request.out).exists()


def test_files_beside_the_output_are_the_last_runs(whole: Whole, tmp_path: Path) -> None:
    beside = {"report": tmp_path / "r.json", "events": tmp_path / "e.jsonl", "quicklook": tmp_path / "q.png"}
    for index in range(2):
        infer(whole.shard(index, 2, verify_seams=2, **beside))
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif.parts"]
    report = infer(dataclasses.replace(whole.last, verify_seams=2, **beside))  # type: ignore[arg-type]
    assert report is not None and report.seams is not None
    assert all(path.exists() for path in beside.values())


def test_the_first_record_stays(whole: Whole) -> None:
    from deeplight.engine.output.parts import Record

    out, shard = whole.request.out, Shard(0, 2)
    with joined_parts(out, Record({"a": "1"}, 64, 2, True), shard) as first:
        with (
            pytest.raises(InputError, match="a was 1 and is now 2"),
            joined_parts(out, Record({"a": "2"}, 64, 2, True), Shard(1, 2)),
        ):
            pass
        with (
            pytest.raises(AnotherPlan, match="into tiles of 64 LR pixels and here it would be 32"),
            joined_parts(out, Record({"a": "1"}, 32, 2, True), Shard(1, 2)),
        ):
            pass
        with joined_parts(out, Record({"a": "1"}, 64, 2, True), Shard(1, 2)) as second:
            assert first == second
