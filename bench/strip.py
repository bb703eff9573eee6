"""python -m bench.strip runs over a strip of a synthetic country and tells whether memory and rate stay constant.

`deeplight-data synth` writes the strip into --folder (kept there for the next time) and `deeplight-infer` runs over
it in a process of its own. The event stream says when each tile was done, and /proc how large the process was then.
It prints both for each tenth of the pixels, the judgement, and the time that 2.5 billion HR pixels would take at this
rate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine_facts
from deeplight.engine.core.spec import SCALE
from deeplight.engine.runtime.artifact import DEFAULT_MODEL

COUNTRY_PIXELS = 2.5e9
"""HR pixels of the land of China at 62.5 m."""
TENTHS = 10
LEAST_TILES = 4 * TENTHS
"""The fewest tiles for a judgement; with fewer, one tile more or less in a tenth would decide the rate."""
RESIDENT_RATIO = 1.05
"""Allowed ratio of the largest size in the second half to that in the first half. By then queues, packs and the block
cache are full; the allocators of ONNX Runtime and GDAL still change the size by 5 %."""
DRIFT = 0.1
"""Allowed change of the rate along the run, divided by its mean: as much as other work on the machine causes."""
_SAMPLE_S = 0.2


@dataclass(frozen=True)
class Strip:
    """Rows from the middle of a country with sides of `country` LR pixels, across its width. None is empty there."""

    country: int = 8192
    rows: int = 256
    seed: int = 7

    @property
    def window(self) -> str:
        """The text for deeplight-data synth --window."""
        return f"{self.country // 2},0,{self.rows}x{self.country}"


def make_strip(strip: Strip, folder: Path) -> Path:
    """The folder with the rasters of the strip, which are made if they are not there yet."""
    out = folder / f"strip-{strip.seed}-{strip.country}-{strip.rows}"
    if not (out / "dem.tif").exists():
        command = [
            sys.executable,
            "-m",
            "deeplight.train.data_cli",
            "synth",
            "--out",
            str(out),
            "--overwrite",
        ]
        command += ["--lr-size", str(strip.country), "--window", strip.window, "--seed", str(strip.seed)]
        subprocess.run(command, check=True)
    return out


def run_strip(rasters: Path, folder: Path, model: str = DEFAULT_MODEL, tiles: str = "auto") -> dict[str, Any]:
    """Run deeplight-infer over the rasters. Returns what it took in each tenth, and its own report."""
    events, report = folder / "strip.jsonl", folder / "strip.json"
    command = [
        sys.executable,
        "-m",
        "deeplight.engine.cli",
        "--out",
        str(folder / "strip.tif"),
        "--overwrite",
    ]
    for layer in ("ntl", "dmo", "dem"):
        command += [f"--{layer}", str(rasters / f"{layer}.tif")]
    command += ["--model", model, "--tiles", tiles, "--events", str(events), "--report", str(report)]
    sizes: list[tuple[float, int]] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            sizes.append((time.time(), resident_bytes(run.pid)))
            time.sleep(_SAMPLE_S)
    if run.returncode:
        raise SystemExit(run.returncode)
    said = [json.loads(line) for line in events.read_text().splitlines()]
    parts = tenths(said, sizes)
    rate = sum(p["hr_mpix"] for p in parts[1:]) / sum(p["seconds"] for p in parts[1:])
    return {
        "tiles": sum(e["event"] == "tile" for e in said),
        "tenths": parts,
        "steady_hr_mpix_per_s": round(rate, 4),
        "hours_for_2.5_gpix": round(COUNTRY_PIXELS / 1e6 / rate / 3600, 3),
        "report": json.loads(report.read_text()),
        "machine": machine_facts(),
    }


def resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process now; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def tenths(said: list[dict[str, Any]], sizes: list[tuple[float, int]]) -> list[dict[str, float]]:
    """HR Mpix, seconds, rate and largest resident MB of each tenth of the tiles.

    said: the event stream. sizes: (seconds since the epoch, resident bytes), in the order of time.
    """
    began = next(_seconds(e) for e in said if e["event"] == "started")
    tiles = [(_seconds(e), e["height"] * e["width"] * SCALE**2 / 1e6) for e in said if e["event"] == "tile"]
    found, before = [], began
    for part in np.array_split(np.array(tiles, np.float64), TENTHS):
        end, mpix = float(part[-1, 0]), float(part[:, 1].sum())
        resident = max((size for at, size in sizes if before <= at <= end), default=0)
        took = max(end - before, 1e-3)  # times in the event stream are in milliseconds
        rate = {"hr_mpix_per_s": round(mpix / took, 4), "resident_mb": round(resident / 1e6, 1)}
        found.append({"hr_mpix": round(mpix, 4), "seconds": round(took, 3), **rate})
        before = end
    return found


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def drift(rates: list[float]) -> tuple[float, float]:
    """The change of a rate from first to last, divided by its mean, by a straight line; and its standard error."""
    y = np.array(rates, np.float64) / np.mean(rates)
    x = np.linspace(-0.5, 0.5, len(y))
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - 1 - slope * x
    return slope, float(np.sqrt((rest**2).sum() / (len(y) - 2) / (x * x).sum()))


def judged(result: dict[str, Any]) -> list[str]:
    """Return what is wrong with a run, such as memory that grew or a rate that was not constant; empty if nothing
    is."""
    if result["tiles"] < LEAST_TILES:
        return [
            f"{result['tiles']} tiles are too few to judge by: make the strip or the tiles give {LEAST_TILES}"
        ]
    sizes = [p["resident_mb"] for p in result["tenths"]]
    wrong = []
    first, second = max(sizes[: TENTHS // 2]), max(sizes[TENTHS // 2 :])
    if second > RESIDENT_RATIO * first:
        wrong.append(f"memory grew from {first} to {second} MB in the second half: {sizes}")
    rates = [p["hr_mpix_per_s"] for p in result["tenths"]][1:]  # the first tenth warms up
    change, error = drift(rates)
    if abs(change) > DRIFT + 2 * error:
        wrong.append(f"the rate changed by {change:+.0%} ± {error:.0%} along the run: {rates}")
    return wrong


def main() -> None:
    """The entry point. The exit status is 1 where the judgement is bad."""
    parser = argparse.ArgumentParser(description="Run the engine over a strip of a synthetic country.")
    parser.add_argument("--folder", type=Path, required=True, help="for rasters and results")
    parser.add_argument("--country", type=int, default=Strip.country, help="its side in LR pixels")
    parser.add_argument("--rows", type=int, default=Strip.rows, help="LR pixels of the strip's shorter side")
    parser.add_argument("--seed", type=int, default=Strip.seed)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tiles", default="auto", help="as deeplight-infer takes it")
    given = parser.parse_args()
    rasters = make_strip(Strip(given.country, given.rows, given.seed), given.folder)
    result = run_strip(rasters, given.folder, given.model, given.tiles)
    result["drift"], result["drift_error"] = drift([p["hr_mpix_per_s"] for p in result["tenths"]][1:])
    result["wrong"] = judged(result)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
