"""Runs by 1 … 512 workers, simulated: the engine's own dispatcher gives packs to workers that only take their time.

    python -m bench.scale

Prints the table of docs/scale.md. Seeded, so that it is the same every time. What it is made of is in RATES, with where
each number comes from; everything else is the code that leads a real run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from deeplight.engine.core.markdown import markdown_table
from deeplight.engine.run.workers.dispatch import Dispatch, Lost, Ready, Verdict
from deeplight.engine.run.workers.segments import Key

PACK_MPIX = 2048**2 / 1e6
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class World:
    """A scene of packs: an ellipse of land, `land` of all, in sea. Packs on its coast are half full."""

    name: str
    rows: int
    cols: int
    land: float

    def shares(self) -> dict[Key, float]:
        """Pack → how much of it is land, in the order in which packs are given out."""
        radius = 4 * self.land / 3.141592653589793

        def share(row: int, col: int) -> float:
            away = ((2 * row + 1) / self.rows - 1) ** 2 + ((2 * col + 1) / self.cols - 1) ** 2
            return min(1.0, max(0.0, (radius - away) * min(self.rows, self.cols) / 4 + 0.5))

        return {(row, col): share(row, col) for row in range(self.rows) for col in range(self.cols)}


@dataclass(frozen=True)
class Rates:
    """What a run takes, in seconds and bytes. mpix_per_s: of one worker, in HR Mpix.

    Measured on 2 CPUs (docs/scale.md): empty_s of a pack without data, start_s until workers begin, end_s from the last
    pack to the end besides assembling, call_s of the process that leads for a call, bytes_written of an HR pixel,
    indexed_per_s packs when the file is laid out, copied bytes a second by one worker. Assumed: bytes_read of an HR
    pixel (seven bands in float32, a fifth of them twice), storage in bytes a second over all hosts, way_s to a worker,
    noise of the packs' times (sigma of the logarithm).
    """

    name: str
    mpix_per_s: float
    empty_s: float = 0.008
    start_s: float = 4.4
    end_s: float = 5.5
    call_s: float = 0.8e-3
    bytes_written: float = 2.7
    indexed_per_s: float = 3600.0
    copied: float = 1.1e9
    bytes_read: float = 28 * 1.2
    storage: float = 20e9
    way_s: float = 1e-3
    noise: float = 0.08


class Timed:
    """A dispatch.Pool of workers that take the time of their packs. now: of the process that leads, which is busy for
    each call."""

    def __init__(self, shares: dict[Key, float], rates: Rates) -> None:
        self.now, self.calls, self._rates, self._shares = 0.0, 0, rates, shares
        self._random = random.Random(1)
        self._free: list[float] = [0.0]
        self._events: list[tuple[float, int, list[Ready | Verdict | Lost]]] = []

    def hire(self) -> int:
        worker = len(self._free)
        self._free.append(0.0)
        self._at(self._rates.start_s * (1 + 0.2 * self._random.random()), [Ready(worker, str(worker))])
        return worker

    def give(self, worker: int, keys: Sequence[Key]) -> None:
        self.now += self._rates.call_s
        self.calls += 1
        time = max(self._free[worker], self.now + self._rates.way_s)
        verdicts: list[Ready | Verdict | Lost] = []
        for key in keys:
            took = self._rates.empty_s + self._shares[key] * PACK_MPIX / self._rates.mpix_per_s
            took *= self._random.lognormvariate(0, self._rates.noise)
            time += took
            verdicts.append(Verdict(worker, key, seconds=took if self._shares[key] else None))
        self._free[worker] = time
        self._at(time + self._rates.way_s, verdicts)

    def dismiss(self, worker: int) -> None:
        raise AssertionError("nobody hangs here")

    def wait(self) -> list[Ready | Verdict | Lost]:
        at, _, events = heapq.heappop(self._events)
        self.now = max(self.now, at)
        return events

    def _at(self, time: float, events: list[Ready | Verdict | Lost]) -> None:
        heapq.heappush(self._events, (time, len(self._events) + self.calls, events))


def seconds(world: World, rates: Rates, workers: int) -> tuple[float, int]:
    """From the command to the file, and the calls that were made."""
    shares = world.shares()
    pixels = sum(shares.values()) * PACK_MPIX * 1e6
    pool = Timed(shares, rates)
    for _ in range(workers):
        pool.hire()
    Dispatch(pool, list(shares), workers, lambda _: None, lambda _: None, clock=lambda: pool.now).run()
    written = pixels * rates.bytes_written
    stream = max(pool.now, rates.start_s + (pixels * rates.bytes_read + written) / rates.storage)
    copying = max(written / (rates.copied * workers), 2 * written / rates.storage)
    return stream + len(shares) / rates.indexed_per_s + copying + rates.end_s, pool.calls


WORLDS = (World("a country, 1200 packs", 30, 40, 0.5), World("all land, 44,278 packs", 131, 338, 0.29))
RATES = (Rates("a CPU thread", 0.94), Rates("a GPU at 40 HR Mpix/s", 40.0))


def main() -> None:
    cases = [(world, rates) for world in WORLDS for rates in RATES]
    rows = []
    alone = [seconds(world, rates, 1)[0] for world, rates in cases]
    for workers in WORKERS:
        found = [seconds(world, rates, workers)[0] for world, rates in cases]
        cells = [f"{t:,.0f} s, {one / t / workers:.2f}" for t, one in zip(found, alone, strict=True)]
        rows.append([str(workers), *cells])
    print(markdown_table(["workers", *(f"{world.name}, {rates.name}" for world, rates in cases)], rows))


if __name__ == "__main__":
    main()
