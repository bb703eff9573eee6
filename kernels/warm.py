"""Fill Triton's cache on all cores, in processes that need no GPU, so that the JIT finds what it would compile.

Processes, since Triton's compiler holds Python's lock most of the time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import launch as launching
from deeplight.kernels.launch import Launch, device_function

Value = torch.dtype | int | float


@dataclass(frozen=True)
class _Order:
    """One program: the kernel's run-time arguments in its order, tensors as element types, and its options."""

    kernel: str
    arguments: tuple[Value, ...]
    options: tuple[tuple[str, int | float | bool | str], ...]


class Driver:
    """What Triton asks of a GPU's driver before it compiles, for a compute capability of arch / 10."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> Any:
        """The architecture, with 32 threads a warp."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)


def compile_all(launches: Iterable[Launch], arch: int, jobs: int | None = None) -> list[str]:
    """Compile launches, on meta tensors or others, for compute capability arch / 10 into Triton's cache.

    Assumes memory on 16-byte boundaries. jobs: processes, by default one a core. Returns a line for each program that
    does not compile. Nothing happens in the interpreter and without Triton.
    """
    if launching.interpreting() or not launching.TRITON:
        return []
    orders = list(dict.fromkeys(map(_order, launches)))
    with ProcessPoolExecutor(jobs or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        failed = pool.map(_compile, orders, [arch] * len(orders))
        return [line for line in failed if line]


def _order(launch: Launch) -> _Order:
    values = launch.arguments.values()
    kinds = tuple(value.dtype if isinstance(value, Tensor) else _like(value) for value in values)
    config = {"num_warps": launch.config.warps, "num_stages": launch.config.stages}
    return _Order(launch.kernel, kinds, tuple((launch.compile_time | config).items()))


def _like(value: int | float) -> int | float:
    """A number for which Triton makes the same code: it looks at 1 and at divisibility by 16 alone."""
    if isinstance(value, float):
        return 0.0
    return value if value == 1 else 16 if value % 16 == 0 else 3


def _compile(order: _Order, arch: int) -> str:
    from triton.runtime.driver import driver

    driver.set_active(Driver(arch))
    try:
        device_function(order.kernel).warmup(*order.arguments, grid=(1,), **dict(order.options))
    except Exception as error:  # Triton raises whatever its passes raise
        return (
            f"{order.kernel} {dict(order.options)}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        )
    return ""
