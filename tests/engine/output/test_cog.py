"""The assembled file: a strictly valid COG with exactly the given pixels, or no file under its name."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.crs import CRS
from rio_cogeo import cog_validate

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.output import cog, copying
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.pack_format import DamagedPack, halve
from deeplight.engine.output.packs import OutputSpec, PackStore, required_bytes
from deeplight.engine.raster.grid import Grid
from tests.engine.output.disks import FullDisk
from tests.engine.output.test_packs import fill, lights, loop_halve, output, part

UINT16 = {"dtype": "uint16", "scale": 0.05, "offset": -1.0, "nodata": 65535}


def assembled(folder: Path, spec: OutputSpec, pixels: Any, side: int = 256) -> Path:
    out = folder / f"{side}.tif"
    assemble(fill(PackStore(folder / f"parts{side}", spec, side), pixels), out)
    return out


def assert_valid(path: Path) -> None:
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])


@pytest.mark.parametrize("size", [(1, 1), (50, 127), (128, 128), (129, 256), (256, 255), (700, 391)], ids=str)
@pytest.mark.parametrize("bands", [1, 3])
def test_float32_comes_back_exactly(tmp_path: Path, size: tuple[int, int], bands: int) -> None:
    spec = output(*size, bands=bands)
    pixels = lights(spec, holes=max(size) > 300)
    path = assembled(tmp_path, spec, pixels)
    assert_valid(path)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
        assert dataset.block_shapes == [(128, 128)] * bands
        assert dataset.overviews(1) == [2**n for n in range(1, spec.levels + 1)]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.mark.parametrize("compression", ["zstd", "deflate"])
def test_uint16_comes_back_within_half_a_step(tmp_path: Path, compression: str) -> None:
    spec = output(391, 500, bands=2, compression=compression, **UINT16)
    pixels = lights(spec)
    path = assembled(tmp_path, spec, pixels)
    assert_valid(path)
    with rasterio.open(path) as dataset:
        raw = dataset.read()
        np.testing.assert_array_equal(raw == 65535, np.isnan(pixels))
        values = raw * dataset.scales[0] + dataset.offsets[0]
        assert np.nanmax(np.abs(np.where(raw == 65535, np.nan, values) - pixels)) <= 0.05 / 2 * (1 + 1e-9)
        assert dataset.profile["compress"] == compression


def test_metadata_is_as_given(tmp_path: Path) -> None:
    tags = {"MODEL": "tiny <1> & ü", "MODEL_SHA256": "ab" * 32}
    spec = output(300, 200, bands=2, tags=tags, **UINT16)
    path = assembled(tmp_path, spec, lights(spec))
    with rasterio.open(path) as dataset:
        assert dataset.crs == spec.grid.crs
        assert dataset.transform == spec.grid.transform
        assert dataset.nodatavals == (65535.0, 65535.0)
        assert dataset.descriptions == ("band 0", "band 1")
        assert dataset.units == ("nW/cm²/sr", None)
        assert (dataset.scales, dataset.offsets) == ((0.05, 0.05), (-1.0, -1.0))
        found = dataset.tags()
        assert {key: found[key] for key in tags} == tags
        assert not {"TIFFTAG_SOFTWARE", "TIFFTAG_DATETIME", "TIFFTAG_IMAGEDESCRIPTION"} & found.keys()
    with rasterio.open(path, overview_level=0) as overview:
        assert overview.nodata == 65535.0


@pytest.mark.parametrize("nodata", [-9999.9, 0.0, float("nan")])
def test_float_nodata_is_the_number_in_the_pixels(tmp_path: Path, nodata: float) -> None:
    spec = output(300, 200, nodata=nodata)
    pixels = lights(spec)
    with rasterio.open(assembled(tmp_path, spec, pixels)) as dataset:
        np.testing.assert_array_equal(dataset.nodata, float(np.float32(nodata)))
        np.testing.assert_array_equal(dataset.read_masks(1) == 0, np.isnan(pixels[0]))


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1 / 1920, 0, 27.01123047, 0, -1 / 1920, -28.5)),
        ("EPSG:2278", Affine(70.7, 21.3, 2.1e6, 21.3, -70.7, 1.37e7)),
        ("EPSG:3413", Affine(50.0, 0, -1e5, 0, 50.0, -2e6)),
        ("+proj=sinu +R=6371007.181", Affine(57.9, 0, 1e6, 0, -57.9, 4e6)),
        ("ESRI:54009", Affine(100.0, 0, 1e6, 0, -80.0, 4e6)),
    ],
    ids=["geographic", "rotated, feet", "south up", "sphere", "Mollweide"],
)
def test_any_georeferencing_survives(tmp_path: Path, crs: str, transform: Affine) -> None:
    grid = Grid(CRS.from_user_input(crs), transform, 140, 150)
    spec = output(140, 150, grid=grid)
    path = assembled(tmp_path, spec, lights(spec, holes=False))
    assert_valid(path)
    with rasterio.open(path) as dataset:
        assert dataset.crs == grid.crs
        assert dataset.transform.almost_equals(transform, precision=0)


def test_a_crs_that_geotiff_cannot_hold_is_refused(tmp_path: Path) -> None:
    crs = CRS.from_user_input("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=30 +lon_0=10 +R=6371229")
    spec = output(100, 100, grid=Grid(crs, Affine(0.1, 0, 0, 0, -0.1, 0), 100, 100))
    with pytest.raises(InputError, match="cannot hold the NTL raster's CRS"):
        assembled(tmp_path, spec, lights(spec, holes=False))


@pytest.fixture(scope="module")
def halved() -> list[Any]:
    """The levels below `lights` of 700×391 pixels."""
    pixels, levels = lights(output(700, 391)), []
    for _ in range(3):
        exact, pixels = loop_halve(pixels[0]), halve(pixels)
        # three float32 additions against a float64 mean
        np.testing.assert_allclose(pixels[0], exact, rtol=3e-7)
        levels.append(pixels)
    return levels


@pytest.mark.parametrize("options", [{}, UINT16], ids=["float32", "uint16"])
@pytest.mark.parametrize("side", [128, 256, 1024])
def test_overviews_are_means_of_valid_pixels(
    tmp_path: Path, halved: list[Any], options: dict[str, Any], side: int
) -> None:
    spec = output(700, 391, **options)
    path = assembled(tmp_path, spec, lights(spec), side)
    assert spec.levels == 3
    for level, expected in enumerate(halved):
        with rasterio.open(path, overview_level=level) as dataset:
            found = dataset.read(1, masked=True)
            values = found.astype(np.float64) * spec.scale + spec.offset if options else found
            tolerance = 0.05 / 2 * (1 + 1e-9) if options else 0
            np.testing.assert_array_equal(np.isnan(expected[0]), np.ma.getmaskarray(found))
            assert np.ma.max(np.ma.abs(values - expected[0])) <= tolerance


def test_all_nodata_blocks_take_no_space(tmp_path: Path) -> None:
    spec = output(700, 391, bands=2)
    pixels = np.full((2, 700, 391), np.nan, np.float32)
    pixels[1, 300:310, 200:210] = 7
    out = tmp_path / "out.tif"
    stats = assemble(fill(PackStore(tmp_path / "parts", spec, 256), pixels), out)
    assert_valid(out)
    with tifffile.TiffFile(out) as tiff:
        counts = [np.array(page.databytecounts) for page in tiff.pages]
        offsets = [np.array(page.dataoffsets) for page in tiff.pages]
    assert [int(np.count_nonzero(count)) for count in counts] == [1, 1, 1, 1]
    assert all(((count == 0) == (offset == 0)).all() for count, offset in zip(counts, offsets, strict=True))
    assert (stats.blocks, stats.sparse_blocks) == (4, sum(count.size for count in counts) - 4)
    with rasterio.open(out) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_a_scene_of_nodata_is_a_valid_file(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "parts", output(300, 391), 128)
    keys = store.keys()
    for key in keys:
        store.write_empty(key)
    stats = assemble(store, tmp_path / "out.tif")
    assert stats.blocks == 0 and stats.bytes == (tmp_path / "out.tif").stat().st_size < 4000
    assert_valid(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert np.isnan(dataset.read()).all()


def test_bytes_do_not_depend_on_order_or_pack_size_or_place(tmp_path: Path) -> None:
    spec = output(700, 600, bands=2, tags={"B": "2", "A": "1"})
    pixels = lights(spec)
    first = assembled(tmp_path, spec, pixels, 128).read_bytes()
    for side in (256, 512, 1024):
        assert assembled(tmp_path, spec, pixels, side).read_bytes() == first
    again = output(700, 600, bands=2, tags={"A": "1", "B": "2"})
    (tmp_path / "elsewhere").mkdir()
    store = PackStore(tmp_path / "elsewhere" / "parts", again, 128)
    keys = store.keys()
    random.Random(8).shuffle(keys)
    for key in keys:
        store.write(key, part(store, pixels, key))
    assemble(store, tmp_path / "elsewhere" / "other.tif")
    assert (tmp_path / "elsewhere" / "other.tif").read_bytes() == first


def test_bigtiff_where_four_gigabytes_are_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = output(300, 391, bands=2)
    pixels = lights(spec)
    size = assembled(tmp_path, spec, pixels).stat().st_size
    monkeypatch.setattr(cog, "CLASSIC_LIMIT", size)
    assert not assemble(PackStore(tmp_path / "parts256", spec, 256), tmp_path / "fits.tif").bigtiff
    monkeypatch.setattr(cog, "CLASSIC_LIMIT", size - 1)
    assert assemble(PackStore(tmp_path / "parts256", spec, 256), tmp_path / "big.tif").bigtiff
    assert (tmp_path / "big.tif").read_bytes()[:4] == b"II\x2b\x00"
    assert_valid(tmp_path / "big.tif")
    with rasterio.open(tmp_path / "big.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_blocks_lie_as_the_ghost_area_says(tmp_path: Path) -> None:
    spec = output(700, 391, bands=2)
    path = assembled(tmp_path, spec, lights(spec))
    raw = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        places = [
            (offset, count)
            for page in reversed(tiff.pages[:])
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            if count
        ]
    assert places == sorted(places)
    for offset, count in places:
        assert struct.unpack_from("<I", raw, offset - 4) == (count,)
        assert raw[offset + count : offset + count + 4] == raw[offset + count - 4 : offset + count]
    assert places[-1][0] + places[-1][1] + 4 == len(raw)


def test_missing_packs_are_counted(tmp_path: Path) -> None:
    spec = output(300, 391)
    store = fill(PackStore(tmp_path / "parts", spec, 128), lights(spec))
    store.discard((1, 2))
    with pytest.raises(DeepLightError, match=r"^1 of 12 packs are not there yet, the first is \(1, 2\)"):
        assemble(store, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("where", ["index", "block", "rest", "end"])
def test_a_damaged_pack_is_removed_and_redone(tmp_path: Path, where: str) -> None:
    spec = output(300, 391)
    pixels = lights(spec)
    store = fill(PackStore(tmp_path / "parts", spec, 128), pixels)
    assemble(store, tmp_path / "good.tif")
    (tmp_path / "out.tif").write_bytes(b"an older result")
    raw, index = bytearray(store.path((2, 1)).read_bytes()), store.index((2, 1))
    place = {"index": 20, "block": index.start + 99, "rest": index.rest_start + 9, "end": -1}[where]
    raw[place] ^= 16
    store.path((2, 1)).write_bytes(raw)
    with pytest.raises(DamagedPack, match=r"pack 00002_00001.pack is damaged \(.*`resume=True`"):
        assemble(store, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == b"an older result"
    assert store.done() == set(store.keys()) - {(2, 1)}
    store.write((2, 1), part(store, pixels, (2, 1)))
    assemble(store, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "good.tif").read_bytes()


def test_a_flipped_bit_in_the_file_is_noticed_by_readers(tmp_path: Path) -> None:
    spec = output(128, 128)
    path = assembled(tmp_path, spec, lights(spec, holes=False))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with rasterio.open(path) as dataset, pytest.raises(rasterio.errors.RasterioIOError):
        dataset.read()


def test_a_full_disk_leaves_packs_and_no_file(tmp_path: Path) -> None:
    spec = output(300, 391)
    store = fill(PackStore(tmp_path / "parts", spec, 128), lights(spec))
    with pytest.raises(DeepLightError, match=r"^the disk is full while writing .*out\.tif"):
        assemble(store, tmp_path / "out.tif", disk=FullDisk(100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    assert store.done() == set(store.keys())
    assert not [path for path in store.folder.iterdir() if path.suffix != ".pack"]


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = output(300, 391)
    store = fill(PackStore(tmp_path / "parts", spec, 128), lights(spec))
    blocks = copying.placed_blocks
    zeros = lambda *args: ((at, bytes(len(data))) for at, data in blocks(*args))  # noqa: E731
    monkeypatch.setattr(copying, "placed_blocks", zeros)
    with pytest.raises(DeepLightError, match="does not read back"):
        assemble(store, tmp_path / "out.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_a_linked_output_replaces_the_link_not_its_target(tmp_path: Path) -> None:
    spec = output(128, 128)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "256.tif").symlink_to(tmp_path / "precious")
    path = assembled(tmp_path, spec, lights(spec, holes=False))
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not path.is_symlink()


def test_file_and_packs_fit_into_the_space_asked_for(tmp_path: Path) -> None:
    spec = output(700, 391, bands=2)
    bits = np.random.default_rng(9).integers(0, 2**30, (2, 700, 391)).astype(np.int32)
    noise = bits.view(np.float32)  # every float32 from 0 to 2, so that nothing can be compressed
    path = assembled(tmp_path, spec, noise, 128)
    packs = sum(pack.stat().st_size for pack in (tmp_path / "parts128").iterdir())
    assert path.stat().st_size + packs <= required_bytes(spec, 128)[0]


WORKER = """
import sys
from pathlib import Path
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.packs import PackStore
from tests.engine.output.test_packs import lights, output, part
folder = Path(sys.argv[1])
spec = output(700, 600)
pixels = lights(spec)
store = PackStore(folder / "parts", spec, 128)
import rasterio, tifffile  # so that the kills hit the work
print("ready", flush=True)
store.remove_leftovers()
done = store.done()
for key in store.keys():
    if key not in done:
        store.write(key, part(store, pixels, key))
assemble(store, folder / "out.tif")
"""


def run_worker(folder: Path, kill_after: float | None) -> float:
    """Run the worker, killed `kill_after` seconds after its start-up; returns the seconds of work."""
    paths = [str(Path(module_path).resolve()) for module_path in sys.path if module_path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    start = time.perf_counter()
    if kill_after is None:
        assert process.wait(60) == 0
    else:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    process.stdout.close()
    return time.perf_counter() - start


def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    seconds = run_worker(tmp_path / "calm", None)
    expected = (tmp_path / "calm" / "out.tif").read_bytes()
    rng = random.Random(10)
    counts = []
    for _ in range(4):
        run_worker(tmp_path / "killed", rng.uniform(0, 0.6) * seconds)
        counts.append(len(list((tmp_path / "killed" / "parts").glob("*.pack"))))
        if (tmp_path / "killed" / "out.tif").exists():
            assert (tmp_path / "killed" / "out.tif").read_bytes() == expected
    assert counts == sorted(counts) and counts[-1] > 0
    run_worker(tmp_path / "killed", None)
    assert (tmp_path / "killed" / "out.tif").read_bytes() == expected
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["out.tif", "parts"]
