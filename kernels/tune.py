"""Which launch configuration is fastest on this machine's GPU, of those that compute what they should.

The command line, which knows the presets, is deeplight.engine.network.kernel_tuning; it writes measured.json.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from deeplight.kernels import expected, launch
from deeplight.kernels.launch import Launch, ceil_div
from deeplight.kernels.table import Config, bucket
from deeplight.kernels.warm import compile_all

BLOCKS, WARPS, STAGES = (32, 64, 128, 256), (4, 8), (2, 3)
VALUE_BLOCKS = (1024, 2048, 4096)
"""For upsample_epilogue, whose blocks are values, and finish, whose pixels are one value each."""


def candidates(kernel: str) -> list[Config]:
    """The configurations that are tried."""
    blocks = VALUE_BLOCKS if kernel in ("upsample_epilogue", "finish") else BLOCKS
    stages = STAGES if kernel in ("upsample_conv", "refine") else (2,)
    return [Config(b, w, s) for b in blocks for w in WARPS for s in stages]


def with_config(ready: Launch, config: Config) -> Launch:
    """`ready` with another configuration and the grid that it needs."""
    return dataclasses.replace(ready, config=config, programs=programs(ready, config.block))


def programs(ready: Launch, block: int) -> int:
    """The grid for another block; every kernel's rows are cut into ⌈length / block⌉."""
    old = ready.config.block
    length = _row(ready)
    return ready.programs // ceil_div(length, old) * ceil_div(length, block)


def _row(ready: Launch) -> int:
    """Pixels (upsample_epilogue: values) that are cut into blocks."""
    if ready.kernel == "fuse":
        return int(ready.arguments["pixels"])
    width = int(ready.arguments["width"])
    if ready.kernel == "upsample_epilogue":
        return width * 2 * int(ready.constants["C"])
    return width - 2 * int(ready.arguments.get("crop", 0))


def channels_of(ready: Launch) -> int:
    """The channel count under which the table keeps a launch."""
    c = ready.constants
    key = {"fuse": ("CP", "AP"), "upsample_conv": ("KP",), "align": ("CP",), "refine": ("CP",)}.get(
        ready.kernel, ()
    )
    return max((int(c[k]) for k in key), default=0)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration of a launch. error: the largest difference in parts of what is allowed, None where it did not
    run. ms: its time, None where it is wrong or did not run. problem: why, in a few words."""

    ready: Launch
    error: float | None = None
    ms: float | None = None
    problem: str = ""


def trials(ready: Launch, configs: Iterable[Config], milliseconds: Callable[[Any], float]) -> Iterator[Trial]:
    """Run a filled launch in each configuration: first against its definition, then, where it is right, for time."""
    want = expected.expected(ready)
    for config in configs:
        trial = with_config(ready, config)
        try:
            error = expected.worst(trial, expected.run(trial), want)
        except Exception as refused:  # out of shared memory, a pass of the compiler that fails
            yield Trial(trial, problem=f"does not run: {_first_line(refused)}")
            continue
        if not error <= 1:
            yield Trial(trial, error, problem=f"computes wrong values, {error:.3g} × what is allowed")
            continue
        yield Trial(trial, error, milliseconds(lambda trial=trial: launch.run(trial)))


def best(found: Iterable[Trial]) -> Trial | None:
    """The fastest that is right; None where there is none."""
    return min((t for t in found if t.ms is not None), key=lambda t: t.ms or 0.0, default=None)


def gpu_milliseconds(run: Callable[[], Any]) -> float:
    """Median time on the GPU, the L2 cache flushed before each run."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=40, return_mode="median"))


Rows = dict[tuple[str, int, int, int], Config]
"""(kernel, arch, channels, width bucket) → configuration, as table.measured."""


def tune(
    launches: Iterable[tuple[int, Launch]],
    device: torch.device,
    seconds: float,
    say: Callable[[str], None],
    milliseconds: Callable[[Any], float] = gpu_milliseconds,
) -> Rows:
    """The best configuration of each (width, meta launch), as far as the seconds reach.

    `say` gets a line for each, also for every configuration that computes wrong values and for what there was no time.
    """
    until = time.monotonic() + seconds
    arch = launch.arch_of(device)
    work = list(launches)
    trials_of = (with_config(ready, config) for _, ready in work for config in candidates(ready.kernel))
    compile_all(trials_of, arch)
    rows: Rows = {}
    for done, (width, ready) in enumerate(work):
        if time.monotonic() > until:
            say(f"no time was left for {len(work) - done} of {len(work)} launches: give more --seconds")
            break
        found = list(trials(expected.filled(ready, str(device)), candidates(ready.kernel), milliseconds))
        for trial in found:
            if trial.error is not None and trial.ms is None:
                say(f"warning: {trial.ready.key} {trial.problem}")
        fastest = best(found)
        if fastest is None:
            say(f"{ready.key} at width {width}: no configuration is right")
            continue
        rows[ready.kernel, arch, channels_of(ready), bucket(width)] = fastest.ready.config
        say(f"{ready.key} at width {width}: {fastest.ready.config}, {fastest.ms:.4f} ms")
    return rows


def write(rows: Rows, file: Path) -> None:
    """Write rows as table.measured reads them."""
    file.write_text(json.dumps([_json(key, config) for key, config in sorted(rows.items())], indent=1))


def _json(key: tuple[str, int, int, int], config: Config) -> dict[str, Any]:
    return dict(zip(("kernel", "arch", "channels", "bucket"), key, strict=True)) | dataclasses.asdict(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
