"""Times of each op and of the whole network on a GPU: eager, torch.compile and kernels, beside the copy bandwidth.

python -m bench.gpu_measure --out FILE.json [--side LR_PIXELS] [--presets tiny,base] [--dtypes fp32,fp16,bf16]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.traffic import fuse, network, upsample
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
    sampled = (r(1, 10, hr, hr), None, None, None, r(1, 2, side, side).float())
    yield "align", kernels.align, sampled, 20 * size * pixels
    level = r(1, 1, hr // 2, hr // 2).float()
    heads = (r(1, c, 1, 1), r(1), r(c), [r(c, c, 3, 3)], [r(c)], r(1, c, 1, 1), r(1))
    yield "refine", kernels.refine, (r(1, c, hr, hr), level, *heads), (c * size + 9) * pixels


def compare(
    op: Callable[..., Any], args: tuple[Any, ...], moved: float, bandwidth: float
) -> dict[str, float]:
    """Times in ms of the three ways, and what share of the copy bandwidth the kernel reaches."""

    def reference() -> Any:
        return op(*args, implementation="reference")

    compiled = torch.compile(reference, mode="max-autotune-no-cudagraphs")
    ours = milliseconds(lambda: op(*args, implementation="triton"))
    row = {"eager_ms": milliseconds(reference), "compile_ms": milliseconds(compiled), "kernel_ms": ours}
    return row | {"bytes": moved, "share_of_copy": moved / (ours * 1e-3) / bandwidth}


def network_times(preset: str, dtype: torch.dtype, side: int) -> dict[str, float]:
    """Times in ms of DeepLightSR.forward on one tile with the references (eager, compiled) and with the kernels."""
    from deeplight.engine.spec import INPUTS, input_shape
    from deeplight.kernels import dispatch
    from deeplight.train.config import PRESETS as CONFIGS
    from deeplight.train.model import DeepLightSR

    model = DeepLightSR(CONFIGS[preset]).eval().to("cuda", dtype, memory_format=torch.channels_last)
    inputs = [torch.rand(input_shape(spec, 1, side, side), device="cuda", dtype=dtype) for spec in INPUTS]
    choose = dispatch.use_kernel
    times: dict[str, float] = {}
    with torch.no_grad():
        times["kernel_ms"] = milliseconds(lambda: model(*inputs))
        with_kernels = _compiled(model)
        times["kernel_compile_ms"] = milliseconds(lambda: with_kernels(*inputs))
        dispatch.use_kernel = lambda *args, **kwargs: False
        try:
            times["eager_ms"] = milliseconds(lambda: model(*inputs))
            without = _compiled(model)
            times["compile_ms"] = milliseconds(lambda: without(*inputs))
        finally:
            dispatch.use_kernel = choose
    return times


def _compiled(model: torch.nn.Module) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(model, mode="max-autotune-no-cudagraphs")


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
            moved = network(preset)["network"].fused * DTYPES[name].itemsize * pixels
            rate = pixels / times["kernel_ms"] / 1e3
            rows.append({"op": "network", **where, **times, "bytes": moved, "hr_mpix_per_s": rate})
            print(rows[-1], flush=True)
            options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
