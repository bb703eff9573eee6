"""Clip trees: what is cut is what the rasters hold, and what is read back."""

from __future__ import annotations

import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.clips import files as clip_files
from deeplight.train.clips.degrade import Degradation
from deeplight.train.clips.index import read_index
from deeplight.train.clips.place import PlaceOptions
from deeplight.train.clips.plan import ClipPlanOptions
from deeplight.train.clips.samples import ClipError, Sample
from deeplight.train.clips.tree import ClipTree, open_source
from tests.scenes import north_up, write_raster
from tests.train.clips.places import cut, ntl_place, scene_place

NONE = Degradation(psf_fwhm_lr=0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlaceOptions]:
    """A tree with every layer, and the rasters it was cut from."""
    folder = tmp_path_factory.mktemp("whole")
    files, _ = scene_place(folder)
    cut(folder / "tree", files, date="2021-06")
    return folder / "tree", files


def test_clips_hold_what_the_scene_holds(whole: tuple[Path, PlaceOptions]) -> None:
    tree, files = whole
    source = ClipTree.open(tree, "all")
    assert {row.split for row in source.rows} == {"train", "val", "test"}
    with (
        Scene.open(files.scene) as scene,
        rasterio.open(files.ntl_hr) as lights,
        rasterio.open(files.isp) as percent,
    ):
        for index, row in enumerate(source.rows):
            window = Window(0, 0, row.height, row.width)
            sample = source.read(index, window)
            inputs = scene.read_inputs(Window(row.row, row.col, row.height, row.width))
            for name in ("ntl", "ntl_valid", "dmo_valid", "dmo_bands", "dem", "dem_valid"):
                assert np.array_equal(getattr(sample, name), inputs[name][0]), name
            # reflectance is stored in steps of 2.75e-5
            np.testing.assert_allclose(sample.dmo, inputs["dmo"][0], atol=1.4e-5)
            at = ((row.row * 8, (row.row + row.height) * 8), (row.col * 8, (row.col + row.width) * 8))
            # the truth lies on the HR grid: bilinear weights there are 1 and 0 but for rounding of coordinates
            np.testing.assert_allclose(sample.ntl_hr[0], lights.read(1, window=at), atol=1e-4)
            raw = percent.read(1, window=at)
            known = raw != 255
            inner = sample.isp_valid[0] == 1
            assert np.array_equal(inner, known)
            np.testing.assert_allclose(sample.isp[0][known], raw[known] * 0.01, atol=1e-5)
            assert not sample.isp[0][~known].any() and sample.offset is None


def test_the_index_says_where_when_and_what(whole: tuple[Path, PlaceOptions]) -> None:
    rows = read_index(whole[0])
    row = max(rows, key=lambda r: (r.row, r.col))
    assert (row.place, row.date, row.unit) == ("here", "2021-06", "nW/cm²/sr")
    assert row.layers == "ntl ntl_hr dmo dem isp"
    assert row.west == pytest.approx(6.0 + row.col / 240) and row.north == pytest.approx(50.0 - row.row / 240)
    assert row.east - row.west == pytest.approx(row.width / 240) and row.crs == "EPSG:4326"
    folder = whole[0] / row.clip
    assert sorted(p.name for p in folder.iterdir()) == [
        "dem.tif",
        "dmo.tif",
        "isp.tif",
        "ntl.tif",
        "ntl_hr.tif",
    ]
    with rasterio.open(folder / "ntl.tif") as dataset:
        pixels = dataset.read(1)
    assert row.valid == pytest.approx(np.isfinite(pixels).mean())
    assert row.sum_lights == pytest.approx(float(np.nansum(pixels)), rel=1e-6)
    assert row.lit == pytest.approx(float((pixels[np.isfinite(pixels)] > 0.5).mean()))
    with rasterio.open(folder / "ntl_hr.tif") as dataset:
        assert dataset.bounds == pytest.approx((row.west, row.south, row.east, row.north))
        assert dataset.shape == (row.height * 8, row.width * 8)


def test_a_window_is_the_crop_of_the_clip(whole: tuple[Path, PlaceOptions]) -> None:
    source = pickle.loads(pickle.dumps(ClipTree.open(whole[0], "train")))
    height, width = source.size(0)
    all_of_it = source.read(0, Window(0, 0, height, width))
    window = Window(1, 2, height - 3, 3)
    part = source.read(0, window)
    for name in Sample.__dataclass_fields__:
        outer = getattr(all_of_it, name)
        if outer is None or outer.ndim == 1:
            continue
        factor = outer.shape[1] // height
        rows, cols = window.scaled(factor).slices_in(Window(0, 0, height * factor, width * factor))
        assert np.array_equal(getattr(part, name), outer[:, rows, cols]), name
    with pytest.raises(ValueError, match="not inside"):
        source.read(0, Window(0, 0, height + 1, width))
    values, valid = source.read_ntl(0, window)
    assert np.array_equal(values, part.ntl) and np.array_equal(valid, part.ntl_valid)


def test_a_window_reads_few_bytes_of_a_large_clip(tmp_path: Path) -> None:
    """A clip of the full size, 256² LR px: a crop of 32² must not read the other 98 %."""
    rng = np.random.default_rng(0)
    ntl = write_raster(tmp_path / "n.tif", rng.gamma(1, 5, (256, 256)).astype(np.float32))
    lights = rng.random((2048, 2048), np.float32)  # noise: does not compress
    write_raster(tmp_path / "h.tif", lights, transform=north_up(1 / 1920), compress=None)
    files = PlaceOptions(SceneOptions(str(ntl)), ntl_hr=str(tmp_path / "h.tif"))
    plan = ClipPlanOptions(block=256, buffer=0, shares=(1, 0, 0))
    assert cut(tmp_path / "tree", files, plan=plan).clips == {"train": 1}
    source = ClipTree.open(tmp_path / "tree", "train")
    source.read(0, Window(96, 96, 32, 32))
    (opened,) = source._open.values()
    raster = opened._hr["ntl_hr"].raster
    size = raster.size_bytes
    assert size is not None and size > 10e6
    block = size / 64  # blocks of 256² HR px; the window fills one
    assert 0.9 * block < raster.bytes_read < 2.5 * block
    assert raster.block_shape == (256, 256)


