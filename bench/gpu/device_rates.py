"""The rates of the parts of the way to the device and back, each alone, in HR Mpix/s of the cores of tiles and in GB/s.

The path is the shortest there is: raw pixels as they are stored → pinned memory → device → the network in a CUDA
graph → the core as steps of uint16, and the first overview (`kernels.finish`) → pinned memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.gpu.network import built
from bench.gpu.stage import StageSettings
from deeplight import kernels
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.network.compiled import compiled
from deeplight.kernels.dispatch import never_interpreted
from deeplight.kernels.float32 import exact_float32

BANDS = 7
TILES = 60


@dataclass(frozen=True)
class TileCut:
    """How tiles are cut from a scene, in LR pixels. The halo is that of `tiny`."""

    core: int
    halo: int = 20

    @property
    def side(self) -> int:
        """Of what is read and computed."""
        return self.core + 2 * self.halo

    @property
    def computed_share(self) -> float:
        """How many pixels are computed for each of the output."""
        return (self.side / self.core) ** 2


def decode(folder: Path, cut: TileCut) -> dict[str, float]:
    """HR Mpix/s of the output at which all layers of its tiles are read: with their halos by one thread and by one a
    core, which decode blocks that two tiles need for each of them; and without halos, so that no block is decoded twice
    where cores are made of whole ones."""
    import rasterio

    with rasterio.open(folder / "ntl.tif") as ntl:
        height, width = ntl.shape
    threads = available_cpus()
    cores = list(split(Window(0, 0, height, width), cut.core))
    with_halo = [_inside(core.grown(cut.halo), height, width) for core in cores]
    found: dict[str, float] = {"threads": threads}
    for name, count, windows in (
        ("of_one_thread", 1, with_halo[:3]),
        ("of_all_threads", threads, with_halo),
        ("of_each_block_once", threads, cores),
    ):
        waiting: SimpleQueue[Window] = SimpleQueue()
        for window in windows:
            waiting.put(window)
        seconds = _seconds(lambda n=count, queue=waiting: _in_threads(n, lambda: _read(folder, queue)))
        pixels = sum(core.height * core.width for core in cores[: len(windows)])
        found[f"hr_mpix_per_s_{name}"] = pixels * SCALE**2 / 1e6 / seconds
    return found


def _inside(window: Window, height: int, width: int) -> Window:
    """A window moved into the scene, and cut where that is smaller."""
    h, w = min(window.height, height), min(window.width, width)
    return Window(min(max(window.row, 0), height - h), min(max(window.col, 0), width - w), h, w)


def _read(folder: Path, waiting: SimpleQueue[Window]) -> None:
    """Read windows while there are some, into memory that is kept, as the engine's is."""
    import rasterio
    from rasterio.windows import Window as RasterWindow

    kept: dict[tuple[str, Window], NDArray[Any]] = {}
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(rasterio.open(folder / f"{name}.tif", sharing=False))
            for name in ("dmo", "dem", "ntl")
        }
        while True:
            try:
                lr = waiting.get_nowait()
            except Empty:
                return
            for name, file in files.items():
                there = lr if name == "ntl" else lr.scaled(SCALE)
                key = name, Window(0, 0, *there.shape)
                if key not in kept:
                    kept[key] = np.empty((file.count, *there.shape), file.dtypes[0])
                window = RasterWindow(there.col, there.row, there.width, there.height)
                file.read(out=kept[key], window=window)


def _in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return max(time.perf_counter() - begin, 1e-9)


def link(settings: StageSettings, cut: TileCut) -> dict[str, float]:
    """GB/s of a tile's bands to the device and of its result back, through pinned memory; on a CPU, of copies."""
    pixels = SCALE * cut.side
    found = {}
    for name, bands in (("to_device", BANDS), ("from_device", 1)):
        host, there = (torch.zeros(bands, pixels, pixels, dtype=torch.int16) for _ in range(2))
        if settings.device == "cuda":
            host, there = host.pin_memory(), there.cuda()
        source, target = (host, there) if name == "to_device" else (there, host)

        def copies(source: Tensor = source, target: Tensor = target) -> None:
            for _ in range(5):
                target.copy_(source, non_blocking=True)
            _synchronise(settings)

        copies()
        found[f"gb_per_s_{name}"] = 5 * 2 * host.numel() / _seconds(copies) / 1e9
    return found


def _synchronise(settings: StageSettings) -> None:
    if settings.device == "cuda":
        torch.cuda.synchronize()


