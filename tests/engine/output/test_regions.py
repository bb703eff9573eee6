"""A map in regions: each is a whole COG, together they are the one COG, and nothing foreign is lost on the way."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import DISK, Disk
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.hands import Hands, Piece, SharedJob, Threads
from deeplight.engine.output.pack_format import DamagedPack
from deeplight.engine.output.packs import OutputSpec, PackStore
from deeplight.engine.output.parts import Mode
from deeplight.engine.output.regions import (
    SPLIT_TAG,
    MapRegions,
    assemble_regions,
    check_folder_of_regions,
    check_replaceable,
    files_of,
    region_name,
)
from deeplight.engine.raster.grid import Grid
from tests.engine.output.disks import FailingDisk, FullDisk, RecordingDisk, found, materialise
from tests.engine.output.test_cog import UINT16, assert_valid
from tests.engine.output.test_packs import fill, lights, output
from tests.engine.output.test_power_loss import states

TAGS = {SPLIT_TAG: "2", "DEEPLIGHT_MODEL": "<tiny> & ü"}
ROTATED = Grid(CRS.from_epsg(2278), Affine(70.7, 21.3, 2.1e6, 21.3, -70.7, 1.37e7), 416, 392)


def stored(folder: Path, spec: OutputSpec | None = None, seed: int = 0) -> PackStore:
    """Four times four packs of 128 pixels a side, smaller ones at the edges; the first holds no data."""
    spec = spec or output(417, 391, tags=TAGS)
    folder.mkdir(exist_ok=True)
    return fill(PackStore(folder / "packs", spec, 128), lights(spec, seed))


def split(
    store: PackStore, folder: Path, side: int = 2, disk: Disk = DISK, hands: Hands | None = None
) -> Path:
    """The VRT over regions of so many packs a side."""
    folder.mkdir(exist_ok=True)
    assemble_regions(store, folder / "lights.vrt", side, hands=hands or Threads(1), disk=disk)
    return folder / "lights.vrt"


def regions_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tif")}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pixels(path: Path, level: int) -> np.ndarray:
    options = {"overview_level": level - 1} if level else {}
    with rasterio.open(path, **options) as dataset:
        return np.asarray(dataset.read())


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [{"bands": 2}, {"grid": ROTATED, "compression": "deflate"}, UINT16, {"nodata": -9999.0, "block": 64}],
    ids=["bands", "rotated", "uint16", "small blocks"],
)
def test_regions_together_are_the_one_file(tmp_path: Path, side: int, options: dict[str, Any]) -> None:
    # of 8 × LR pixels; of other sizes GDAL rounds overviews of VRTs down, and those of files up
    spec = output(416, 392, tags=TAGS, **options)
    store = stored(tmp_path, spec)
    assemble(store, tmp_path / "o.tif")
    vrt = split(store, tmp_path / "regions", side)
    with rasterio.open(tmp_path / "o.tif") as one, rasterio.open(vrt) as many:
        assert (many.crs, many.transform, many.shape) == (one.crs, one.transform, one.shape)
        assert (many.descriptions, many.units, many.dtypes) == (one.descriptions, one.units, one.dtypes)
        assert (many.scales, many.offsets) == (one.scales, one.offsets)
        np.testing.assert_array_equal(many.nodatavals, one.nodatavals)
        assert TAGS.items() <= many.tags().items()
        levels = len(many.overviews(1))
        assert many.overviews(1) == one.overviews(1)[:levels]
    for level in range(levels + 1):
        np.testing.assert_array_equal(pixels(vrt, level), pixels(tmp_path / "o.tif", level))


@pytest.mark.parametrize(("side", "levels"), [(1, 0), (2, 1), (3, 2), (9, 2)])
def test_each_region_is_a_whole_cog(tmp_path: Path, side: int, levels: int) -> None:
    spec = output(417, 391, bands=2, tags=TAGS)
    store = stored(tmp_path, spec)
    vrt = split(store, tmp_path / "regions", side)
    for path in files_of(vrt):
        assert_valid(path)
        row, col = (int(part[1:]) * side * 128 for part in path.stem.split("_")[1:])
        with rasterio.open(path) as dataset:
            assert dataset.shape == (min(side * 128, 417 - row), min(side * 128, 391 - col))
            assert dataset.transform == spec.grid.transform @ Affine.translation(col, row)
            assert len(dataset.overviews(1)) == levels
            assert dataset.crs == spec.grid.crs and np.isnan(dataset.nodata)
            assert TAGS.items() <= dataset.tags().items()


def test_a_region_without_data_has_no_file(tmp_path: Path) -> None:
    store = stored(tmp_path)
    vrt = split(store, tmp_path / "regions", 1)
    names = {region_name((row, col)) for row in range(4) for col in range(4)} - {"lights_r0000_c0000.tif"}
    assert set(regions_in(vrt.parent)) == names == {path.name for path in files_of(vrt)}
    with rasterio.open(vrt) as dataset:
        assert np.isnan(dataset.read(1, window=((0, 128), (0, 128)))).all()


class Some:
    """Makes so many regions and is then interrupted."""

    count = 1

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        for piece in pieces[: self.pieces]:
            job.do(piece)
        raise KeyboardInterrupt


def test_a_finished_region_is_not_made_again(tmp_path: Path) -> None:
    store = stored(tmp_path)
    expected = regions_in(split(store, tmp_path / "calm").parent)
    again = stored(tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        split(again, tmp_path / "regions", hands=Some(2))
    folder = tmp_path / "regions"
    stamps = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert sorted(stamps) == ["lights_r0000_c0000.tif", "lights_r0000_c0001.tif"]
    split(again, folder)
    assert regions_in(folder) == expected
    assert {name: (folder / name).stat().st_ino for name in stamps} == stamps


def test_what_is_no_region_stays(tmp_path: Path) -> None:
    store = stored(tmp_path)
    folder = tmp_path / "regions"
    folder.mkdir()
    mine = folder / "lights_r0001_c0001.tif"
    assemble(store, tmp_path / "o.tif")
    for content in (
        b"not a raster",
        (tmp_path / "o.tif").read_bytes().replace(SPLIT_TAG.encode(), b"X" * 22),
    ):
        mine.write_bytes(content)
        for mode in (Mode.OVERWRITE, Mode.RESUME):
            with pytest.raises(InputError, match=r"lights_r0001_c0001\.tif is not of a map in regions"):
                check_folder_of_regions(folder / "lights.vrt", mode)
        with pytest.raises(InputError, match="move it away, or choose another folder"):
            split(store, folder)
        assert mine.read_bytes() == content and not (folder / "lights.vrt").exists()
    mine.rename(folder / "lights_r0009_c0009.tif")
    (folder / "other.tif").write_bytes(b"mine")
    split(store, folder)
    assert {"lights_r0009_c0009.tif", "other.tif"} < set(regions_in(folder))


def test_a_foreign_vrt_stays(tmp_path: Path) -> None:
    store = stored(tmp_path)
    folder = tmp_path / "regions"
    folder.mkdir()
    (folder / "lights.vrt").write_text("<VRTDataset><Metadata/></VRTDataset>")
    with pytest.raises(InputError, match=r"lights\.vrt is not of a map in regions"):
        check_replaceable(folder / "lights.vrt")
    with pytest.raises(InputError, match=r"lights\.vrt is not of a map in regions"):
        split(store, folder)
    assert [path.name for path in folder.iterdir()] == ["lights.vrt"]


def test_regions_of_an_older_output_go(tmp_path: Path) -> None:
    """Its VRT goes before the first region is replaced, so that it never shows two maps."""
    store = stored(tmp_path)
    new = stored(tmp_path / "new", seed=4)
    expected = regions_in(split(new, tmp_path / "calm").parent)
    for note in new.folder.glob("*.region"):
        note.unlink()
    folder = split(store, tmp_path / "regions", 1).parent
    (folder / "lights_r0003_c0003.stac.json").write_text("{}")
    (folder / "lights_r0003_c0003.tif.aux.xml").write_text("")
    with pytest.raises(InputError, match=r"lights_r0000_c0001\.tif exists: use `overwrite=True`"):
        check_folder_of_regions(folder / "lights.vrt", Mode.NEW)
    check_folder_of_regions(folder / "lights.vrt", Mode.OVERWRITE)
    with pytest.raises(KeyboardInterrupt):
        split(new, folder, hands=Some(0))
    assert not (folder / "lights.vrt").exists() and len(regions_in(folder)) == 15
    split(new, folder)
    assert regions_in(folder) == expected
    assert {path.name for path in folder.iterdir()} == {*expected, "lights.vrt"}


def test_who_wakes_late_puts_no_region_into_a_later_run(tmp_path: Path) -> None:
    store = stored(tmp_path)
    folder = split(store, tmp_path / "regions").parent
    before = regions_in(folder)
    with MapRegions(store, folder, 2).published() as known:
        late = known.job(store)

    class Sleeps(Disk):
        """The folder of the packs goes while the region waits for its name."""

        def sync(self, file: Any) -> None:
            super().sync(file)
            store.folder.rename(tmp_path / "gone")

    late = replace(late, disk=Sleeps())
    for note in store.folder.glob("*.region"):
        note.unlink()
    with pytest.raises(DeepLightError, match=r"cannot write .*lights_r0000_c0000\.tif \(No such file"):
        late.do((0, 0))
    with pytest.raises(DeepLightError):
        late.do((0, 1))
    assert regions_in(folder) == before


def test_a_missing_region_is_named(tmp_path: Path) -> None:
    vrt = split(stored(tmp_path), tmp_path / "regions")
    (vrt.parent / "lights_r0001_c0000.tif").unlink()
    with pytest.raises(InputError, match=r"lights_r0001_c0000\.tif is missing, which .*lights\.vrt shows"):
        files_of(vrt)
    vrt.write_text("<VRT")
    with pytest.raises(InputError, match=r"lights\.vrt cannot be read"):
        files_of(vrt)


def test_a_damaged_pack_is_removed(tmp_path: Path) -> None:
    store = stored(tmp_path)
    path, index = store.path((2, 1)), store.index((2, 1))
    raw = bytearray(path.read_bytes())
    raw[index.start + 99] ^= 16
    path.write_bytes(raw)
    with pytest.raises(DamagedPack, match=r"00002_00001.pack is damaged"):
        split(store, tmp_path / "regions", hands=Threads(3))
    assert set(store.keys()) - store.present() == {(2, 1)} and not (tmp_path / "regions/lights.vrt").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_full_disk_leaves_whole_regions(tmp_path: Path, threads: int) -> None:
    store = stored(tmp_path)
    expected = regions_in(split(store, tmp_path / "calm").parent)
    for note in store.folder.glob("*.region"):
        note.unlink()
    with pytest.raises(DeepLightError, match=r"^the disk is full while writing .*lights_r000"):
        split(store, tmp_path / "regions", disk=FullDisk(300_000), hands=Threads(threads))
    some = regions_in(tmp_path / "regions")
    assert some.items() < expected.items()
    split(store, tmp_path / "regions", hands=Threads(threads))
    assert regions_in(tmp_path / "regions") == expected


def test_a_failure_at_any_operation(tmp_path: Path) -> None:
    store = stored(tmp_path, output(140, 260, tags=TAGS))
    disk = FailingDisk()
    calm = split(store, tmp_path / "calm", 1, disk).parent
    expected = found(calm)
    for at in range(len(disk.done)):
        for note in store.folder.glob("*.region"):
            note.unlink()
        folder = tmp_path / str(at)
        with pytest.raises(DeepLightError):
            split(store, folder, 1, FailingDisk(at, errno.EIO))
        assert not (folder / "lights.vrt").exists() or at >= len(disk.done) - 2
        assert found(folder).items() <= expected.items()
        split(store, folder, 1)
        assert found(folder) == expected
    assert len(disk.done) > 20


def test_power_loss_at_any_point(tmp_path: Path) -> None:
    """What is under a final name is whole, and the next run ends with the same bytes."""
    root = tmp_path / "root"
    store = stored(root, output(140, 200, tags=TAGS))
    packs = found(store.folder)
    start, disk = found(root), RecordingDisk(root)
    split(PackStore(store.folder, store.spec, store.side, disk=disk), root, 1, disk)
    expected = files(root)
    every = states(start, disk.log, 64)
    for number, state in enumerate(every):
        assert all(state[path] == expected[path.name] for path in state if str(path) in expected)
        folder = tmp_path / str(number)
        materialise(state, folder)
        assert packs.items() <= found(folder / "packs").items()
        split(PackStore(folder / "packs", store.spec, 128), folder, 1)
        assert files(folder) == expected
    assert len(every) > 10