def test_dmo_may_be_one_file_per_band(whole: tuple[Path, PlaceOptions], tmp_path: Path) -> None:
    tree = whole[0]
    source = ClipTree.open(tree, "test")
    before = source.read(0, Window(0, 0, 4, 4))
    folder = tmp_path / "tree" / source.rows[0].clip
    folder.mkdir(parents=True)
    (tmp_path / "tree" / "index.csv").write_bytes((tree / "index.csv").read_bytes())
    for path in (tree / source.rows[0].clip).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with rasterio.open(folder / "dmo.tif") as dataset:
        pixels, profile = dataset.read(), dataset.profile | {"count": 1}
    (folder / "dmo.tif").unlink()
    for number, slot in enumerate(DMO_SLOTS):
        if slot == "red":
            continue
        with rasterio.open(folder / f"dmo_{slot}.tif", "w", **profile) as dataset:
            dataset.write(pixels[number], 1)
            dataset.scales, dataset.offsets = (0.0000275,), (-0.2,)
    after = ClipTree.open(tmp_path / "tree", "test").read(0, Window(0, 0, 4, 4))
    assert after.dmo_bands.tolist() == [1, 1, 1, 0, 1, 1, 1]
    there = after.dmo_bands.astype(bool)
    assert np.array_equal(after.dmo[there], before.dmo[there]) and not after.dmo[3].any()
    assert np.array_equal(after.dmo_valid, before.dmo_valid)


def test_an_unreadable_clip_is_named(whole: tuple[Path, PlaceOptions], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(whole[0], tree)
    source = ClipTree.open(tree, "train")
    names = [row.clip for row in source.rows]
    damaged = tree / names[0] / "dmo.tif"
    data = bytearray(damaged.read_bytes())
    damaged.write_bytes(data[: len(data) // 2])
    (tree / names[1] / "ntl.tif").unlink()
    shutil.copy(tree / names[3] / "ntl_hr.tif", tree / names[2] / "ntl_hr.tif")
    window = Window(0, 0, 2, 2)
    for index in range(3):
        with pytest.raises(ClipError) as error:
            source.read(index, window)
        assert names[index] in str(error.value) and "\n" not in str(error.value)
    assert source.read(3, window).ntl.shape == (1, 2, 2)


def test_the_fingerprint_follows_the_data(whole: tuple[Path, PlaceOptions], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(whole[0], tree)
    first = ClipTree.open(tree, "train").fingerprint()
    # the same clips elsewhere are the same data
    assert first == ClipTree.open(whole[0], "train").fingerprint() and len(first) == 64
    assert first != ClipTree.open(tree, "test").fingerprint()
    path = tree / ClipTree.open(tree, "train").rows[0].clip / "ntl.tif"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert ClipTree.open(tree, "train").fingerprint() != first


def test_open_source_says_what_is_wrong(whole: tuple[Path, PlaceOptions], tmp_path: Path) -> None:
    tree = str(whole[0])
    assert len(open_source(tree, "test", "paired", NONE)) == len(ClipTree.open(tree, "test"))
    cut(tmp_path / "bare", ntl_place(tmp_path))
    cases = [
        ((tree, "test", "unpaired"), "choose paired or wald"),
        ((tree, "exam", "paired"), "its splits are test, train, val"),
        ((str(tmp_path / "none"), "test", "paired"), "is not a folder"),
        ((str(tmp_path), "test", "paired"), "has no index.csv"),
        ((" , ", "test", "paired"), "no data are given"),
        ((str(tmp_path / "bare"), "test", "paired"), 'use `protocol="wald"`'),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            open_source(*arguments, NONE)
    (tmp_path / "bare" / "index.csv").write_text("clip,place\n")
    with pytest.raises(InputError, match="has no column date, split"):
        open_source(str(tmp_path / "bare"), "test", "wald", NONE)


def test_a_clip_outside_the_tree_is_refused(tmp_path: Path) -> None:
    cut(tmp_path / "tree", ntl_place(tmp_path))
    index = tmp_path / "tree" / "index.csv"
    text = index.read_text()
    name = read_index(tmp_path / "tree")[0].clip
    index.write_text(text.replace(name, f"../{name.partition('/')[2]}"))
    with pytest.raises(InputError, match="not SPLIT/NAME"):
        ClipTree.open(tmp_path / "tree", "all")


def test_clips_need_no_torch() -> None:
    code = (
        "import sys; from deeplight.train.clips import blackmarble, cut, inspect_sheet, inspect_stats, tree, wald; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_how_band_names_were_read_is_said_once(
    whole: tuple[Path, PlaceOptions], caplog: pytest.LogCaptureFixture
) -> None:
    clip_files._slots.cache_clear()
    caplog.set_level(logging.INFO, logger="deeplight")
    source = ClipTree.open(whole[0], "all")
    for index in range(3):
        source.read(index, Window(0, 0, 1, 1))
    assert [
        r.getMessage().partition(" = ")[0]
        for r in caplog.records
        if "bands as the file says" in r.getMessage()
    ] == ["dmo.tif: bands as the file says: coastal"]
