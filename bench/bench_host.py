"""What the CPU does beside the model: conversion, resampling through the mesh, packs, the finaliser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from deeplight.engine.cog import assemble
from deeplight.engine.convert import to_physical
from deeplight.engine.grid import Grid
from deeplight.engine.packs import BandSpec, OutputSpec, PackStore
from deeplight.engine.tiles import Window
from deeplight.engine.warp import Warper

MESH_OVER_WARPED_VRT = 3.0
SIDE = 2048
HR = Grid(CRS.from_epsg(4326), Affine(15 / 3600 / 8, 0, 5, 0, -15 / 3600 / 8, 47), 4096, 4096)
AUX = Grid(CRS.from_epsg(32631), Affine(60, 0, 640000, 0, -60, 5230000), 5200, 4400)
WINDOW = Window(1000, 900, SIDE, SIDE)
SCALE, OFFSET = np.full(7, 2.75e-5), np.full(7, -0.2)


@pytest.fixture(scope="module")
def landsat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven smooth bands in UTM as uint16, zstd."""
    rows = np.sin(np.arange(AUX.height, dtype=np.float32) / 40)[:, None]
    cols = np.cos(np.arange(AUX.width, dtype=np.float32) / 55)[None]
    noise = np.random.default_rng(0).normal(0, 15, (AUX.height, AUX.width)).astype(np.float32)
    path = tmp_path_factory.mktemp("host") / "landsat.tif"
    header = {"driver": "GTiff", "count": 7, "dtype": "uint16", "crs": AUX.crs, "transform": AUX.transform}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "zstd_level": 1}
    with rasterio.open(
        path, "w", height=AUX.height, width=AUX.width, interleave="band", **header, **tiles
    ) as d:
        for band in range(7):
            d.write((12000 + 3000 * rows * cols + 100 * band + noise).astype(np.uint16), band + 1)
    return path


def raw_pixels(path: Path) -> NDArray[np.uint16]:
    with rasterio.open(path) as d:
        pixels: NDArray[np.uint16] = d.read(window=RasterWindow(0, 0, SIDE, SIDE))
    return pixels


def cpu_s(work: Callable[[], object], rounds: int = 3) -> float:
    """Least CPU seconds of this thread over some rounds, the first one not counted."""
    work()
    took = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        took.append(time.thread_time() - start)
    return min(took)


@pytest.mark.benchmark(group="host")
def test_conversion(benchmark: BenchmarkFixture, landsat: Path) -> None:
    raw = raw_pixels(landsat)
    values, valid = benchmark(to_physical, raw, SCALE, OFFSET, [0.0] * 7)
    np.testing.assert_allclose(values, raw * 2.75e-5 - 0.2, rtol=0, atol=1e-6)
    assert valid.all()
    benchmark.extra_info["hr_mpix_per_s"] = SIDE**2 / 1e6 / benchmark.stats.stats.min


@pytest.mark.benchmark(group="host")
def test_mesh_against_warped_vrt(benchmark: BenchmarkFixture, landsat: Path) -> None:
    """Decode, convert and resample a tile's seven bands, by the mesh and by GDAL's warper at its own tolerance,
    which is the mesh's too: 0.125 px."""
    with rasterio.open(landsat) as dataset:

        def by_mesh() -> NDArray[np.float32]:
            warper = Warper(HR, AUX)
            source = warper.source_window(WINDOW)
            assert source is not None
            raw = dataset.read(window=RasterWindow(source.col, source.row, source.width, source.height))
            values, mask = to_physical(raw, SCALE, OFFSET, [None] * 7)
            return warper.resample(values, mask, source, WINDOW)[0]

        grid = {"crs": HR.crs, "transform": HR.transform, "height": HR.height, "width": HR.width}
        with WarpedVRT(dataset, resampling=Resampling.bilinear, tolerance=0.125, **grid) as vrt:

            def by_vrt() -> NDArray[np.float32]:
                raw = vrt.read(window=RasterWindow(WINDOW.col, WINDOW.row, WINDOW.width, WINDOW.height))
                return to_physical(raw, SCALE, OFFSET, [None] * 7)[0]

            # the warper's own tolerance moves it by up to an eighth of a pixel, 25 DN at the steepest, and it rounds
            assert np.abs(by_mesh() - by_vrt()).max() < 50 * 2.75e-5
            mesh_s, vrt_s = cpu_s(by_mesh), cpu_s(by_vrt, rounds=2)
        benchmark.pedantic(by_mesh, rounds=2)
    benchmark.extra_info.update(
        mesh_hr_mpix_per_s=SIDE**2 / 1e6 / mesh_s,
        vrt_hr_mpix_per_s=SIDE**2 / 1e6 / vrt_s,
        ratio=vrt_s / mesh_s,
    )
    print(json.dumps(benchmark.extra_info, indent=1))
    assert vrt_s / mesh_s >= MESH_OVER_WARPED_VRT


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_packs_and_finaliser(benchmark: BenchmarkFixture, tmp_path: Path, dtype: str) -> None:
    """Sixteen packs of 2048² written, then assembled."""
    size = 4 * SIDE
    encoding = {} if dtype == "float32" else {"dtype": "uint16", "scale": 0.1, "nodata": 65535}
    grid = Grid(HR.crs, HR.transform, size, size)
    store = PackStore(tmp_path / "packs", OutputSpec(grid, (BandSpec("ntl", ""),), **encoding), SIDE)
    lights = np.random.default_rng(1).gamma(0.5, 20, (1, SIDE, SIDE)).astype(np.float32)
    lights = np.round(lights, 1)  # whole noise would not compress at all
    start = time.thread_time()
    for key in store.keys():  # noqa: SIM118
        store.write(key, lights)
    write_s = time.thread_time() - start
    out = tmp_path / "o.tif"
    benchmark.pedantic(assemble, args=(store, out), rounds=2)
    assemble_s = cpu_s(lambda: assemble(store, out), rounds=2)
    with rasterio.open(out) as d:
        got = d.read(1, window=RasterWindow(SIDE, SIDE, SIDE, SIDE)) * d.scales[0]
    # half a step of the encoding
    np.testing.assert_allclose(got, lights[0], rtol=0, atol=0 if dtype == "float32" else 0.0501)
    benchmark.extra_info.update(
        write_hr_mpix_per_s=size**2 / 1e6 / write_s,
        assemble_hr_mpix_per_s=size**2 / 1e6 / benchmark.stats.stats.min,
        assemble_hr_mpix_per_cpu_s=size**2 / 1e6 / assemble_s,
        bytes_per_pixel=out.stat().st_size / size**2,
    )
    print(json.dumps(benchmark.extra_info, indent=1))
