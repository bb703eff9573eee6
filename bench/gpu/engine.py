"""`deeplight-infer` over two strips made here, and what the parts of the way can do: decoder, link, device."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import device_rates
from bench.gpu.export import run
from bench.gpu.stage import Rows, StageSettings, TileCut, attempt
from deeplight.engine.network.compiled import CACHES

NEEDED = {
    "rasterio": "rasterio",
    "affine": "affine",
    "attr": "attrs",
    "click": "click",
    "tifffile": "tifffile",
    "zstandard": "zstandard",
    "safetensors": "safetensors",
}
"""Module → the package that has it: what the engine imports with PyTorch, and what rasterio and affine import."""
FEW = "few tiles"
"""The scene, beside SCENES, of processes whose rate says nothing."""
FIRST = 0.6
"""Part of the time that is left which the first processes may take, so that one that hangs leaves time for others."""
TILE, TILES_A_READER, MOST_READERS = 256, 8, 32
BYTES_A_PIXEL = 64
"""Of the disk for an HR pixel: layers of both scenes take 22, outputs and their parts less than 10; as much is left."""


def usual_strip(cpus: int, free_bytes: float) -> tuple[int, int]:
    """LR pixels of the scenes, rows and columns: eight of the engine's tiles for each CPU, since each reads, and the
    first and last tiles of a reader are not what it does in between. Fewer where the disk has less room."""
    columns = min(cpus, MOST_READERS, int(free_bytes / (BYTES_A_PIXEL * TILES_A_READER * (8 * TILE) ** 2)))
    return TILES_A_READER * TILE, TILE * max(1, columns)


def measure(settings: StageSettings) -> None:
    """Rows of engine.json."""
    rows = Rows(settings, "engine")
    if rows.lack(NEEDED, own="bench.gpu.scenes"):
        return
    for name, step in EngineSteps(rows, settings).all():
        if settings.late:
            rows.add(left_out=f"no time for {name} and what follows")
            return
        step()


class EngineSteps:
    """What the stage does, in the order of importance; later steps are compared with what earlier ones found.

    First what targets ask for: the rates while tiles stream, beside decoding alone. One process before them fills the
    caches of compiled programs, as far as earlier stages have not, so that the others need not compile; four tiles are
    enough for that. Should its time end, what it has compiled is kept and the next one compiles the rest, before its
    first tile. What a process takes that finds the caches empty comes last: it compiles everything again and decides
    nothing.
    """

    def __init__(self, rows: Rows, settings: StageSettings) -> None:
        self._rows, self._settings = rows, settings
        few = tuple(min(side, 2 * TILE) for side in settings.strip)
        self._few = replace(settings, strip=few)
        self._cut = TileCut(settings.side)
        self._ran: dict[str, Any] = {}

    def all(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """The steps by name."""
        from bench.gpu.scenes import SCENES

        yield "filling the caches", partial(self._fill, SCENES[0])
        for name in SCENES:
            yield f"scene {name}", partial(self._make, name)
            yield f"{name} with filled caches", partial(self._run, name)
            yield f"decoding {name}", partial(self._decode, name)
        yield "device", partial(self._device, name)
        yield "link", partial(self._measure, "link", lambda: device_rates.link(self._settings, self._cut))
        yield "further date", partial(self._measure, "further date", lambda: self._further_date(name))
        yield "empty caches", self._empty

    def _folder(self, scene: str) -> Path:
        return self._settings.scratch / scene

    def _measure(self, what: str, measured: Callable[[], dict[str, Any]], **more: object) -> dict[str, Any]:
        return attempt(self._rows, {"what": what, **more}, measured)

    def _make(self, name: str) -> None:
        from bench.gpu.scenes import make

        def made() -> dict[str, Any]:
            begin = time.perf_counter()
            ratio = make(name, self._settings.strip, self._folder(name))
            return {"ratio": ratio, "seconds": time.perf_counter() - begin}

        self._measure("scene", made, scene=name, strip=self._settings.strip)

    def _fill(self, name: str) -> None:
        from bench.gpu.scenes import make

        def filled() -> dict[str, Any]:
            make(name, self._few.strip, self._folder(FEW))
            return infer(self._folder(FEW), self._few, FIRST * self._settings.left)

        self._measure("filling the caches", filled, scene=name, strip=self._few.strip)

    def _run(self, name: str) -> None:
        def ran() -> dict[str, Any]:
            return infer(self._folder(name), self._settings, FIRST * self._settings.left)

        found = self._measure("deeplight-infer", ran, scene=name, caches="filled caches")
        # decoding and the device are measured in the tiles of the run that they are compared with
        self._ran = found if "hr_mpix_per_s_of_stream" in found else {}
        if self._ran.get("core"):
            self._cut = TileCut(self._ran["core"], self._ran["halo"])

    def _decode(self, name: str) -> None:
        decoded = self._measure(
            "decode", lambda: device_rates.decode(self._folder(name), self._cut), scene=name
        )
        if self._ran and decoded:
            self._rows.add(what="ratio", scene=name, **ratios(self._ran, decoded))

    def _device(self, name: str) -> None:
        """The device path without decoding, over the network alone and over a tile alone, all with their halos."""
        network = self._measure("network alone", lambda: device_rates.network(self._settings, self._cut))
        if self._settings.device != "cuda":
            return
        from bench.gpu import device_path

        path = self._measure(
            "device path", lambda: device_path.stream(self._folder(name), self._settings, self._cut.core)
        )
        if path and network:
            rate, tile = path["hr_mpix_per_s_with_halo"], path["hr_mpix_per_s_of_a_tile_alone"]
            over = {"network": rate / network["hr_mpix_per_s_with_halo"], "a_tile_alone": rate / tile}
            found = {f"device_path_over_{what}": round(ratio, 3) for what, ratio in over.items()}
            self._rows.add(what="ratio", scene="device", **found)

    def _further_date(self, name: str) -> dict[str, Any]:
        return further_date(self._folder(name), self._settings)

    def _empty(self) -> None:
        def ran() -> dict[str, Any]:
            return infer(self._folder(FEW), self._few, self._settings.left, empty_caches(self._settings))

        self._measure("deeplight-infer", ran, scene=FEW, caches="empty caches")


def alone_rate(ran: dict[str, Any]) -> float | None:
    """HR Mpix/s, halo included, that a tile alone took on the device before the run; None on a CPU."""
    return (ran.get("device") or {}).get("alone_hr_mpix_per_s")


def ratios(ran: dict[str, Any], decoded: dict[str, Any]) -> dict[str, float]:
    """The rate while tiles streamed over that of decoding alone and, with the halo counted, of the device alone."""
    stream = ran["hr_mpix_per_s_of_stream"]
    found = {
        f"stream_over_decoding_{way}": stream / decoded[f"hr_mpix_per_s_{way}"]
        for way in ("of_all_threads", "of_each_block_once")
    }
    if alone := alone_rate(ran):
        found["stream_with_halo_over_alone"] = stream / ran["core_share"] / alone
    return {name: round(ratio, 3) for name, ratio in found.items()}


def infer(
    folder: Path, settings: StageSettings, seconds: float, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Seconds of the process and to its first finished tile, and of its report the seconds of each part and how busy
    they were. Three rates: of the whole process; as its report has it, without imports; and while tiles streamed, which
    is what a long run comes to. seconds: after which it is ended."""
    report, events = folder / "run.json", folder / "events.jsonl"
    command = _command(folder, settings, folder / "out.tif", folder / "ntl.tif")
    command += ["--report", str(report), "--events", str(events)]
    begin = time.time()
    found = run(command, seconds, environment)
    if found.get("exit") == 0:
        said = json.loads(report.read_text())
        if uncompiled := said["backend"]["uncompiled"]:  # whose rates would stand for what was to be measured
            return found | {"error": f"uncompiled: {uncompiled}"}
        pixels = 64 * settings.strip[0] * settings.strip[1] / 1e6
        found["hr_mpix_per_s_of_process"] = round(pixels / found["seconds"], 2)
        found["hr_mpix_per_s_of_stream"] = round(pixels / max(said["seconds"]["stream"], 1e-3), 2)
        found |= {key: said[key] for key in ("hr_mpix_per_s", "load", "bottleneck", "device")}
        found |= {key: said["tiles"][key] for key in ("core", "halo", "core_share")}
        found["seconds_by_part"] = said["seconds"]
        told = (json.loads(line) for line in events.read_text().splitlines())
        first = next((datetime.fromisoformat(e["time"]) for e in told if e["event"] == "tile"), None)
        found["first_tile_s"] = None if first is None else round(first.timestamp() - begin, 2)
    return found


