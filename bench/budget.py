"""From the stages' rates to the whole: what a run should reach, what holds it up, and what other machines would do.

Everything here is computed from measured rates, by formula or by simulating the queues; nothing is measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.results import Run
from bench.traffic import COPY, MATRIX, network
from deeplight.engine.core.windows import core_share
from deeplight.engine.run.tiling import reader_count

NATION_HR, NATION_VALID = (80_000, 60_000), 2.5e9
"""A nationwide run: HR pixels of the grid, rows and columns, and how many of them have data."""
CORE, HALO = 256, 20
"""Tiles that `--tiles auto` takes with `tiny`, in LR pixels."""
QUEUE = 1
"""Tiles that wait between two stages, as in engine/run/executor.py."""
WRITERS = 2
"""Of one process, as in engine/run/pipeline.py."""
SKIP_S = 1e-3
"""Of a tile without data: its NTL is read and found empty."""
RESULTS = Path(__file__).parent / "results"
READ, MODEL, WRITE, ASSEMBLE = "read", "model", "write", "assemble"


@dataclass(frozen=True)
class Costs:
    """Seconds per HR Mpix of output. read, write: of one thread. model: of the device, with all its threads. assemble:
    of the finaliser, which runs alone after the others.

    Halos are in: what is read and computed for them counts towards the pixels of the output.
    """

    read: float
    model: float
    write: float
    assemble: float


@dataclass(frozen=True)
class Machine:
    """cores: that work on the host's stages. devices: with a model each; 0: the model runs on the same cores."""

    name: str
    cores: int
    devices: int = 0


@dataclass(frozen=True)
class Prediction:
    """hr_mpix_per_s: of the output. seconds: of each stage per HR Mpix, as it limits the whole. bottleneck: the stage
    that limits."""

    hr_mpix_per_s: float
    seconds: dict[str, float]
    bottleneck: str


MACHINES = (
    Machine("16 cores", 16),
    Machine("16 cores + H200", 16, 1),
    Machine("128 cores + 8 × H200", 128, 8),
)


def measured_costs(run: Run, dtype: str = "float32") -> Costs | None:
    """From a run's rows; None where a stage was not measured."""
    share = core_share(CORE, HALO)
    decode, read = run.find("decode", "zstd"), run.find("read", "mesh")
    model = run.find("model", "onnxruntime", batch=1, tile=_largest_tile(run))
    compress, assemble = run.find("compress", dtype), run.find("assemble", dtype)
    if not (decode and read and model and compress and assemble):
        return None

    def per_mpix(row: object) -> float:
        return 1 / float(row.facts["hr_mpix_per_s"])  # type: ignore[attr-defined]

    # A block is decoded once, since the next tile finds it in the cache; normalise and align see every halo again.
    again = (per_mpix(read) - per_mpix(decode)) / share
    return Costs(
        per_mpix(decode) + max(again, 0.0), per_mpix(model) / share, per_mpix(compress), per_mpix(assemble)
    )


def _largest_tile(run: Run) -> int:
    return max((r.tile for r in run.rows if r.stage == "model" and r.batch == 1), default=0)


def gpu_model_s(results: Path = RESULTS, preset: str = "tiny") -> tuple[float, str]:
    """Seconds per computed HR Mpix on a GPU, and where that is from: the newest measurement of bench/gpu.sh, or else
    what an H200's memory and arithmetic allow at best, on paper (docs/kernels.md)."""
    for path in sorted(results.glob("gpu-*/network.json"), reverse=True):
        rows = [r for r in json.loads(path.read_text()) if r.get("what") == "network" and "ms" in r]
        rates = [r["hr_mpix_per_s"] for r in rows if r["preset"] == preset]
        if rates:
            return 1 / max(rates), f"measured, {path.parent.name}"
    cost = network(preset)["network"]
    return 1e6 * max(2 * cost.fused / COPY, cost.flops / MATRIX), "at best, on paper; not measured"


def predict(costs: Costs, machine: Machine) -> Prediction:
    """The rate of a machine: pipelined stages, then the finaliser.

    Without a device the model and the host's stages share the cores; with one the host's have them to themselves.
    """
    if machine.devices:
        host = (costs.read + costs.write) / machine.cores
        parts = {READ: costs.read / machine.cores, MODEL: costs.model / machine.devices}
        parts |= {WRITE: costs.write / machine.cores, ASSEMBLE: costs.assemble}
        stream = max(host, parts[MODEL])
    else:
        parts = {READ: costs.read / machine.cores, MODEL: costs.model, WRITE: costs.write / machine.cores}
        stream = sum(parts.values())
        parts[ASSEMBLE] = costs.assemble
    return Prediction(1 / (stream + costs.assemble), parts, max(parts, key=lambda name: parts[name]))


