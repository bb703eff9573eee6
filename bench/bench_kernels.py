"""Each operation of the network in plain PyTorch, with torch.compile and, if there is a GPU, as a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.ops import Case, op_cases
from bench.rates import Work, hr_mpix
from bench.traffic import FINISH_FLOPS, align, base, fuse, last_step, locate, restore, suggested, upsample
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.network.config import PRESETS

PRESET = "tiny"
SIDE = 64
OPS = ("fuse", "upsample", "align", "align_raw", "base", "restore", "finish", "suggest", "locate", "settle")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def flops_per_hr_px(op: str) -> float:
    """Numbers from the table of docs/kernels.md."""
    config = PRESETS[PRESET]
    main, aux = config.main, config.aux
    costs = {
        "fuse": fuse(main[2], aux[2]).flops / 4,
        "upsample": upsample(main[2], main[3]).flops / 4,
        "align": align().flops,
        "align_raw": align().flops,
        "base": base().flops,
        "restore": restore(main[3], config.refine[2]).flops,
        "finish": FINISH_FLOPS,
        "suggest": suggested(config.localise_width).flops,
        "locate": locate(config.localise_width).flops,
        "settle": last_step().flops,
    }
    return costs[op]


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """The operations, with arguments that are the same for all variants and laps."""
    torch.manual_seed(0)
    return {case[0]: case for case in op_cases(PRESET, torch.float32, SIDE, DEVICE)}


@pytest.fixture(scope="session")
def compiled() -> Callable[[Case], Callable[[], Any]]:
    """The reference, compiled once by torch.compile."""
    made: dict[str, Callable[[], Any]] = {}

    def of(case: Case) -> Callable[[], Any]:
        name, op, args, _ = case
        if name not in made:
            made[name] = torch.compile(lambda: op(*args, implementation="reference"), dynamic=False)
        return made[name]

    return of


def synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    """Make the call and wait until a GPU has finished it."""

    def run() -> Any:
        with torch.inference_mode():
            result = call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
        return result

    return run


def first(result: Any) -> Tensor:
    """The main output of an operation."""
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.benchmark(group="kernels")
@pytest.mark.parametrize("variant", ["reference", "compiled", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_kernel(
    measure: Measure,
    cases: dict[str, Case],
    compiled: Callable[[Case], Callable[[], Any]],
    op: str,
    variant: str,
) -> None:
    name, call, args, moved = cases[op]
    if variant == "triton" and DEVICE == "cpu":
        pytest.skip("no GPU, so no Triton kernels")
    chosen = {
        "reference": lambda: call(*args, implementation="reference"),
        "compiled": lambda: compiled(cases[op])(),
        "triton": lambda: call(*args, implementation="triton"),
    }[variant]
    want = first(synchronised(lambda: call(*args, implementation="reference"))())

    def check(result: Any) -> None:
        # float32 sums have other orders, and on a GPU products are three TF32 products
        torch.testing.assert_close(
            first(result), want, rtol=1e-4, atol=1e-4 * float(want.float().abs().max())
        )

    mpix = hr_mpix(1, SIDE)
    threads = available_cpus()
    flops = flops_per_hr_px(name) * mpix * 1e6
    limit = "copy" if DEVICE == "cpu" else ""
    work = Work(f"kernel {name}", variant, mpix, flops, moved, limit, threads=threads, tile=SIDE)
    measure(synchronised(chosen), check, work, rounds=5)
