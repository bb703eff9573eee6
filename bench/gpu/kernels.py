"""Each operation is timed from Python, beside its reference, eager and (with --max-autotune) compiled. Every launch is
compared with its definition and then timed: in the configuration of the table, and the first preset's in fp16 in all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.stage import Rows, StageSettings, attempt, first_line, milliseconds
from bench.ops import op_cases
from deeplight.engine.network.config import PRESETS
from deeplight.kernels import expected, launch, tune
from deeplight.kernels.launch import Launch
from deeplight.kernels.table import Config
from deeplight.kernels.variants import DTYPES, variants
from deeplight.kernels.warm import compile_all

Work = tuple[str, str, Launch, list[Config]]
"""A launch to measure: preset, element type, launch with meta tensors, configurations."""


def measure(settings: StageSettings) -> None:
    """Rows of kernels.json.

    What decides comes first, as far as the time goes: whole operations in the type that the engine uses, whose share of
    the bandwidth targets ask for; then their launches, those of the other types, and the configurations to choose from.
    """
    rows = Rows(settings, "kernels")
    runs = launch.TRITON and (settings.device == "cuda" or launch.interpreting())
    if not runs:
        rows.add(left_out="the kernels need Triton, and a GPU or TRITON_INTERPRET=1")
        return
    work = list(_work(settings))
    first, *others = ([one for one in work if one[1] == dtype] for dtype in settings.dtypes)
    each = _compile(rows, first, settings)
    with torch.no_grad():
        in_time = _operations(rows, settings)
    if not in_time or not _launches(rows, first, settings):
        return
    for rest in (*others, list(_choices(first, settings))):
        count = sum(len(configs) for *_, configs in rest)
        # nobody can stop what compiles, and what the stage's end finds unfinished would be a failure
        if count and each * count > settings.left:
            rows.add(left_out=f"no time to compile {count} launches from {rest[0][1]} {rest[0][2].kernel} on")
            return
        each = _compile(rows, rest, settings) if count else each
        if not _launches(rows, rest, settings):
            return


def _work(settings: StageSettings) -> Iterator[Work]:
    """All launches in their usual configuration. Some are the same in every type and preset; each occurs once."""
    listed: set[str] = set()
    for dtype in settings.dtypes:
        for preset in settings.presets:
            for ready in variants(PRESETS[preset], DTYPES[dtype], side=4 * settings.side):
                if ready.key not in listed:
                    listed.add(ready.key)
                    yield preset, dtype, ready, [ready.config]


def _choices(work: list[Work], settings: StageSettings) -> Iterator[Work]:
    """The other configurations of the first preset's launches in fp16."""
    for preset, dtype, ready, _ in work:
        if settings.configs and dtype == "fp16" and preset == settings.presets[0]:
            yield preset, dtype, ready, [c for c in tune.candidates(ready.kernel) if c != ready.config]


def _compile(rows: Rows, work: list[Work], settings: StageSettings) -> float:
    """Seconds that it took for each launch."""
    begin = time.perf_counter()
    trials = (tune.with_config(ready, config) for _, _, ready, configs in work for config in configs)
    problems = compile_all(trials, launch.arch_of(torch.device(settings.device)))
    count = sum(len(configs) for *_, configs in work)
    seconds = time.perf_counter() - begin
    rows.add(what="compile", launches=count, seconds=round(seconds, 2), problems=problems)
    return seconds / max(1, count)


def _launches(rows: Rows, work: list[Work], settings: StageSettings) -> bool:
    """Whether there was time for all."""
    for preset, dtype, ready, configs in work:
        if settings.late:
            rows.add(left_out=f"no time for {preset} {dtype} {ready.kernel} and what follows")
            return False
        what = {"what": "launch", "preset": preset, "dtype": dtype}
        for row in _launch_rows(_filled(ready, settings), configs, settings):
            rows.add(**what, **row)
    return True


def _filled(ready: Launch, settings: StageSettings) -> Launch:
    return expected.filled(ready, settings.device)


def _launch_rows(ready: Launch, configs: list[Config], settings: StageSettings) -> Iterator[dict[str, Any]]:
    nbytes = moved(ready)
    # each kernel is timed alone, so it must not find its inputs in the L2 cache
    timed = (
        tune.gpu_milliseconds if settings.device == "cuda" else lambda run: milliseconds(run, settings.device)
    )
    for trial in tune.trials(ready, configs, timed):
        config = trial.ready.config
        row: dict[str, Any] = {
            "kernel": ready.kernel,
            "launch": _without_config(ready),
            "block": config.block,
        }
        row |= {"warps": config.warps, "stages": config.stages, "error": trial.error, "bytes": nbytes}
        yield row | ({"ms": trial.ms} if trial.ms is not None else {"problem": trial.problem})


def _without_config(ready: Launch) -> str:
    """The part of a launch's key that is the same in every configuration."""
    return dataclasses.replace(ready, config=Config(0, 0)).key


def moved(ready: Launch) -> int:
    """Bytes of all memory that the launch reads or writes, each counted once."""
    constants = ready.constants
    flags = (("skip", "HAS_SKIP"), ("halves", "STEPS"))
    unused = {name for name, flag in flags if constants.get(flag) is False}
    if ready.kernel == "align":
        unused |= {"offset"} if not constants["OFFSET"] else set()
        unused |= {"whole", "fraction"} if not constants["MESH"] else set()
    tensors = [t for name, t in ready.arguments.items() if isinstance(t, Tensor) and name not in unused]
    return sum(t.numel() * t.itemsize for t in tensors)


def _operations(rows: Rows, settings: StageSettings) -> bool:
    """Whether there was time for all."""
    dtype = settings.dtypes[0]
    for preset in settings.presets:
        for name, op, args, nbytes in op_cases(preset, DTYPES[dtype], settings.side, settings.device):
            what = {"what": "operation", "op": name, "preset": preset, "dtype": dtype, "bytes": nbytes}
            if settings.late:
                rows.add(left_out=f"no time for operation {name} of {preset} and what follows")
                return False
            attempt(rows, what, lambda op=op, args=args: _ways(op, args, settings))
    return True


def _ways(op: Callable[..., Any], args: tuple[Any, ...], settings: StageSettings) -> dict[str, Any]:
    """Milliseconds of each way; error: of the last that failed."""

    def reference() -> Any:
        return op(*args, implementation="reference")

    runs = {"kernel_ms": lambda: op(*args, implementation="triton"), "reference_ms": reference}
    if settings.max_autotune:
        torch.compiler.reset()
        runs["compiled_ms"] = torch.compile(reference, mode="max-autotune-no-cudagraphs", fullgraph=True)
    found: dict[str, Any] = {}
    for name, run in runs.items():  # a reference that fails must not take the kernel's time with it
        try:
            found[name] = milliseconds(run, settings.device, cold=True)
        except Exception as error:
            found["error"] = f"{name}: {first_line(error)}"
    return found