def device(settings: StageSettings, cut: TileCut, tiles: int = TILES) -> dict[str, float]:
    """HR Mpix/s of the whole path without decoding, overlapped, and with the halo counted: `tiny` in the first
    precision."""
    network, inputs = built("tiny", settings.dtypes[0], replace(settings, side=cut.side))
    fast = compiled(network, torch.device(settings.device))  # type: ignore[arg-type]
    by_name = dict(zip((spec.name for spec in INPUTS), inputs, strict=True))
    count = tiles if settings.device == "cuda" else 2
    with exact_float32(), torch.inference_mode(), never_interpreted():
        way = _Overlapped(fast, by_name, cut) if settings.device == "cuda" else _InTurn(fast, by_name, cut)
        way.run(4)
        seconds = _seconds(lambda: way.run(count))
    rate = count * (SCALE * cut.core) ** 2 / 1e6 / seconds
    return {"hr_mpix_per_s": rate, "hr_mpix_per_s_with_halo": rate * cut.computed_share}


class _InTurn:
    """Computes tile after tile without streams: the stand-in, and the steps that the overlapped way is made of."""

    def __init__(self, network: Callable[..., Any], inputs: dict[str, Tensor], cut: TileCut) -> None:
        self.network, self.inputs = network, inputs
        pixels = SCALE * cut.side
        self.corner, self.core = cut.halo, SCALE * cut.core
        self.valid = torch.ones(cut.side, cut.side, device=inputs["ntl"].device)
        steps = np.random.default_rng(0).integers(300, 5000, (BANDS, pixels, pixels), dtype=np.int16)
        self.host = torch.from_numpy(steps)
        # steps of 2 bytes, and a quarter as many float32
        self.result = torch.empty(self.core**2 * 3 // 2, dtype=torch.int16)

    def convert(self, raw: Tensor) -> None:
        self.inputs["dmo"][0].copy_(raw.to(torch.float32) * 1e-4)

    def compute(self) -> Tensor:
        radiance: Tensor = self.network(*self.inputs.values())[0]
        return radiance

    def finish(self, radiance: Tensor, result: Tensor) -> None:
        """Make the pixels of the output from a tile."""
        parts = result[: self.core * self.core], result[self.core * self.core :].view(torch.float32)
        kernels.finish(
            radiance[0].float(),
            self.valid,
            parts[0].view(torch.uint16).view(1, self.core, self.core),
            parts[1].view(1, self.core // 2, self.core // 2),
            corner=(self.corner, self.corner),
            scale=0.1,
            nodata=65535,
        )

    def run(self, tiles: int) -> None:
        for _ in range(tiles):
            self.convert(self.host)
            self.finish(self.compute(), self.result)


class _Overlapped(_InTurn):
    """Four tiles in flight on three streams: up, compute, down. The network is a CUDA graph over fixed buffers."""

    SLOTS = 4

    def __init__(self, network: Callable[..., Any], inputs: dict[str, Tensor], cut: TileCut) -> None:
        super().__init__(network, inputs, cut)
        self.up, self.work, self.down = (torch.cuda.Stream() for _ in range(3))
        self.hosts = [self.host.pin_memory() for _ in range(self.SLOTS)]
        self.raws = [self.host.cuda() for _ in range(self.SLOTS)]
        self.backs = [self.result.pin_memory() for _ in range(self.SLOTS)]
        self.quants = [self.result.cuda() for _ in range(self.SLOTS)]
        self.arrived, self.computed, self.left = (
            [torch.cuda.Event() for _ in range(self.SLOTS)] for _ in range(3)
        )
        self.work.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.work):
            for _ in range(3):
                self.compute()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.work):
            self.radiance = self.compute()

    def run(self, tiles: int) -> None:
        for tile in range(tiles):
            k = tile % self.SLOTS
            if tile >= self.SLOTS:
                self.left[k].synchronize()
            with torch.cuda.stream(self.up):
                self.raws[k].copy_(self.hosts[k], non_blocking=True)
                self.arrived[k].record(self.up)
            with torch.cuda.stream(self.work):
                self.work.wait_event(self.arrived[k])
                self.convert(self.raws[k])
                self.graph.replay()
                self.finish(self.radiance, self.quants[k])
                self.computed[k].record(self.work)
            with torch.cuda.stream(self.down):
                self.down.wait_event(self.computed[k])
                self.backs[k].copy_(self.quants[k], non_blocking=True)
                self.left[k].record(self.down)
        torch.cuda.synchronize()
