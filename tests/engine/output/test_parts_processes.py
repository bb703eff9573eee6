"""Processes that meet at the folder beside the output, and disks that let nobody write."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeplight.engine.core import locks
from deeplight.engine.core.errors import InputError
from deeplight.engine.output import parts
from deeplight.engine.output.parts import Mode, check_output
from deeplight.engine.run.pipeline import infer
from tests.engine.output.stopped import Stopped
from tests.engine.processes import arguments, slow


def test_the_lock_keeps_a_second_process_out_and_a_killed_one_does_not(stopped: Stopped) -> None:
    shutil.rmtree(stopped.folder)
    command = [sys.executable, "-c", slow(4), *arguments(stopped.request)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while first.poll() is None and not list(stopped.folder.glob("packs-*/*.pack")):
            time.sleep(0.01)
        for mode in Mode:
            with pytest.raises(InputError, match="another run is writing"):
                infer(dataclasses.replace(stopped.request, mode=mode))
        main = [sys.executable, "-m", "deeplight.engine.cli", *arguments(stopped.request, "--resume")]
        second = subprocess.run(main, capture_output=True, text=True, timeout=100)
        assert second.returncode == 2 and second.stderr.count("error: another run is writing") == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert (stopped.folder / "lock").exists()
    report = infer(stopped.request)
    assert report is not None and report.packs["kept_from_earlier_run"] >= 1
    assert stopped.request.out.read_bytes() == stopped.expected


def test_processes_that_start_together_do_no_harm(stopped: Stopped) -> None:
    command = [sys.executable, "-m", "deeplight.engine.cli", *arguments(stopped.request, "--resume")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(p.communicate(timeout=100)[1], p.returncode) for p in both]
    assert 0 in {status for _, status in ends}
    assert all(status == 0 or "another run is writing" in text for text, status in ends), ends
    assert stopped.request.out.read_bytes() == stopped.expected and not stopped.folder.exists()


def test_a_run_that_begins_between_two_looks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not taken for shards, which need another remedy."""
    lock = tmp_path / "o.tif.parts" / "lock"
    lock.parent.mkdir()
    looks: list[bool] = []

    with contextlib.ExitStack() as held:

        def look(path: Path, *, alone: bool = False) -> bool:
            looks.append(alone)
            answer = locks.is_held(path, alone=alone)
            if len(looks) == 1:
                held.enter_context(locks.exclusive(lock, "busy"))
            return answer

        monkeypatch.setattr(parts, "is_held", look)
        with pytest.raises(InputError, match="another run is writing"):
            check_output(tmp_path / "o.tif", Mode.RESUME)
    assert looks == [True, False, True]
    assert not check_output(tmp_path / "o.tif", Mode.RESUME)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that is mounted read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_refused_at_once(stopped: Stopped, read_only: Path) -> None:
    request = dataclasses.replace(stopped.request, out=read_only / "o.tif", mode=Mode.NEW)
    with pytest.raises(InputError, match=r"o.tif cannot be written: the folder .*disk is not writable"):
        infer(request)


def test_a_read_only_folder_is_refused_at_once(stopped: Stopped, tmp_path: Path) -> None:
    """Root may write anywhere, so it gives up its capabilities first."""
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("needs setpriv to give up root's rights")
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    request = dataclasses.replace(stopped.request, out=folder / "o.tif")
    command = [*drop, sys.executable, "-m", "deeplight.engine.cli", *arguments(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and f"the folder {folder} is not writable" in done.stderr, done.stderr
    assert list(folder.iterdir()) == []
