"""Search for the fastest launch configuration on this machine's GPU among those that compute right values.

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
from deeplight.kernels.agree.entry import columns_of
from deeplight.kernels.fuse.entry import repeats
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, ceil_div
from deeplight.kernels.refine.entry import RIM
from deeplight.kernels.table import Config, bucket
from deeplight.kernels.warm import compile_all

BLOCKS, WARPS, STAGES = (32, 64, 128, 256), (4, 8), (2, 3)
VALUE_BLOCKS = (512, 1024, 2048, 4096)
"""Block sizes of upsample_epilogue, whose blocks consist of values, and of kernels whose pixels are one value each."""

OWN_BLOCKS = {
    "residuals": (16,),
    "posterior": (16, 32, 64),
    "suggest": (8, 16),
    "observe": (128,),
    "believe": (128,),
    "look": (128,),
    "finish": (256, 512, 1024, 2048),
}
"""Block sizes of the other kernels with sizes of their own. finish: a block covers two rows. residuals, observe,
believe, look: other compile-time arguments depend on the block. posterior: registers hold all shifts of a pixel.
suggest: a result is made of sixteen pixels."""


def candidates(kernel: str) -> list[Config]:
    """The configurations of a kernel that are tried."""
    blocks = {**dict.fromkeys(("upsample_epilogue", "start", "settle"), VALUE_BLOCKS), **OWN_BLOCKS}.get(
        kernel, BLOCKS
    )
    stages = STAGES if kernel in ("fuse", "upsample_conv", "refine") else (2,)
    return [Config(b, w, s) for b in blocks for w in WARPS for s in stages]


def with_config(ready: Launch, config: Config) -> Launch:
    """The launch with another configuration, and with the grid that this one needs."""
    if ready.kernel == "fuse":
        pixels = _row(ready)
        again = repeats(pixels, config.block) if ready.constants["HOLD"] else 1
        arguments = {**ready.arguments, "repeat": again}
        count = ceil_div(pixels, again * config.block)
        return dataclasses.replace(ready, config=config, arguments=arguments, programs=count)
    return dataclasses.replace(ready, config=config, programs=programs(ready, config.block))


def programs(ready: Launch, block: int) -> int:
    """The grid for another block size: every kernel cuts a row into ⌈length / block⌉ blocks."""
    old = ready.config.block
    length = _row(ready)
    before, after = (_results(ready.kernel, size) for size in (old, block))
    return ready.programs // ceil_div(length, before) * ceil_div(length, after)


def _results(kernel: str, block: int) -> int:
    """How many results a block writes: some kernels also read pixels whose results another program writes."""
    if kernel in ("observe", "believe", "look"):
        return columns_of(block)
    return block - RIM if kernel == "refine_narrow" else block


def _row(ready: Launch) -> int:
    """How many pixels (of upsample_epilogue: values) are cut into blocks."""
    if ready.kernel in ("fuse", "posterior"):
        return int(ready.arguments["pixels"])
    if ready.kernel == "finish":
        return SCALE * int(ready.arguments["cols"])
    width = int(ready.arguments["width"])
    if ready.kernel in ("start", "settle"):
        return SCALE * width
    if ready.kernel == "upsample_epilogue":
        return width * 2 * int(ready.constants["C"])
    return width


_CHANNELS = {
    "fuse": ("CP", "AP"),
    "upsample_conv": ("KP",),
    "align": ("CP",),
    "refine": ("CP",),
    "refine_narrow": ("CP",),
    "posterior": ("HP",),
    "suggest": ("WP",),
}
"""The compile-time arguments of each kernel of which the largest is its channel count in the table."""


def channels_of(ready: Launch) -> int:
    """The channel count under which the table has the configuration of a launch."""
    c = ready.constants
    key = _CHANNELS.get(ready.kernel, ())
    return max((int(c[k]) for k in key), default=0)


@dataclasses.dataclass(frozen=True)
class LaunchTrial:
    """What came of one configuration of a launch. error: the largest difference from the right values, divided by the
    allowed one; None where it did not run. ms: its time in milliseconds, None where it is wrong or did not run.
    problem: what was wrong, in a few words."""

    ready: Launch
    error: float | None = None
    ms: float | None = None
    problem: str = ""


def trials(
    ready: Launch, configs: Iterable[Config], milliseconds: Callable[[Any], float]
) -> Iterator[LaunchTrial]:
    """Run a filled launch in each configuration: compare it with its definition first, and time it if it is right."""
    want = expected.expected(ready)
    for config in configs:
        trial = with_config(ready, config)
        try:
            error = expected.worst(trial, expected.run(trial), want)
        except Exception as refused:  # such as too little shared memory, or a compiler pass that fails
            yield LaunchTrial(trial, problem=f"does not run: {_first_line(refused)}")
            continue
        if not error <= 1:
            yield LaunchTrial(trial, error, problem=f"computes wrong values, {error:.3g} × what is allowed")
            continue
        yield LaunchTrial(trial, error, milliseconds(lambda trial=trial: launch.run(trial)))


def gpu_milliseconds(run: Callable[[], Any]) -> float:
    """Median time on the GPU of a few runs, since over a thousand are timed. The L2 cache is flushed before each."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=20, return_mode="median"))


