"""Power fails at any moment of a whole run: nothing wrong is found, and --resume ends with the same bytes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError, Interrupted
from deeplight.engine.output.parts import Mode
from deeplight.engine.output.shards import Shard
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.disks import Op, PowerLoss, RecordingDisk, State, found, installed, materialise
from tests.scenes import write_raster

OUT = PurePosixPath("o.tif")
PARTS = PurePosixPath("o.tif.parts")
STATES = 4096
"""Subsets a crash point is tried with; more than that are sampled."""


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    """Three packs, the second all nodata, and overviews that span packs. `out` is to be replaced."""
    folder = tmp_path_factory.mktemp("inputs")
    ntl = np.random.default_rng(1).gamma(0.5, 8.0, (3, 520)).astype(np.float32)
    ntl[:, 256:512] = -1
    scene = SceneOptions(ntl=str(write_raster(folder / "ntl.tif", ntl, nodata=-1)))
    model = str(write_analytic(folder / "analytic"))
    return RunOptions(scene=scene, out=folder / "o.tif", model=model, tiles=TileRequest(256), threads=1)


def of_packs(path: PurePosixPath) -> bool:
    """Whether it is a folder of packs."""
    return path.parent == PARTS and path.name.startswith("packs-")


def is_pack(path: PurePosixPath) -> bool:
    """Whether a run takes it for a pack."""
    return of_packs(path.parent) and path.suffix == ".pack"


def run(request: RunOptions, folder: Path, mode: Mode = Mode.NEW, scale: float = 1.0) -> bytes:
    """Run into `folder`; returns the bytes of the output."""
    scene = dataclasses.replace(request.scene, ntl_scale=(scale, 0.0))
    infer(dataclasses.replace(request, scene=scene, out=folder / OUT, mode=mode))
    return (folder / OUT).read_bytes()


def recorded(request: RunOptions, folder: Path, mode: Mode = Mode.NEW) -> list[Op]:
    """The operations of a run."""
    disk = RecordingDisk(folder)
    with installed(disk):
        run(request, folder, mode)
    return disk.log


def states(start: State, log: Sequence[Op], limit: int = STATES) -> list[State]:
    """What may be found after a crash at any point of a run, each once.

    Temporary files count as one state whatever is in them: nobody reads them.
    """
    rng = random.Random(2)
    disk = PowerLoss(start)
    unique: dict[object, State] = {}
    for op in [None, *log]:
        if op is not None:
            disk.do(op)
        for state in disk.states(limit, rng):
            key = frozenset((_junk(path) or path, None if _junk(path) else state[path]) for path in state)
            unique.setdefault(key, state)
    return list(unique.values())


def _junk(path: PurePosixPath) -> PurePosixPath | None:
    """The folder of a path that no run looks into, or the name of a temporary file without its numbers."""
    for depth, name in enumerate(path.parts):
        if name.endswith((".tmp", ".removed")):
            return PurePosixPath(*path.parts[:depth], name.split(".parts.")[0].rsplit(".", 2)[0])
    return None


def test_power_loss_at_any_point_of_a_run(request_of: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    log = recorded(request_of, tmp_path / "calm")
    assert list(found(tmp_path / "calm")) == [OUT]
    expected = (tmp_path / "calm" / OUT).read_bytes()
    packs = {op.to: op.content for op in log if op.to is not None and is_pack(op.to)}
    assert {path.name for path in packs} == {f"00000_0000{n}.pack" for n in range(3)}
    every = states({}, log)
    for number, state in enumerate(every):
        assert state.get(OUT, expected) == expected
        assert all(state[path] == packs[path] for path in state if path in packs)
        folder = tmp_path / str(number)
        materialise(state, folder)
        kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("o.tif.parts/packs-*/*.pack")}
        assert not kept or (folder / PARTS / "record.json").exists()
        assert not (kept and OUT in state) or len(kept) == len(packs)
        assert kept.items() <= run_and_stamp(request_of, folder).items()
        assert found(folder) == {OUT: expected}
    assert len(every) >= 12


def test_power_loss_while_shards_work(request_of: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    expected = run(request_of, tmp_path / "calm")
    scene = dataclasses.replace(request_of.scene, ntl_scale=(1.0, 0.0))  # as in `run`
    shards = [dataclasses.replace(request_of, scene=scene, shard=Shard(index, 2)) for index in (1, 0)]
    (tmp_path / "shards").mkdir()
    disk = RecordingDisk(tmp_path / "shards")
    with installed(disk):
        for shard in shards:
            infer(dataclasses.replace(shard, out=tmp_path / "shards" / OUT))
    every = states({}, disk.log)
    for number, state in enumerate(every):
        folder = tmp_path / str(number)
        materialise(state, folder)
        kept = len(list(folder.glob("o.tif.parts/packs-*/*.pack")))
        assert not kept or (folder / PARTS / "record.json").exists()
        if number % 2:  # a shard goes on, or the last run finds what there is
            infer(dataclasses.replace(shards[0], out=folder / OUT))
        assert run(request_of, folder, Mode.RESUME) == expected
        assert found(folder) == {OUT: expected}
    assert len(every) >= 10


def run_and_stamp(request: RunOptions, folder: Path) -> dict[str, int]:
    """Resume; returns the modification times of the packs just before they were removed."""
    stamps: dict[str, int] = {}

    class Watching(RecordingDisk):
        def replace(self, source: Path, target: Path) -> None:
            if source.name.endswith(".parts"):
                stamps.update({p.name: p.stat().st_mtime_ns for p in source.glob("packs-*/*.pack")})
            super().replace(source, target)

    with installed(Watching(folder)):
        run(request, folder, Mode.RESUME)
    return stamps


def test_power_loss_in_a_resumed_run(request_of: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    log = recorded(request_of, tmp_path / "calm")
    expected = (tmp_path / "calm" / OUT).read_bytes()
    packs = {op.to: op.content for op in log if op.to is not None and is_pack(op.to)}
    begun = [s for s in states({}, log) if any(path in packs for path in s) and OUT not in s]
    assert len(begun) >= 4
    for number, start in enumerate(begun):
        folder = tmp_path / str(number)
        materialise(start, folder)
        again = recorded(request_of, folder, Mode.RESUME)
        written = {op.to for op in again if op.to in packs}
        assert written == {path for path in packs if path not in start}
        for state in states(start, again):
            assert state.get(OUT, expected) == expected
            assert all(state[path] == packs[path] for path in state if path in packs)
            if any(path in start for path in packs) and OUT not in state:
                assert all(path in state for path in start if path in packs)


@pytest.mark.parametrize("missing", ["sync", "sync folder"])
def test_the_model_of_power_loss_sees_a_missing_sync(
    request_of: RunOptions, tmp_path: Path, missing: str
) -> None:
    log = recorded(request_of, tmp_path)
    expected = (tmp_path / OUT).read_bytes()
    weak = [op for op in log if op.what != missing]
    packs = {op.to: op.content for op in log if op.to is not None and is_pack(op.to)}
    bad = [
        state
        for state in states({}, weak, 256)
        if state.get(OUT, expected) != expected
        or any(path in packs and state[path] != packs[path] for path in state)
        or (OUT in state and any(map(of_packs, state)) and not all(path in state for path in packs))
    ]
    assert bad


def test_power_loss_while_overwriting_another_run(
    request_of: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old output and the parts of a stopped run with another scale are there already."""
    (tmp_path / "old").mkdir()
    old = run(request_of, tmp_path / "old", scale=2.0)
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.output.cog.assemble", interrupt)
        with pytest.raises(Interrupted):
            run(request_of, tmp_path / "old", Mode.OVERWRITE, scale=2.0)
    start = found(tmp_path / "old")
    assert start[OUT] == old and sum(map(is_pack, start)) == 3
    log = recorded(request_of, tmp_path / "old", Mode.OVERWRITE)
    expected = (tmp_path / "old" / OUT).read_bytes()
    assert expected != old
    refused = 0
    every = states(start, log)
    for number, state in enumerate(every):
        assert state[OUT] in (old, expected)
        folder = tmp_path / str(number)
        materialise(state, folder)
        try:
            run(request_of, folder, Mode.RESUME)
        except InputError as error:
            assert "cannot be resumed: the option ntl_scale was 2,0 and is now 1,0" in str(error)
            assert state[OUT] == old
            refused += 1
            run(request_of, folder, Mode.OVERWRITE)
        assert found(folder) == {OUT: expected}
    assert 0 < refused < len(every)


def interrupt(*_: object, **__: object) -> None:
    raise Interrupted(15)
