"""How much faster two processes assemble a COG than one: `python -m bench.assembly [PACKS] [LAPS] [FOLDER]`.

PACKS × PACKS packs of 2048² pixels, float32. In every lap one process, two processes (one thread each, without Ray),
one thread and two make the file in turn, and the same in regions of 4 × 4 packs; bytes are compared. Beside them, what
two processes gain that share nothing: each takes checksums of its own memory, which tells how much of two CPUs is free.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from bench.bench_host import lights, store_of
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.hands import Hands, Piece, SharedJob, Threads
from deeplight.engine.output.packs import PackStore
from deeplight.engine.output.regions import assemble_regions


def serve(folder: Path, packs: int, calls: Connection) -> None:
    """Do pieces of jobs, as a worker does, until there are no more."""
    store, known, job = store_of(folder, "float32", packs), None, None
    while (call := calls.recv()) is not None:
        if call == "checksums":
            _take_checksums()
        else:
            if call[0] != known:
                known, job = call[0], call[0].job(store)
            assert job is not None
            job.do(call[1])
        calls.send(None)


def _take_checksums() -> None:
    memory = bytes(1 << 20)
    for _ in range(1000):
        zlib.crc32(memory)


class Processes:
    """Hands that are processes, each of which gets a piece when it has done one."""

    def __init__(self, folder: Path, packs: int, count: int) -> None:
        self.count = count
        self._calls: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for _ in range(count):
            here, there = context.Pipe()
            context.Process(target=serve, args=(folder, packs, there), daemon=True).start()
            self._calls.append(here)

    def do(self, job: SharedJob, pieces: Sequence[Piece]) -> None:
        """Return when all pieces are done."""
        with job.published() as known:
            self._hand_out([(known, piece) for piece in reversed(pieces)])

    def take_checksums(self) -> None:
        """Have a GB of checksums taken twice."""
        self._hand_out(["checksums"] * 2)

    def _hand_out(self, left: list[object]) -> None:
        busy: list[Connection] = []
        for calls in self._calls:
            if left:
                calls.send(left.pop())
                busy.append(calls)
        while busy:
            for ready in wait(busy):
                calls = next(each for each in busy if each is ready)
                calls.recv()
                if left:
                    calls.send(left.pop())
                else:
                    busy.remove(calls)

    def close(self) -> None:
        """End the processes."""
        for calls in self._calls:
            calls.send(None)


def make_regions(store: PackStore, folder: Path, hands: Hands) -> float:
    """Make the regions anew. Returns the seconds that it took."""
    for note in store.folder.glob("*.region"):
        note.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.perf_counter()
    assemble_regions(store, folder / "lights.vrt", 4, hands=hands)
    return time.perf_counter() - began


def make_file(store: PackStore, out: Path, hands: Hands) -> float:
    """Make the one file anew. Returns the seconds that it took."""
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    assemble(store, out, hands=hands)
    return time.perf_counter() - began


def digests(folder: Path, name: str = "*") -> dict[str, str]:
    """Of the files there."""
    found = {}
    for path in folder.glob(name):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def main(packs: int, laps: int, where: str | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        store, pixels = store_of(folder / "packs", "float32", packs), lights()
        for row in range(packs):
            for col in range(packs):
                store.write((row, col), pixels)
        out = folder / "o.tif"
        size = assemble(store, out).bytes
        first = digests(folder, "o.tif")
        make_regions(store, folder / "regions", Threads(1))
        expected = digests(folder / "regions")
        one, two = Processes(store.folder, packs, 1), Processes(store.folder, packs, 2)
        ways: dict[str, Hands] = {"1 process": one, "2 processes": two}
        ways |= {"1 thread": Threads(1), "2 threads": Threads(2)}
        split = {f"regions, {way}": hands for way, hands in ways.items()}
        took: dict[str, list[float]] = {way: [] for way in [*ways, *split, "checksums 1", "checksums 2"]}
        for _ in range(laps):
            for way, hands in ways.items():
                took[way].append(make_file(store, out, hands))
                assert digests(folder, "o.tif") == first
            out.unlink()
            for way, hands in split.items():
                took[way].append(make_regions(store, folder / "regions", hands))
                assert digests(folder / "regions") == expected
            shutil.rmtree(folder / "regions")
            for way, processes in (("checksums 1", one), ("checksums 2", two)):
                began = time.perf_counter()
                processes.take_checksums()
                took[way].append(time.perf_counter() - began)
        one.close()
        two.close()
    print(f"{packs**2} packs, {size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
    for way, each in took.items():
        print(f"{way:20} {min(each):.2f} to {max(each):.2f} s, median {statistics.median(each):.2f}")
    pairs = [("1 process", "2 processes"), ("1 thread", "2 threads"), ("checksums 1", "checksums 2")]
    pairs += [(f"regions, {a}", f"regions, {b}") for a, b in pairs[:2]] + [
        (way, f"regions, {way}") for way in ways
    ]
    for a, b in pairs:
        ratios = [x / y for x, y in zip(took[a], took[b], strict=True)]
        print(f"{a} / {b}: {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:3]] + [8, 5][len(sys.argv[1:3]) :]
    main(numbers[0], numbers[1], sys.argv[3] if len(sys.argv) > 3 else None)
