"""Measure launch configurations on this machine's GPU and write them to measured.json:

    python -m deeplight.kernels.tune [--preset tiny|base] [--dtype fp16|bf16]

Needs a CUDA GPU and Triton. Rows of other architectures in the file are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import launch
from deeplight.kernels.launch import Launch, ceil_div
from deeplight.kernels.table import BUCKETS, MEASURED_FILE, Config, bucket, measured
from deeplight.kernels.variants import DTYPES, PRESETS, variants

BLOCKS, WARPS, STAGES = (32, 64, 128, 256), (4, 8), (2, 3)
VALUE_BLOCKS = (1024, 2048, 4096)
"""For upsample_epilogue, whose blocks are values."""


def candidates(kernel: str) -> list[Config]:
    """The configurations that are tried."""
    blocks = VALUE_BLOCKS if kernel == "upsample_epilogue" else BLOCKS
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


def filled(ready: Launch) -> Launch:
    """The launch with memory on the GPU in place of meta tensors: zeros, so that gathers stay inside."""
    arguments = {
        k: torch.zeros_like(v, device="cuda") if isinstance(v, Tensor) else v
        for k, v in ready.arguments.items()
    }
    return dataclasses.replace(ready, arguments=arguments)


def best(ready: Launch) -> tuple[Config, float]:
    """The fastest configuration and its time in ms; those that do not compile or do not fit are passed over."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times: dict[Config, float] = {}
    for config in candidates(ready.kernel):
        trial = with_config(ready, config)
        try:
            times[config] = float(do_bench(lambda trial=trial: launch.run(trial)))
        except (OutOfResources, CompilationError):
            continue
    return min(times.items(), key=lambda item: item[1])


def main(argv: list[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m deeplight.kernels.tune", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU to measure on")
    arch = launch.arch_of(torch.device("cuda", torch.cuda.current_device()))
    rows: dict[tuple[str, int, int, int], Config] = dict(measured())
    for width in BUCKETS:
        for ready in variants(options.preset, DTYPES[options.dtype], side=width):
            config, ms = best(filled(ready))
            rows[ready.kernel, arch, channels_of(ready), bucket(width)] = config
            print(f"{ready.key} at width {width}: {config}, {ms:.4f} ms")
    MEASURED_FILE.write_text(
        json.dumps([_json(key, config) for key, config in sorted(rows.items())], indent=1)
    )


def _json(key: tuple[str, int, int, int], config: Config) -> dict[str, Any]:
    return dict(zip(("kernel", "arch", "channels", "bucket"), key, strict=True)) | dataclasses.asdict(config)


if __name__ == "__main__":
    main()
