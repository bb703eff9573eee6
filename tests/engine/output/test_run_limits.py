"""What a run may be asked to write, and inputs that go away under it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.packs import PackStore
from deeplight.engine.output.parts import Mode, Record, check_output, parts_folder, stored_record
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.test_packs import output
from tests.scenes import write_raster


def test_a_record_survives_as_text(tmp_path: Path) -> None:
    record = Record({"the file of `ntl`": "1 byte, ü"}, None, 12)
    assert Record.from_json(record.to_json()) == record
    assert stored_record(tmp_path / "o.tif") is None
    text = json.loads(record.to_json())
    for change in ({"halo": 13}, {"core": 3}, {"fields": {}}, {"crc32": 0}):
        with pytest.raises(ValueError, match="checksum"):
            Record.from_json(json.dumps(text | change).encode())


def test_names_that_leave_no_room_for_temporary_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is too long: give one of at most \d+ bytes"):
        check_output(tmp_path / ("ü" * 100 + ".tif"), Mode.NEW)
    assert check_output(tmp_path / ("a" * 150 + ".tif"), Mode.NEW) is False


def test_a_dangling_link_is_no_finished_output(tmp_path: Path) -> None:
    (tmp_path / "o.tif").symlink_to(tmp_path / "gone.tif")
    with pytest.raises(InputError, match=r"o.tif is not a file: use `overwrite=True`"):
        check_output(tmp_path / "o.tif", Mode.RESUME)


def test_packs_of_a_run_with_other_tags_are_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "packs"
    PackStore(folder, output(100, 100, tags={"MODEL": "a"}), 128).write_empty((0, 0))
    with pytest.raises(InputError, match="packs of another output"):
        PackStore(folder, output(100, 100, tags={"MODEL": "b"}), 128).done()


class Vandal(Silent):
    """Spoils a file when the first tile is done."""

    def __init__(self, spoil: Callable[[], object]) -> None:
        self.spoil = spoil
        self.first = threading.Semaphore(1)

    def advance(self, pixels: int) -> None:
        if self.first.acquire(blocking=False):  # two writers may be here at once
            self.spoil()


@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_an_input_that_vanishes_in_a_run(tmp_path: Path, how: str) -> None:
    ntl = np.random.default_rng(4).gamma(0.5, 8.0, (3, 4000)).astype(np.float32)
    path = write_raster(tmp_path / "ntl.tif", ntl, tiled=True, blockxsize=64, blockysize=16)
    request = RunOptions(
        scene=SceneOptions(ntl=str(path)),
        out=tmp_path / "o.tif",
        model=str(write_analytic(tmp_path / "analytic")),
        tiles=TileRequest(64),
        threads=1,
    )
    infer(dataclasses.replace(request, out=tmp_path / "calm.tif"))
    shutil.copy2(path, tmp_path / "kept.tif")
    spoil = path.unlink if how == "deleted" else lambda: os.truncate(path, path.stat().st_size // 4)
    try:
        infer(request, Vandal(spoil))
    except DeepLightError as error:
        assert "ntl.tif" in str(error) and "\n" not in str(error)
        assert not request.out.exists()
        path.unlink(missing_ok=True)
        shutil.copy2(tmp_path / "kept.tif", path)
        infer(dataclasses.replace(request, mode=Mode.RESUME))
    else:
        assert how == "deleted"  # open files live on
    assert request.out.read_bytes() == (tmp_path / "calm.tif").read_bytes()
    assert not parts_folder(request.out).exists()
