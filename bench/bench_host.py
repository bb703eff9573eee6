"""The work of the CPU beside the model: decode, normalise, align, compress, assemble. One thread each, as in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from bench.cases import BLOCK, CASES, ntl_grid, write_case
from bench.conftest import Measure
from bench.rates import Work
from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.windows import Window
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.packs import BandSpec, OutputSpec, PackStore
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.raster.warp import Warper

SIDE = 2048
MPIX = SIDE**2 / 1e6
HR = ntl_grid(CASES["host"]).finer()
WINDOW = Window(200, 200, SIDE, SIDE)
BANDS = 7
SCALE, OFFSET, NODATA = np.full(BANDS, 1e-4), np.zeros(BANDS), [0.0] * BANDS
CODECS = ("none", "zstd", "lzw", "deflate")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, rasters: SceneOptions) -> Callable[[str], str]:
    """The DMO file in a codec, which is written when it is first needed."""
    written = {"zstd": str(rasters.dmo)}

    def get(codec: str) -> str:
        if codec not in written:
            folder = tmp_path_factory.mktemp(codec)
            written[codec] = str(write_case(folder, CASES["host"], codec, layers=("dmo",)).dmo)
        return written[codec]

    return get


def read(path: str, window: Window) -> NDArray[np.uint16]:
    """Read all bands of a window. The file is opened anew, so that no block is decoded already."""
    with rasterio.open(path) as d:
        pixels: NDArray[np.uint16] = d.read(
            window=RasterWindow(window.col, window.row, window.width, window.height)
        )
    return pixels


@pytest.fixture(scope="session")
def raw(files: Callable[[str], str]) -> NDArray[np.uint16]:
    """A window of the DMO with the numbers that the file stores."""
    return read(files("none"), Window(0, 0, SIDE, SIDE))


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("codec", CODECS)
def test_decode(measure: Measure, files: Callable[[str], str], raw: NDArray[np.uint16], codec: str) -> None:
    path = files(codec)

    def check(got: NDArray[np.uint16]) -> None:
        np.testing.assert_array_equal(got, raw)

    work = Work("decode", codec, MPIX, bytes=raw.nbytes, limit="decode_one")
    window = Window(0, 0, SIDE, SIDE)
    stored = Path(path).stat().st_size
    measure(lambda: read(path, window), check, work, rounds=2, file_bytes=stored)


@pytest.mark.benchmark(group="host")
def test_normalise(measure: Measure, raw: NDArray[np.uint16]) -> None:
    def check(got: tuple[Floats, NDArray[np.uint8]]) -> None:
        np.testing.assert_allclose(got[0], raw * 1e-4, rtol=0, atol=1e-6)
        assert got[1].all()

    moved = raw.nbytes + 2 * raw.nbytes + raw.nbytes / (2 * BANDS)
    work = Work("normalise", "uint16 → float32", MPIX, bytes=moved, limit="copy_one")
    measure(lambda: to_physical(raw, SCALE, OFFSET, NODATA), check, work)


@pytest.mark.benchmark(group="host")
def test_align(measure: Measure, rasters: SceneOptions) -> None:
    """Resampling of seven bands from Mercator to the HR grid, from decoded pixels in physical units."""
    aux = grid_of(str(rasters.dmo))
    warper = Warper(HR, aux)
    source = warper.source_window(WINDOW)
    assert source is not None
    values, mask = to_physical(read(str(rasters.dmo), source), SCALE, OFFSET, NODATA)
    want = by_vrt(str(rasters.dmo))

    def check(got: tuple[Floats, NDArray[np.uint8]]) -> None:
        assert got[1].all()
        # The mesh may be wrong by an eighth of a pixel, and GDAL rounds to whole numbers; steep noise enlarges both.
        # GDAL computes exact places here.
        assert np.abs(got[0] - want).mean() < 0.02 * want.std()

    moved = float(values.nbytes + mask.nbytes + want.nbytes)
    work = Work("align", "mesh, bilinear", MPIX, bytes=moved, limit="copy_one")
    measure(lambda: Warper(HR, aux).resample(values, mask, source, WINDOW), check, work, rounds=2)


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("variant", ["mesh", "WarpedVRT"])
def test_read_a_tile(measure: Measure, rasters: SceneOptions, variant: str) -> None:
    """Decode, normalise and align a tile's seven bands, by the mesh and by GDAL's warper at the mesh's tolerance."""
    path = str(rasters.dmo)
    aux = grid_of(path)

    def by_mesh() -> Floats:
        warper = Warper(HR, aux)
        source = warper.source_window(WINDOW)
        assert source is not None
        values, mask = to_physical(read(path, source), SCALE, OFFSET, NODATA)
        return warper.resample(values, mask, source, WINDOW)[0]

    def check(got: Floats) -> None:
        want = by_vrt(path)
        assert (
            np.abs(got - want).mean() < 0.1 * want.std()
        )  # WarpedVRT's tolerance of 0.125 px on steep noise

    calls: dict[str, Callable[[], Any]] = {"mesh": by_mesh, "WarpedVRT": lambda: by_vrt(path, 0.125)}
    measure(calls[variant], check, Work("read", variant, MPIX, bytes=BANDS * 4 * SIDE**2), rounds=2)