def on(costs: Costs, machine: Machine, measured_cores: int) -> Costs:
    """Costs on another machine: the model over as many times the cores, or at the rate of `gpu_model_s`."""
    if machine.devices:
        return replace(costs, model=gpu_model_s()[0] / core_share(CORE, HALO))
    return replace(costs, model=costs.model * measured_cores / machine.cores)


@dataclass(frozen=True)
class Simulated:
    """seconds: of the whole. load: busy share of each stage while tiles stream. tiles: computed, and without data."""

    seconds: float
    load: dict[str, float]
    tiles: tuple[int, int]
    hr_mpix_per_s: float
    bottleneck: str


def nation_tiles(
    hr: tuple[int, int] = NATION_HR, valid: float = NATION_VALID
) -> Iterator[tuple[float, bool]]:
    """(HR Mpix, has data) of each tile, row by row; the country is an ellipse of `valid` pixels in the middle."""
    side = 8 * CORE
    rows, cols = math.ceil(hr[0] / side), math.ceil(hr[1] / side)
    radius = math.sqrt(valid / (math.pi * hr[0] * hr[1]))
    for i in range(rows):
        for j in range(cols):
            height, width = min(side, hr[0] - i * side), min(side, hr[1] - j * side)
            # the tile's nearest point to the centre, in parts of the grid
            y = max(0.0, abs((i * side + height / 2) / hr[0] - 0.5) - height / 2 / hr[0])
            x = max(0.0, abs((j * side + width / 2) / hr[1] - 0.5) - width / 2 / hr[1])
            yield height * width / 1e6, math.hypot(x, y) < radius


def simulate(costs: Costs, machine: Machine, tiles: Sequence[tuple[float, bool]]) -> Simulated:
    """A run over tiles, each going through the stages in turn: a stage's workers take them in order, at most QUEUE wait
    between two stages, and a worker that finds the queue full waits. Workers are as many as the engine starts, with a
    process for each device.

    On a machine without devices the host's work takes its share of the cores from the model.
    """
    cores, devices = machine.cores, machine.devices
    slots = [reader_count(cores), max(devices, 1), WRITERS * max(devices, 1)]
    taken = 0.0 if devices else (costs.read + costs.write) / cores
    per_mpix = [costs.read, costs.model + taken, costs.write]
    service = [
        [(SKIP_S if k == 0 else 0.0) if not has else mpix * cost for k, cost in enumerate(per_mpix)]
        for mpix, has in tiles
    ]
    start = flow(service, slots)
    stream = max(start[-1][i] + service[i][-1] for i in range(len(service)))
    busy = [sum(s[k] for s in service) / (slots[k] * stream) for k in range(3)]
    computed = sum(mpix for mpix, has in tiles if has)
    total = stream + computed * costs.assemble
    load = dict(zip((READ, MODEL, WRITE), busy, strict=True))
    alone = {name: share * stream for name, share in load.items()} | {ASSEMBLE: total - stream}
    counts = sum(has for _, has in tiles), sum(not has for _, has in tiles)
    return Simulated(total, load, counts, computed / total, max(alone, key=lambda name: alone[name]))


def flow(service: Sequence[Sequence[float]], slots: Sequence[int], queue: int = QUEUE) -> list[list[float]]:
    """When each item starts in each stage: start[stage][item], in seconds.

    service: per item, seconds in each stage. slots: workers of each stage. Items keep their order.
    """
    stages = len(slots)
    start = [[0.0] * len(service) for _ in range(stages)]
    left = [[0.0] * len(service) for _ in range(stages)]
    for i, seconds in enumerate(service):
        for k in range(stages):
            ready = left[k - 1][i] if k else 0.0
            worker = left[k][i - slots[k]] if i >= slots[k] else 0.0
            order = start[k][i - 1] if i else 0.0
            start[k][i] = max(ready, worker, order)
            left[k][i] = start[k][i] + seconds[k]
            if k + 1 < stages and i >= queue:
                # there is room in the queue once the item `queue` places before has been taken from it
                left[k][i] = max(left[k][i], start[k + 1][i - queue])
    return start
