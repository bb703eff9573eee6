"""The stages that CI watches, each with its reference, on small arrays and one thread. Results are checked once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import rasterio
import zstandard
from affine import Affine

from bench.cases import BLOCK, Case, ntl_grid, patch, write_raster
from bench.gate import Pair
from bench.network import channels_last, random_model
from bench.rates import hr_mpix
from bench.traffic import network as traffic_of
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.packs import BandSpec, OutputSpec, PackStore
from deeplight.engine.raster.accel import NATIVE
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.warp import Warper
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from deeplight.engine.runtime.backends import open_backend

SIDE = 1024
BANDS = 7
TILE = 36


def pairs(folder: Path) -> list[Pair]:
    """Decode, normalise, align, model, compress, assemble, train. Raises DeepLightError without the native module."""
    if NATIVE is None:
        raise DeepLightError(
            "the native module is not built, so its speed cannot be judged: pip install -e ."
        )
    raw = (patch(BANDS, seed=2)[:, :SIDE, :SIDE] * 3000 + 300).astype(np.uint16)
    return [
        _decode(folder, raw),
        _normalise(raw),
        _align(raw),
        _model(),
        _compress(folder),
        _assemble(folder),
        _train(),
    ]


def _decode(folder: Path, raw: np.ndarray) -> Pair:
    """Reading a window with rasterio, compared with decoding the same blocks by zstandard alone."""
    grid = ntl_grid(Case(SIDE // SCALE, SIDE // SCALE)).finer()
    path = write_raster(folder / "decode.tif", grid, raw, "zstd")
    blocks = (
        raw.reshape(BANDS, SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
        .swapaxes(2, 3)
        .reshape(-1, BLOCK, BLOCK)
    )
    frames = [zstandard.ZstdCompressor(level=1).compress(block.tobytes()) for block in blocks]
    decoder = zstandard.ZstdDecompressor()

    def by_rasterio() -> np.ndarray:
        with rasterio.open(path) as d:
            pixels: np.ndarray = d.read()
        return pixels

    assert (by_rasterio() == raw).all()
    return Pair("decode", by_rasterio, lambda: [decoder.decompress(frame) for frame in frames])


def _normalise(raw: np.ndarray) -> Pair:
    """The conversion to physical units, compared with one NumPy product of as many values."""
    scale, offset = np.full(BANDS, 1e-4), np.zeros(BANDS)
    out = np.empty(raw.shape, np.float32)

    def plain() -> np.ndarray:
        return np.multiply(raw, np.float32(1e-4), out=out, dtype=np.float32)

    np.testing.assert_allclose(to_physical(raw, scale, offset, [None] * BANDS)[0], plain(), rtol=1e-6)
    return Pair("normalise", lambda: to_physical(raw, scale, offset, [None] * BANDS), plain)


def _align(raw: np.ndarray) -> Pair:
    """Resampling seven bands from a rotated grid to the HR grid, compared with as many sums of four shifted arrays."""
    hr = ntl_grid(Case(SIDE // SCALE, SIDE // SCALE)).finer()
    aux = Grid(hr.crs, hr.transform @ Affine.translation(1.3, 2.6), SIDE, SIDE)
    values, mask = raw.astype(np.float32), np.ones((SIDE, SIDE), np.uint8)
    window = Window(0, 0, SIDE, SIDE)
    out = np.empty((BANDS, SIDE - 1, SIDE - 1), np.float32)

    def resample() -> np.ndarray:
        warper = Warper(hr, aux)
        source = warper.source_window(window)
        assert source is not None
        rows, cols = source.slices_in(window)
        return warper.resample(values[:, rows, cols], mask[rows, cols], source, window)[0]

    def plain() -> np.ndarray:
        np.add(values[:, :-1, :-1], values[:, 1:, 1:], out=out)
        np.add(out, values[:, 1:, :-1], out=out)
        return np.add(out, values[:, :-1, 1:], out=out)

    v = values[0, 7:9, 8:10]  # HR pixel (10, 10) lies at row 7.4, column 8.7 of aux
    want = 0.6 * (0.3 * v[0, 0] + 0.7 * v[0, 1]) + 0.4 * (0.3 * v[1, 0] + 0.7 * v[1, 1])
    np.testing.assert_allclose(resample()[0, 10, 10], want, rtol=1e-3)
    return Pair("align", resample, plain)


def _model() -> Pair:
    """A tile in ONNX Runtime, compared with as many FLOPs of one convolution of the network's kind in PyTorch."""
    import torch

    backend = open_backend("onnxruntime", load_artifact(DEFAULT_MODEL), threads=1)
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, TILE, TILE), dtype=np.float32) for s in INPUTS}
    flops = traffic_of("tiny")["network"].flops * hr_mpix(1, TILE) * 1e6
    channels, side = 32, 4 * TILE
    layer = channels_last(torch.nn.Conv2d(channels, channels, 3, padding=1))
    image = torch.rand(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    times = round(flops / (2 * 9 * channels**2 * side**2))

    def convolutions() -> None:
        with torch.no_grad():
            for _ in range(times):
                layer(image)

    got = backend.run(inputs)["ntl_hr"]
    assert times > 0 and np.isfinite(got).all() and got.min() >= 0
    return Pair("model", lambda: backend.run(inputs), convolutions)


def _store(folder: Path, packs: int) -> PackStore:
    grid = ntl_grid(Case(packs * SIDE // SCALE, packs * SIDE // SCALE)).finer()
    return PackStore(folder, OutputSpec(grid, (BandSpec("ntl", ""),)), SIDE)


def _lights() -> np.ndarray:
    return np.round(np.random.default_rng(1).gamma(0.5, 20, (1, SIDE, SIDE)), 1).astype(np.float32)


def _compress(folder: Path) -> Pair:
    """Writing a pack, compared with compressing its pixels by zstandard alone."""
    pixels, store = _lights(), _store(folder / "compress", 1)
    compressor = zstandard.ZstdCompressor(level=1)
    tiles = (
        pixels.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
    )
    blocks = [tile.tobytes() for tile in tiles]
    return Pair(
        "compress",
        lambda: store.write((0, 0), pixels),
        lambda: [compressor.compress(block) for block in blocks],
    )


def _assemble(folder: Path) -> Pair:
    """Assembling 16 packs into a COG, compared with copying their files and compressing one of them."""
    pixels, store = _lights(), _store(folder / "assemble", 4)
    keys = list(store.keys())
    for key in keys:
        store.write(key, pixels)
    out = folder / "assembled.tif"
    compressor = zstandard.ZstdCompressor(level=1)
    raw = pixels.tobytes()

    def plain() -> None:
        for key in keys:
            shutil.copyfile(store.path(key), folder / "copy")
        compressor.compress(raw)

    assemble(store, out)
    with rasterio.open(out) as d:
        np.testing.assert_array_equal(d.read(1)[:SIDE, :SIDE], pixels[0])
    return Pair("assemble", lambda: assemble(store, out), plain)


def _train() -> Pair:
    """Forward and backward pass of the network, compared with the forward pass alone."""
    import torch

    model = channels_last(random_model())
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.rand(input_shape(s, 1, TILE // 2, TILE // 2), generator=rng) for s in INPUTS]

    def step() -> None:
        model.zero_grad()
        model(*inputs)[0].sum().backward()

    def forward() -> None:
        with torch.no_grad():
            model(*inputs)

    return Pair("train", step, forward)
