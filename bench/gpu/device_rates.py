"""The rates of the parts of the way to the device and back, each alone, in HR Mpix/s and in GB/s."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.gpu.network import built, in_parts
from bench.gpu.stage import StageSettings, TileCut, milliseconds
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.kernels.dispatch import never_interpreted
from deeplight.kernels.float32 import exact_float32

BANDS = 7


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


def network(settings: StageSettings, cut: TileCut) -> dict[str, float]:
    """HR Mpix/s, halo included, of `tiny` alone on tiles of this cut, in the first precision and a CUDA graph, on
    layers that lie on the device as it reads them."""
    with exact_float32(), torch.inference_mode(), never_interpreted():
        tile = in_parts(*built("tiny", settings.dtypes[0], replace(settings, side=cut.side)))
        ms = milliseconds(tile, settings.device)
    return {"ms": ms, "hr_mpix_per_s_with_halo": (SCALE * cut.side) ** 2 / ms * 1e-3}