def further_date(folder: Path, settings: StageSettings) -> dict[str, Any]:
    """Two dates of the same lights as a stack: seconds and bytes of each, with what the second does not do again.
    compute_s: in which a device computed tiles."""
    for month in (1, 2):
        (folder / f"dated-2020-0{month}.tif").hardlink_to(folder / "ntl.tif")
    command = _command(folder, settings, folder / "lights", folder / "dated-*.tif")
    found = run(command, settings.left)
    if found.get("exit") == 0:
        dates = [date["run"] for date in json.loads((folder / "lights" / "run.json").read_text())["dates"]]
        if uncompiled := dates[0]["backend"]["uncompiled"]:
            return found | {"error": f"uncompiled: {uncompiled}"}
        found["date_s"] = [round(date["seconds"]["total"], 2) for date in dates]
        found["second_over_first"] = round(dates[1]["seconds"]["total"] / dates[0]["seconds"]["total"], 3)
        busy = "infer_busy" if dates[0]["device"] is None else "compute_busy"
        found["compute_s"] = [date["seconds"][busy] for date in dates]
        found["bytes_read"] = [date["bytes_read"] for date in dates]
        found["bytes_up"] = [(date["device"] or {}).get("bytes_up") for date in dates]
    return found


def _command(folder: Path, settings: StageSettings, out: Path, ntl: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "deeplight.engine.cli",
        "--out",
        str(out),
        "--overwrite",
        "--ntl",
        str(ntl),
    ]
    for layer in ("dmo", "dem"):
        command += [f"--{layer}", str(folder / f"{layer}.tif")]
    command += ["--tiles", "auto", "--dtype", "uint16"]
    on_gpu = ["--backend", "torch", "--device", "cuda", "--precision", settings.dtypes[0]]
    return command + (on_gpu if settings.device == "cuda" else ["--device", "cpu"])


def empty_caches(settings: StageSettings) -> dict[str, str]:
    """The environment with caches of programs in which there is nothing yet."""
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    return kept | {"XDG_CACHE_HOME": str(settings.scratch.resolve() / "caches")}