def grid_of(path: str) -> Grid:
    """The grid of a file."""
    with rasterio.open(path) as d:
        return Grid(d.crs, d.transform, d.height, d.width)


def by_vrt(path: str, tolerance: float = 0.001) -> Floats:
    """The window in physical units, resampled by GDAL's warper. tolerance: error of places in pixels."""
    grid = {"crs": HR.crs, "transform": HR.transform, "height": HR.height, "width": HR.width}
    at = RasterWindow(WINDOW.col, WINDOW.row, WINDOW.width, WINDOW.height)
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(dataset, resampling=Resampling.bilinear, tolerance=tolerance, **grid) as vrt,
    ):
        return to_physical(vrt.read(window=at), SCALE, OFFSET, [None] * BANDS)[0]


def lights() -> Floats:
    """Pixels (1, SIDE, SIDE), rounded because noise in all digits would not compress at all."""
    values = np.random.default_rng(1).gamma(0.5, 20, (1, SIDE, SIDE))
    return np.round(values, 1).astype(np.float32)


def store_of(folder: Path, dtype: str, packs: int) -> PackStore:
    """Return a store for an output of packs × packs packs of SIDE² pixels."""
    encoding: dict[str, Any] = (
        {} if dtype == "float32" else {"dtype": "uint16", "scale": 0.1, "nodata": 65535}
    )
    grid = Grid(HR.crs, HR.transform, packs * SIDE, packs * SIDE)
    return PackStore(folder, OutputSpec(grid, (BandSpec("ntl", ""),), block=BLOCK, **encoding), SIDE)


def stored_alike(path: Path, want: Floats, dtype: str) -> None:
    """Check that the first pack of a finished file holds `want`, within half a step of its encoding."""
    with rasterio.open(path) as d:
        got = d.read(1, window=RasterWindow(0, 0, SIDE, SIDE)) * d.scales[0]
    np.testing.assert_allclose(got, want[0], rtol=0, atol=0 if dtype == "float32" else 0.0501)


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_compress(measure: Measure, tmp_path: Path, dtype: str) -> None:
    """A pack whose blocks and overviews are encoded, written and synced."""
    pixels = lights()
    store = store_of(tmp_path / "packs", dtype, 1)

    def check(_: None) -> None:
        assemble(store, tmp_path / "o.tif")
        stored_alike(tmp_path / "o.tif", pixels, dtype)

    work = Work("compress", f"{dtype}, zstd", MPIX, bytes=pixels.nbytes, limit="copy_one")
    measure(lambda: store.write((0, 0), pixels), check, work)


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_assemble(measure: Measure, benchmark: BenchmarkFixture, tmp_path: Path, dtype: str) -> None:
    """Assembly of four packs of 2048² pixels into one Cloud-Optimized GeoTIFF."""
    pixels = lights()
    store = store_of(tmp_path / "packs", dtype, 2)
    for key in store.keys():  # noqa: SIM118
        store.write(key, pixels)
    out = tmp_path / "o.tif"
    assemble(store, out)
    size = out.stat().st_size
    work = Work("assemble", f"{dtype}, zstd", 4 * MPIX, bytes=2 * size, limit="copy_one")
    measure(lambda: assemble(store, out), lambda _: stored_alike(out, pixels, dtype), work, rounds=2)
    benchmark.extra_info["file_bytes_per_hr_px"] = size / (4 * SIDE**2)
    print(json.dumps(benchmark.extra_info, indent=1))
