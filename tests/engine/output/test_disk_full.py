"""The disk runs full, for real and at every single operation: one sentence, nothing wrong, resumable."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.disks import FailingDisk, installed
from tests.scenes import write_raster


def noise(folder: Path, height: int, width: int) -> RunOptions:
    """A scene that hardly compresses, and the run over it. `out` is to be replaced."""
    ntl = np.random.default_rng(1).gamma(0.5, 8.0, (height, width)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(folder / "ntl.tif", ntl)))
    model = str(write_analytic(folder / "analytic"))
    return RunOptions(scene=scene, out=folder / "o.tif", model=model, tiles=TileRequest(256), threads=1)


def test_every_operation_may_find_the_disk_full(tmp_path: Path) -> None:
    """Folders, names, each write of packs, record, overview spool and output, syncs, renames."""
    request = noise(tmp_path, 2, 260)
    infer(request)
    expected = request.out.read_bytes()
    counting = FailingDisk()
    with installed(counting):
        infer(dataclasses.replace(request, mode=Mode.OVERWRITE))
    assert {"make folder", "create", "scratch", "write", "write scratch", "sync", "replace", "link"} == {
        *counting.done
    }
    for number, what in enumerate(counting.done):  # the last one is the removal of the parts
        folder = tmp_path / str(number)
        folder.mkdir()
        broken = dataclasses.replace(request, out=folder / "o.tif")
        with (
            installed(FailingDisk(number)),
            pytest.raises(DeepLightError, match=r"^the disk is full while writing .*: free some space") as e,
        ):
            infer(broken)
        assert e.value.exit_code == 1 and "\n" not in str(e.value)
        left = sorted(p.name for p in folder.iterdir())
        assert left in ([], ["o.tif.parts"], ["o.tif", "o.tif.parts"]), (number, what)
        assert "o.tif" not in left or (folder / "o.tif").read_bytes() == expected
        infer(dataclasses.replace(broken, mode=Mode.RESUME))
        assert [p.name for p in folder.iterdir()] == ["o.tif"]
        assert (folder / "o.tif").read_bytes() == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = noise(tmp_path, 24, 1100)
    infer(request)
    expected = request.out.read_bytes()
    packs_and_output = 2 * len(expected)
    assert packs_and_output < 3 << 20 < packs_and_output + (2 << 20)
    out = small_disk / "o.tif"
    request = dataclasses.replace(request, out=out)
    with pytest.raises(InputError, match=r"needs about [\d.]+ MB with its parts and 3\.1 MB are free"):
        infer(request)
    assert list(small_disk.iterdir()) == []
    full_at_some_pack, full_at_the_output = len(expected) // 2, len(expected) * 3 // 2
    for room in (full_at_some_pack, full_at_the_output):
        with pytest.MonkeyPatch.context() as m:
            m.setattr("deeplight.engine.run.planned.check_space", lambda *a: None)
            (small_disk / "other").write_bytes(bytes((3 << 20) - room - (1 << 16)))
            with pytest.raises(DeepLightError, match=r"^the disk is full while writing ") as e:
                infer(request)
        assert e.value.exit_code == 1 and not out.exists()
        packs = {p.name: p.read_bytes() for p in small_disk.glob("o.tif.parts/packs-*/*")}
        assert packs and all(name.endswith(".pack") for name in packs)
        request = dataclasses.replace(request, mode=Mode.RESUME)
    assert len(packs) == 5
    with pytest.raises(InputError, match=r"needs about [\d.]+ MB with its parts and [\d.]+ MB are free"):
        infer(request)
    (small_disk / "other").unlink()
    report = infer(request)
    assert report is not None and report.packs["kept_from_earlier_run"] == 5
    assert out.read_bytes() == expected and [p.name for p in small_disk.iterdir()] == ["o.tif"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_other_refusals_of_the_disk_say_what_to_do(tmp_path: Path, number: int) -> None:
    request = noise(tmp_path, 2, 260)
    disk = FailingDisk()
    with installed(disk):
        infer(request)
    last_write = max(n for n, what in enumerate(disk.done) if what == "write")
    out = tmp_path / "other.tif"
    with installed(FailingDisk(last_write, number)), pytest.raises(DeepLightError) as e:
        infer(dataclasses.replace(request, out=out))
    assert str(e.value).startswith(f"cannot write {out} ({os.strerror(number)}): ") and not out.exists()
    infer(dataclasses.replace(request, out=out, mode=Mode.RESUME))
    assert out.read_bytes() == request.out.read_bytes()
