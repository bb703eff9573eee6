"""Compile kernels on all CPU cores into Triton's cache, where the JIT finds them later. No GPU is needed.

The work is divided among processes, since Triton's compiler holds Python's global lock most of the time.
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
    """One program to compile: a kernel, its run-time arguments in order (tensors as element types), and its options."""

    kernel: str
    arguments: tuple[Value, ...]
    options: tuple[tuple[str, int | float | bool | str], ...]


class Driver:
    """Stands for a GPU's driver, which Triton asks before it compiles. Its compute capability is arch / 10."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        """The first device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> Any:
        """The architecture, with 32 threads a warp."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)


def compile_all(launches: Iterable[Launch], arch: int, jobs: int | None = None) -> list[str]:
    """Compile launches for compute capability arch / 10 into Triton's cache. Their tensors may be meta tensors.

    The memory of all arguments is assumed to start on 16-byte boundaries. jobs: number of processes, by default one for
    each core that this process may use. Returns a line for each program that does not compile. Where Triton is missing,
    or its interpreter is switched on, nothing is done.
    """
    if launching.interpreting() or not launching.TRITON:
        return []
    orders = list(dict.fromkeys(map(_order, launches)))
    with ProcessPoolExecutor(
        jobs or len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    ) as pool:
        failed = pool.map(_compile, orders, [arch] * len(orders))
        return [line for line in failed if line]


def _order(launch: Launch) -> _Order:
    values = launch.arguments.values()
    kinds = tuple(value.dtype if isinstance(value, Tensor) else _like(value) for value in values)
    config = {"num_warps": launch.config.warps, "num_stages": launch.config.stages}
    return _Order(launch.kernel, kinds, tuple((launch.compile_time | config).items()))


def _like(value: int | float) -> int | float:
    """A number for which Triton makes the same code: it only distinguishes 1 and multiples of 16 from others."""
    if isinstance(value, float):
        return 0.0
    return value if value == 1 else 16 if value % 16 == 0 else 3


def _compile(order: _Order, arch: int) -> str:
    from triton.runtime.driver import driver

    driver.set_active(Driver(arch))
    try:
        device_function(order.kernel).warmup(*order.arguments, grid=(1,), **dict(order.options))
    except Exception as error:  # the passes of the compiler raise exceptions of any class
        return (
            f"{order.kernel} {dict(order.options)}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        )
    return ""
