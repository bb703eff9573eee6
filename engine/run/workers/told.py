"""What workers told of themselves, added up for the report of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deeplight.engine.run.executor import Outcome, Task
from deeplight.engine.run.meter import Meter
from deeplight.engine.run.result import RunResult, Tally
from deeplight.engine.run.stream import Stage
from deeplight.engine.run.workers.messages import Done, Told


def with_workers(result: RunResult, done: Done) -> RunResult:
    """The result of a run that found all packs finished, with those who computed them."""
    told = done.told
    tally = Tally(**_sum([worker.counts for worker in told] + [result.tally.counts()]))
    empty = result.packs["all_nodata"] + sum(worker.packs["all_nodata"] for worker in told)
    # some may have been computed twice, and lost workers' are not told: what is there counts
    written = sum(result.packs.values()) - done.kept - empty
    packs = {"written": written, "all_nodata": empty, "kept_from_earlier_run": done.kept}
    workers = [_one(worker) for worker in told] + [{"lost": reason} for reason in done.lost]
    retried = [
        Outcome(Task(core), worker.worker, RuntimeError(why))
        for worker in told
        for core, why in worker.retried
    ]
    meters = [worker.meter for worker in told if worker.meter is not None]
    before = result.moved_before
    if before is not None:
        moved = [worker.moved for worker in told if worker.moved is not None]
        before = before[0] - sum(m[0] for m in moved), before[1] - sum(m[1] for m in moved)
    return replace(
        result,
        tally=tally,
        packs=packs,
        stages=_stages(told),
        seconds={**result.seconds, "stream": done.stream_s},
        retried=[*result.retried, *retried],
        meter=Meter.sum(meters) if meters else None,  # in place of this process's own, which computed nothing
        moved_before=before,
        workers=workers,
    )


def _sum(counts: Sequence[Any]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _stages(told: Sequence[Told]) -> list[Stage]:
    """The stages of all workers as one."""
    names = dict.fromkeys(name for worker in told for name in worker.stages)
    found = []
    for name in names:
        each = [worker.stages[name] for worker in told if name in worker.stages]
        found.append(Stage(name, lambda item: item, sum(n for n, _ in each), sum(busy for _, busy in each)))
    return found


def _one(told: Told) -> dict[str, Any]:
    moved = told.moved or (None, None)
    return {
        "worker": told.worker,
        "device": told.device,
        **({"cpus": told.cpus} if told.cpus else {}),
        "packs": int(told.packs["written"] + told.packs["all_nodata"]),
        "tiles": int(told.counts["tiles"]),
        "busy": {name: round(busy, 3) for name, (_, busy) in told.stages.items()},
        "cpu": round(told.cpu_s, 3),
        "bytes_read": moved[0],
        "bytes_written": moved[1],
        "peak_memory_bytes": told.peak_memory_bytes,
    }
