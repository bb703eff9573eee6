"""Times of each op and of the whole network on a GPU: eager, torch.compile and kernels, beside the copy bandwidth.

python -m bench.gpu_measure --out FILE.json [--side LR_PIXELS] [--presets tiny,base] [--dtypes fp32,fp16,bf16]

writes FILE.json and the same as a table, FILE.md.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.traffic import fuse, network_bytes, upsample
from deeplight import kernels
from deeplight.kernels.variants import DTYPES, PRESETS

Run = Callable[[], Any]
Case = tuple[str, Callable[..., Any], tuple[Any, ...], float]


def milliseconds(run: Run) -> float:
    """Median time on the GPU, the L2 cache flushed before each run."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=50, rep=300, return_mode="median"))


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a device-to-device copy of 2 GiB."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) * 1e-3)


def op_cases(preset: str, dtype: torch.dtype, side: int, device: str) -> Iterator[Case]:
    """(name, op, arguments, bytes that the kernel has to move) at ×8 for `side` LR pixels."""
    main, aux = PRESETS[preset]
    hr, c, a, k = 8 * side, main[3], aux[3], main[2]

    def r(*shape: int) -> Tensor:
        x = torch.randn(shape, device=device, dtype=dtype) * 0.2
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    pixels, size = float(hr * hr), dtype.itemsize
    mask = torch.ones(1, 1, hr, hr, device=device, dtype=dtype)
    weights = (r(2, a), r(2, c), r(2), r(2 * c, a), r(2 * c))
    features = (r(1, a, hr, hr), r(1, a, hr, hr))
    yield (
        "fuse",
        kernels.fuse,
        (r(1, c, hr, hr), features, (mask, mask), *weights),
        fuse(c, a).fused * size * pixels,
    )
    coarse = r(1, k, hr // 2, hr // 2)
    moved = upsample(k, c).fused * size * pixels / 4
    yield "upsample", kernels.upsample, (coarse, r(4 * c, k, 3, 3), r(4 * c)), moved
    offset = r(1, 2, side, side).float()
    yield "align", kernels.align, (r(1, 10, hr, hr), None, None, None, offset), 20 * size * pixels
    pixels_in, where = raw_pixels(side, device)
    raw_align = functools.partial(kernels.align, **where, size=(hr, hr), dtype=dtype)
    yield "align_raw", raw_align, (*pixels_in, offset), (8 * 2 + 1 + 8 * size) * pixels
    level = r(1, 1, hr // 2, hr // 2).float()
    heads = (r(1, c, 1, 1), r(1), r(c), [r(c, c, 3, 3)], [r(c)], r(1, c, 1, 1), r(1))
    yield "refine", kernels.refine, (r(1, c, hr, hr), level, *heads), (c * size + 9) * pixels


def raw_pixels(side: int, device: str) -> tuple[tuple[Tensor, ...], dict[str, kernels.Mesh]]:
    """Raw, gain, bias, mask and mesh of eight bands of uint16 on a grid of their own, turned by a tenth of a radian."""
    hr = 8 * side
    raw = torch.randint(0, 10000, (1, 8, hr, hr), device=device, dtype=torch.int32).to(torch.uint16)
    i = torch.arange(hr // 32 + 2, dtype=torch.float64) * 32
    rows, cols = i[:, None] + 0.1 * i[None, :], i[None, :] - 0.1 * i[:, None]
    whole, fraction = kernels.split_nodes(torch.stack([rows, cols])[None])
    mesh = kernels.Mesh(whole.to(device), fraction.to(device), 0, 0, 32)
    gain, bias = torch.full((1, 7), 1e-3, device=device), torch.full((1, 7), -1.0, device=device)
    mask = torch.ones(1, 1, hr, hr, device=device, dtype=torch.uint8)
    return (raw.contiguous(memory_format=torch.channels_last), gain, bias, mask), {"mesh": mesh}


def compare(
    op: Callable[..., Any], args: tuple[Any, ...], moved: float, bandwidth: float
) -> dict[str, float]:
    """Times in ms of the three ways, and what share of the copy bandwidth the kernel reaches."""

    def reference() -> Any:
        return op(*args, implementation="reference")

    compiled = _compiled(reference, "max-autotune-no-cudagraphs")
    ours = milliseconds(lambda: op(*args, implementation="triton"))
    row = {"eager_ms": milliseconds(reference), "compile_ms": milliseconds(compiled), "kernel_ms": ours}
    return row | {"bytes": moved, "share_of_copy": moved / (ours * 1e-3) / bandwidth}


def network_times(preset: str, dtype: torch.dtype, side: int) -> dict[str, float]:
    """Times in ms of DeepLightSR.forward on one tile with the references (eager, compiled) and with the kernels."""
    from deeplight.engine.core.spec import INPUTS, input_shape
    from deeplight.engine.network.config import PRESETS as CONFIGS
    from deeplight.engine.network.model import DeepLightSR
    from deeplight.kernels import dispatch

    model = DeepLightSR(CONFIGS[preset]).eval().to("cuda", dtype, memory_format=torch.channels_last)
    inputs = [channels_last_rand(input_shape(spec, 1, side, side), dtype) for spec in INPUTS]
    choose = dispatch.use_kernel
    times: dict[str, float] = {}
    with torch.no_grad():
        times["kernel_ms"] = milliseconds(lambda: model(*inputs))
        with_kernels = _compiled(model, "max-autotune")
        times["kernel_compile_ms"] = milliseconds(lambda: with_kernels(*inputs))
        dispatch.use_kernel = lambda *args, **kwargs: False
        try:
            times["eager_ms"] = milliseconds(lambda: model(*inputs))
            without = _compiled(model, "max-autotune")
            times["compile_ms"] = milliseconds(lambda: without(*inputs))
        finally:
            dispatch.use_kernel = choose
    return times


def channels_last_rand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform values whose strides are channels-last even of one channel, so that joining them keeps the order."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, device="cuda", dtype=dtype, memory_format=layout).uniform_()


def _compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    # else the cache of the last case counts towards the limit of recompilations, after which code runs uncompiled
    torch.compiler.reset()
    return torch.compile(function, mode=mode, fullgraph=True)


HEADER = (
    "op",
    "preset",
    "type",
    "eager",
    "torch.compile",
    "kernels",
    "both",
    "× compile",
    "of copy",
    "HR Mpix/s",
)


def table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown; times in ms. kernels: called from Python; both: within torch.compile (the network alone)."""
    lines = [
        f"{facts['gpu']}, PyTorch {facts['torch']}, copy {facts['copy_bytes_per_s'] / 1e12:.2f} TB/s. Times in ms.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
    ]
    for row in rows:
        best = min(row["kernel_ms"], row.get("kernel_compile_ms", row["kernel_ms"]))
        both = f"{row['kernel_compile_ms']:.3f}" if "kernel_compile_ms" in row else ""
        rate = f"{row['hr_mpix_per_s']:.0f}" if "hr_mpix_per_s" in row else ""
        times = [f"{row[name]:.3f}" for name in ("eager_ms", "compile_ms", "kernel_ms")]
        ratios = [f"{row['compile_ms'] / best:.2f}", f"{100 * row['share_of_copy']:.0f} %"]
        cells = [row["op"], row["preset"], row["dtype"], *times, both, *ratios, rate]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU to measure on")
    bandwidth = copy_bandwidth()
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bytes_per_s": bandwidth}
    rows: list[dict[str, Any]] = []
    for preset in options.presets.split(","):
        for name in options.dtypes.split(","):
            where = {"preset": preset, "dtype": name, "side": options.side}
            for op, call, args, moved in op_cases(preset, DTYPES[name], options.side, "cuda"):
                rows.append({"op": op, **where, **compare(call, args, moved, bandwidth)})
                print(rows[-1], flush=True)
            times = network_times(preset, DTYPES[name], options.side)
            pixels = (8 * options.side) ** 2
            moved = network_bytes(preset, DTYPES[name].itemsize) * pixels
            seconds = 1e-3 * min(times["kernel_ms"], times["kernel_compile_ms"])
            rates = {"share_of_copy": moved / seconds / bandwidth, "hr_mpix_per_s": pixels / seconds / 1e6}
            rows.append({"op": "network", **where, **times, "bytes": moved, **rates})
            print(rows[-1], flush=True)
            options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))
            options.out.with_suffix(".md").write_text(table(facts, rows))
    print(table(facts, rows))


if __name__ == "__main__":
    main()