Key = tuple[str, int, int, int]
"""(kernel, arch, channels, bucket of widths), as in table.measured."""

Rows = dict[Key, Config]


def by_key(launches: Iterable[tuple[int, Launch]], arch: int) -> dict[Key, list[Launch]]:
    """Group (width, meta launch) by the row of the table that holds their configuration; each launch occurs once.

    Launches of wide rows come first, since the finest scale of a tile has most of the pixels.
    """
    found: dict[Key, dict[str, Launch]] = {}
    for width, ready in sorted(launches, key=lambda pair: -pair[0]):
        key = ready.kernel, arch, channels_of(ready), bucket(width)
        found.setdefault(key, {}).setdefault(f"{width} {_without_config(ready).key}", ready)
    return {key: list(different.values()) for key, different in found.items()}


def _without_config(ready: Launch) -> Launch:
    return dataclasses.replace(ready, config=Config(0, 0))


def tune(
    launches: Iterable[tuple[int, Launch]],
    device: torch.device,
    seconds: float,
    say: Callable[[str], None],
    milliseconds: Callable[[Any], float] = gpu_milliseconds,
) -> dict[Key, Config | None]:
    """Find the best configuration for each row of the table that the launches, (width, meta launch), need.

    A row's configuration is None where none is right in all launches of the row. Rows for which the seconds did not
    suffice are left out. `say` gets a line for each row, for each configuration that computes wrong values, and for
    rows that are left out.
    """
    until = time.monotonic() + seconds
    arch = launch.arch_of(device)
    work = by_key(launches, arch)
    every = (ready for group in work.values() for ready in group)
    compile_all((with_config(ready, config) for ready in every for config in candidates(ready.kernel)), arch)
    rows: dict[Key, Config | None] = {}
    for done, (key, group) in enumerate(work.items()):
        try:
            total = _totals(group, device, until, say, milliseconds)
        except torch.OutOfMemoryError:  # the definition needs more memory than its kernel
            say(f"warning: {key} is left out: this GPU has too little memory to check it")
            continue
        if total is None:
            say(
                f"no time was left for {len(work) - done} of {len(work)} rows of the table: give more --seconds"
            )
            break
        rows[key] = min(total, key=lambda config: total[config], default=None)
        say(f"{key}: {_outcome(rows[key], total, len(group))}")
    return rows


def _totals(
    group: list[Launch],
    device: torch.device,
    until: float,
    say: Callable[[str], None],
    milliseconds: Callable[[Any], float],
) -> dict[Config, float] | None:
    """The milliseconds of all launches of a row together, for each configuration that is right in all of them.

    Returns None if the time ends before all launches were tried, since a configuration for several launches must not be
    chosen by some of them. Raises OutOfMemoryError where the device cannot hold what a launch is compared with.
    """
    total = dict.fromkeys(candidates(group[0].kernel), 0.0)
    for ready in group:
        if time.monotonic() > until:
            return None
        found = list(trials(expected.filled(ready, str(device)), total, milliseconds))
        for trial in found:
            if trial.error is not None and trial.ms is None:
                say(f"warning: {trial.ready.key} {trial.problem}")
        total = {t.ready.config: total[t.ready.config] + t.ms for t in found if t.ms is not None}
    return total


def _outcome(config: Config | None, total: dict[Config, float], launches: int) -> str:
    if config is None:
        return f"no configuration is right in all {launches} launches"
    return f"{config}, {total[config]:.4f} ms in {launches} launches"


def merged(old: Rows, found: dict[Key, Config | None]) -> Rows:
    """The old table, updated by what was found. Rows without a right configuration go; rows not reached stay."""
    kept = {key: config for key, config in old.items() if key not in found}
    return kept | {key: config for key, config in found.items() if config is not None}


def write(rows: Rows, file: Path) -> None:
    """Write rows as table.measured reads them."""
    file.write_text(json.dumps([_json(key, config) for key, config in sorted(rows.items())], indent=1))


def _json(key: tuple[str, int, int, int], config: Config) -> dict[str, Any]:
    return dict(zip(("kernel", "arch", "channels", "bucket"), key, strict=True)) | dataclasses.asdict(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
