"""`deeplight-infer` over two strips made here, and what the parts of the way can do: decoder, link, device."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.gpu.export import run
from bench.gpu.stage import Rows, StageSettings, attempt
from deeplight.engine.network.compiled import CACHES

NEEDED = ("rasterio", "affine", "cligj", "click", "tifffile", "PIL", "zstandard", "safetensors")
FRESH = 0.6
"""Part of the stage's time for the process that compiles everything; all others find it in the caches."""


def measure(settings: StageSettings) -> None:
    """Rows of engine.json."""
    rows = Rows(settings, "engine")
    if rows.lack(NEEDED):
        return
    from bench.gpu import device_rates
    from bench.gpu.scenes import SCENES, make

    for name in SCENES:
        if settings.late:
            rows.add(left_out=f"no time for scene {name} and what follows")
            return
        folder = settings.scratch / name
        begin = time.perf_counter()
        ratio = make(name, settings.strip, folder)
        rows.add(
            what="scene", scene=name, strip=settings.strip, ratio=ratio, seconds=time.perf_counter() - begin
        )
        attempt(rows, {"what": "decode", "scene": name}, lambda f=folder: device_rates.decode(f, settings))
        for caches in ("empty caches", "filled caches") if name == SCENES[0] else ("filled caches",):
            if settings.late:
                rows.add(left_out=f"no time for {name} with {caches} and what follows")
                return
            what = {"what": "deeplight-infer", "scene": name, "caches": caches}
            share = FRESH if caches == "empty caches" else 1.0
            attempt(rows, what, lambda f=folder, s=share: infer(f, settings, s * settings.left))
    for what, measured in (
        ("link", device_rates.link),
        ("device", device_rates.device),
        ("further date", lambda settings: further_date(settings.scratch / name, settings)),
    ):
        if settings.late:
            rows.add(left_out=f"no time for {what} and what follows")
            return
        attempt(rows, {"what": what}, lambda measured=measured: measured(settings))


def infer(folder: Path, settings: StageSettings, seconds: float) -> dict[str, Any]:
    """Seconds of the process and to its first finished tile, and of its report the rate, seconds of each part and how
    busy they were. seconds: after which it is ended."""
    report, events = folder / "run.json", folder / "events.jsonl"
    command = _command(folder, settings, folder / "out.tif", folder / "ntl.tif")
    command += ["--report", str(report), "--events", str(events)]
    begin = time.time()
    found = run(command, seconds, environment=_own_caches(settings))
    if found["exit"] == 0:
        said = json.loads(report.read_text())
        rate = 64 * settings.strip[0] * settings.strip[1] / 1e6 / found["seconds"]
        found["hr_mpix_per_s_of_process"] = round(rate, 2)
        found |= {key: said[key] for key in ("hr_mpix_per_s", "load", "bottleneck", "device")}
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
    found = run(command, settings.left, environment=_own_caches(settings))
    if found["exit"] == 0:
        dates = [date["run"] for date in json.loads((folder / "lights" / "run.json").read_text())["dates"]]
        found["date_s"] = [round(date["seconds"]["total"], 2) for date in dates]
        found["second_over_first"] = round(dates[1]["seconds"]["total"] / dates[0]["seconds"]["total"], 3)
        found["compute_s"] = [date["seconds"].get("compute") for date in dates]
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
    on_gpu = ["--backend", "torch", "--device", "cuda", "--precision", "fp16"]
    return command + (on_gpu if settings.device == "cuda" else ["--device", "cpu"])


def _own_caches(settings: StageSettings) -> dict[str, str]:
    """The environment with caches of programs that the stage's first process finds empty."""
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    return kept | {"XDG_CACHE_HOME": str(settings.scratch.resolve() / "caches")}
