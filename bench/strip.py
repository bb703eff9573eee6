"""python -m bench.strip: a strip of a synthetic country, to see memory stay flat and throughput constant.

Writes the strip's rasters into --folder (kept there for the next time), runs the engine over it in tiles and
prints, for each tenth of the tiles, HR Mpix/s and the process's resident size; then the time that 2.5 billion
HR pixels would take at the rate of all but the first tenth.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import CASES, Case, write_case
from bench.conftest import machine_facts
from deeplight.engine.artifact import DEFAULT_MODEL
from deeplight.engine.executor import Outcome
from deeplight.engine.options import RunOptions
from deeplight.engine.parts import Mode
from deeplight.engine.pipeline import Run, infer
from deeplight.engine.scene import SceneOptions
from deeplight.engine.spec import SCALE
from deeplight.engine.tiling import TileRequest

COUNTRY_PIXELS = 2.5e9
"""China's land at 62.5 m."""


class Watch:
    """Notes when each tile is done and how large the process is then."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.cpu_began = time.process_time()
        self.rows: list[tuple[float, int, int]] = []
        self._lock = threading.Lock()

    def note(self, outcome: Outcome) -> None:
        """Of one outcome: seconds since the start, HR pixels, resident bytes."""
        core = outcome.task.core
        pixels = 0 if outcome.error is not None else core.height * core.width * SCALE**2
        with self._lock:
            self.rows.append((time.perf_counter() - self.began, pixels, resident_bytes()))

    def tenths(self) -> list[dict[str, float]]:
        """Rate and largest resident size in each tenth of the tiles."""
        parts = np.array_split(np.array(self.rows, np.float64), 10)
        result, before = [], 0.0
        for part in parts:
            if len(part):
                rate = part[:, 1].sum() / 1e6 / (part[-1, 0] - before)
                result.append({"hr_mpix_per_s": round(rate, 4), "resident_mb": round(part[:, 2].max() / 1e6)})
                before = part[-1, 0]
        return result


def resident_bytes() -> int:
    """Of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def run_strip(
    scene: SceneOptions, model: str, out: Path, core: int | None, limit_s: float | None = None
) -> dict[str, Any]:
    """One run over a scene. limit_s: stop submitting tiles after that long; the output is then not assembled."""
    watch = Watch()
    restore = _watched(watch, limit_s)
    try:
        report = infer(
            RunOptions(
                scene, out, model, TileRequest(core), mode=Mode.OVERWRITE, report=out.with_suffix(".json")
            )
        )
    except _TimeIsUp:
        report = None
    finally:
        restore()
    steady = watch.rows[len(watch.rows) // 10 :]
    rate = sum(r[1] for r in steady[1:]) / (steady[-1][0] - steady[0][0])
    return {
        "tiles": len(watch.rows),
        "hr_mpix": sum(r[1] for r in watch.rows) / 1e6,
        "seconds": watch.rows[-1][0],
        "cpu_seconds": time.process_time() - watch.cpu_began,
        "tenths": watch.tenths(),
        "steady_hr_mpix_per_s": rate / 1e6,
        "hours_for_a_country": COUNTRY_PIXELS / rate / 3600,
        "report": None if report is None else json.loads(report.to_json()),
        "machine": machine_facts(),
    }


class _TimeIsUp(Exception):
    """The time for a strip is over."""


def _watched(watch: Watch, limit_s: float | None) -> Callable[[], None]:
    """Let `watch` see every outcome; returns what undoes that."""
    original = Run.note

    def note(run: Run, outcome: Outcome) -> None:
        watch.note(outcome)
        original(run, outcome)
        if limit_s is not None and time.perf_counter() - watch.began > limit_s:
            raise _TimeIsUp

    Run.note = note  # type: ignore[method-assign]

    def restore() -> None:
        Run.note = original  # type: ignore[method-assign]

    return restore


def main() -> None:
    """Entry point."""
    case = CASES["strip"]
    parser = argparse.ArgumentParser(description="Run the engine over a strip of a synthetic country.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--height", type=int, default=case.height, help="LR pixels")
    parser.add_argument("--width", type=int, default=case.width, help="LR pixels")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--core", type=int, help="LR pixels of a tile; automatic without")
    parser.add_argument("--limit", type=float, help="seconds after which to stop")
    given = parser.parse_args()
    rasters = given.folder / f"{given.height}x{given.width}"
    files = {name: str(rasters / f"{name}.tif") for name in ("ntl", "dmo", "dem")}
    scene = SceneOptions(files["ntl"], files["dmo"], files["dem"])
    if not all(Path(file).exists() for file in files.values()):
        scene = write_case(rasters, Case(given.height, given.width))
    result = run_strip(scene, given.model, given.folder / "strip.tif", given.core, given.limit)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
