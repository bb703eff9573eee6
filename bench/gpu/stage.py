"""What the stages share: sizes, a file of rows that is complete at any time, and timing on a device."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplight.engine.core.files import write_file
from deeplight.engine.network.config import PRESETS
from deeplight.engine.network.receptive import halo

Run = Callable[[], Any]
ROUNDS = 30
HALO = halo(PRESETS["tiny"])
SCRATCH = "scratch"
CACHED = 256 << 20
"""Bytes that are more than any L2 cache holds."""
BEGINS = 0.75
"""Share of a stage's seconds after which it begins nothing more."""
MARGIN = 2.0
"""Seconds between the end of the last command and that of the stage."""


@dataclass(frozen=True)
class StageSettings:
    """out: folder of the stages' files. device: "cuda", or "cpu" for the stand-in. side: LR pixels of the network's
    tile, a multiple of 8; the kernels' images have four times as many. strip: LR pixels of the engine's scenes, rows
    and columns. seconds: after which the stage is ended. configs: whether the kernels stage tries every configuration.
    max_autotune: measure torch.compile's slow search as well. started: on the clock of time.monotonic.
    """

    out: Path
    device: str = "cuda"
    side: int = 256
    strip: tuple[int, int] = (1024, 1536)
    seconds: float = 60.0
    presets: tuple[str, ...] = ("tiny", "base")
    dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32")
    configs: bool = True
    max_autotune: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def scratch(self) -> Path:
        """A folder for gigabytes of files, which is removed when the stages have ended."""
        return self.out / SCRATCH

    @property
    def left(self) -> float:
        """Seconds that a command may still take, so that time is left to write in a row that it took too long."""
        return max(1.0, self.seconds - MARGIN - (time.monotonic() - self.started))

    @property
    def late(self) -> bool:
        """Whether nothing more may begin. Rows then say what was left out."""
        return time.monotonic() - self.started > BEGINS * self.seconds


@dataclass(frozen=True)
class TileCut:
    """How tiles are cut from a scene, in LR pixels."""

    core: int
    halo: int = HALO

    @property
    def side(self) -> int:
        """Of what is read and computed."""
        return self.core + 2 * self.halo

    @property
    def computed_share(self) -> float:
        """How many pixels are computed for each of the output."""
        return (self.side / self.core) ** 2


class Rows:
    """The rows of a stage, in a file that is written anew with each of them."""

    def __init__(self, settings: StageSettings, stage: str) -> None:
        self._file = settings.out / f"{stage}.json"
        self._rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        self._rows.append(row)
        print(json.dumps(row), flush=True)
        write_file(self._file, [json.dumps(self._rows, indent=1).encode()])

    def lack(self, modules: Mapping[str, str], own: str = "") -> bool:
        """Whether the stage cannot begin for want of packages, which a row then says.

        modules: each that is imported, and the package that has it. own: a module of the stage that is imported too,
        since a package that is there may need others that are not.
        """
        missing = [package for name, package in modules.items() if find_spec(name) is None]
        if not missing and own:
            try:
                import_module(own)
            except ImportError as error:
                missing = [f"{error.name or own} ({error})"]
        if missing:
            remedy = f"{sys.executable} has no {', '.join(missing)}: give their wheels with --wheels DIR"
            self.add(left_out=remedy, lacks=missing)
        return bool(missing)


def attempt(rows: Rows, what: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add a row of what was measured, or of why it was not, since one failure must not hide the rest. Returns what was
    measured, {} where nothing was."""
    try:
        found = measure()
    except Exception as error:  # compilers, drivers and libraries raise exceptions of any class
        found = {"error": first_line(error)}
    rows.add(**what, **found)
    return {} if "error" in found else found


def first_line(error: Exception) -> str:
    """An exception as one line with its type."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:300]}"


def milliseconds(run: Run, device: str, rounds: int = ROUNDS, *, cold: bool = False) -> float:
    """Median time of a run as replays of a CUDA graph, so that the launches from Python do not count.

    cold: no replay finds anything in the L2 cache, so that a share of the memory's bandwidth is one. On a CPU, which
    only stands in for a GPU, it is the time of one call, which means nothing.
    """
    if device == "cpu":
        return _wall(run)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # this compiles and lets libraries choose, which must not happen during a capture
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # inside the stream's context, since `torch.cuda.graph` leaves it current where a capture breaks off
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        run()
    times, other = [], torch.zeros(CACHED // 4 if cold else 1, device=device)
    for _ in range(rounds):
        other.amax()  # read, not written: lines to write back would be charged to the run
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times)


def _wall(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def channels_last(shape: tuple[int, ...], device: str) -> Tensor:
    """Uniform values whose strides are channels-last even of one channel, so that joining them keeps the order."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, device=device, memory_format=layout).uniform_()
