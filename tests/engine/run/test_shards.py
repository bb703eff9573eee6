"""Shards of a run: whoever computes packs, in whatever order and however often, the output has the same bytes."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine import cli
from deeplight.engine.core import locks
from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.machine import processor
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.shards import AnotherPlan, Shard, joined_parts
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import preparation
from deeplight.engine.run.options import RunOptions, parse_shard
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import AUTOMATIC, TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.test_facts import Stopper
from tests.scenes import write_raster

PACKS = 5


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run by one process, and its bytes."""

    request: RunOptions
    expected: bytes

    def shard(self, index: int, count: int = 3, **changes: object) -> RunOptions:
        return dataclasses.replace(self.request, shard=Shard(index, count), **changes)  # type: ignore[arg-type]

    @property
    def last(self) -> RunOptions:
        """The run that finishes."""
        return dataclasses.replace(self.request, mode=Mode.RESUME)

    def packs(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in parts_folder(self.request.out).rglob("*.pack")}

    def check_finished(self, kept: int) -> None:
        """The run that finishes computes only what is missing, and leaves the output alone."""
        report = infer(self.last)
        assert report is not None and report.packs["kept_from_earlier_run"] == kept
        assert self.request.out.read_bytes() == self.expected
        assert not parts_folder(self.request.out).exists()


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (4, 256 * (PACKS - 1) + 8)).astype(np.float32)
    ntl[:, 300:500] = -1
    request = RunOptions(
        scene=SceneOptions(ntl=str(write_raster(folder / "ntl.tif", ntl, nodata=-1))),
        out=folder / "o.tif",
        model=str(write_analytic(folder / "analytic")),
        tiles=TileRequest(64),
        threads=1,
    )
    infer(request)
    return Whole(request, request.out.read_bytes())


@pytest.fixture
def whole(whole_once: Whole, tmp_path: Path) -> Whole:
    """The same into a folder of its own."""
    return dataclasses.replace(
        whole_once, request=dataclasses.replace(whole_once.request, out=tmp_path / "o.tif")
    )


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
    line = command(whole.request, *arguments)
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


def test_who_only_looks_does_not_keep_a_shard_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a+b") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        old = signal.signal(signal.SIGALRM, lambda *_: fcntl.flock(looking, fcntl.LOCK_UN))
        try:
            with locks.shared(path, "busy"), locks.shared(path, "busy"):
                assert locks.is_held(path) and not locks.is_held(path, alone=True)
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


def test_a_host_with_less_memory_takes_the_plan_of_the_first(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin at once: neither sees the other's record when it plans."""
    automatic = dataclasses.replace(whole, request=dataclasses.replace(whole.request, tiles=AUTOMATIC))
    planned = []
    original = preparation.plan_tiles

    def plan(request: TileRequest, *rest: object) -> object:
        found = original(request, *rest)  # type: ignore[arg-type]
        planned.append(found.core)
        if len(planned) == 1:
            with monkeypatch.context() as m:
                m.setattr(preparation, "plan_tiles", original)
                infer(automatic.shard(0, 2))
            return dataclasses.replace(found, core=64)
        return found

    monkeypatch.setattr(preparation, "plan_tiles", plan)
    infer(automatic.shard(1, 2))
    assert len(planned) == 2
    whole.request.out.unlink(missing_ok=True)
    automatic.check_finished(kept=PACKS)


def test_a_copy_of_the_inputs_on_another_host_is_the_same_and_a_changed_one_is_not(
    whole: Whole, tmp_path: Path
) -> None:
    infer(whole.shard(0, 2))
    original = Path(whole.request.scene.ntl)
    (tmp_path / "local").mkdir()
    shutil.copyfile(original, copied := tmp_path / "local" / "ntl.tif")
    os.utime(copied, ns=(0, 10**18))
    scene = dataclasses.replace(whole.request.scene, ntl=str(copied))
    infer(whole.shard(1, 2, scene=scene))
    data = bytearray(copied.read_bytes())
    for place in range(len(data) // 3, len(data), 997):  # each is seen, between samples too
        data[place] ^= 1
        copied.write_bytes(data)
        data[place] ^= 1
        with pytest.raises(
            InputError, match=r"cannot be (resumed|shared): the file of `ntl` was .* and is now"
        ):
            infer(whole.shard(1, 2, scene=scene))
    whole.check_finished(kept=PACKS)


def test_a_large_input_is_compared_by_its_time(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight.engine.run.inputs.MOST_READ", 100)
    shutil.copy2(whole.request.scene.ntl, copied := tmp_path / "ntl.tif")
    scene = dataclasses.replace(whole.request.scene, ntl=str(copied))
    infer(whole.shard(0, 2))
    infer(whole.shard(1, 2, scene=scene))
    os.utime(copied, ns=(0, 10**18))
    with pytest.raises(InputError, match=r"the file of `ntl` was .*modified .* and is now"):
        infer(whole.shard(1, 2, scene=scene))


def test_another_processor_or_version_is_refused_by_name(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer(whole.shard(0, 2))
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.run.provenance.processor", lambda: "x86_64 Other avx")
        with pytest.raises(
            InputError, match=r"cannot be (resumed|shared): the processor was .* and is now x86_64 Other avx"
        ):
            infer(whole.shard(1, 2))
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.run.provenance.deeplight_version", lambda: "9")
        with pytest.raises(InputError, match=r"the version of deeplight was .* and is now 9"):
            infer(whole.shard(1, 2))


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


def command(request: RunOptions, *more: str) -> list[str]:
    return [
        "--ntl", request.scene.ntl, "--ntl-nodata=-1", "--out", str(request.out), "--model", request.model,
        "--tiles", "64", "--threads", "1", *more,
    ]  # fmt: skip


SLOWLY = """
import time
from deeplight.engine import cli
from deeplight.engine.output import packs
write = packs.PackStore.write
packs.PackStore.write = lambda *a, **k: (write(*a, **k), time.sleep(0.3))[0]
cli.main()
"""


@pytest.mark.slow
def test_processes_killed_and_started_again(whole: Whole, tmp_path: Path) -> None:
    """Three shards at once, one killed twice; then the last run."""
    plain = dataclasses.replace(whole.request, out=tmp_path / "plain.tif")
    main = [sys.executable, "-m", "deeplight.engine.cli"]
    subprocess.run([*main, *command(plain)], check=True, capture_output=True)

    def start(index: int) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", SLOWLY, *command(whole.request, "--shard", f"{index}/3")]
        return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)

    folder = parts_folder(whole.request.out)
    others = [start(0), start(2)]
    for kill in range(2):
        victim = start(1)
        while victim.poll() is None and len(list(folder.rglob("*.pack"))) < 1 + kill:
            time.sleep(0.01)
        victim.kill()
        victim.communicate()
    refused = subprocess.run(
        [*main, *command(whole.request, "--resume")], capture_output=True, text=True, timeout=100
    )
    running = any(p.poll() is None for p in others)
    assert not running or (refused.returncode == 2 and "are still at work" in refused.stderr), refused.stderr
    for process in (*others, start(1)):
        text = process.communicate(timeout=100)[1]
        assert process.returncode == 0 or "there is nothing to do" in text or "complete" in text, text
    subprocess.run([*main, *command(whole.request, "--resume")], check=True, capture_output=True, timeout=100)
    assert whole.request.out.read_bytes() == plain.out.read_bytes()
    assert not folder.exists()
