"""One launch of a kernel as data. Triton's JIT and the reports on compiled code both start from it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels.table import Config

UNALIGNED = frozenset({"mask0", "mask1", "mask", "valid"})
"""Arguments whose memory may start at any address; that of all others starts at a multiple of 16 bytes."""

MODULES = {
    "fuse": "fuse",
    "upsample_epilogue": "upsample",
    "upsample_conv": "upsample",
    "align": "align",
    "refine": "refine",
    "refine_narrow": "refine",
    "finish": "finish",
    "residuals": "locate",
    "posterior": "locate",
    "suggest": "suggest",
    "observe": "agree",
    "start": "agree",
    "believe": "settle",
    "look": "settle",
    "decide": "settle",
    "settle": "settle",
}
"""The folder of each kernel in deeplight.kernels."""

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint16: "u16",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "u8",
}
"""Triton's names of element types."""


@dataclass(frozen=True)
class Launch:
    """kernel: a key of MODULES. programs: the size of the grid, which has one axis. arguments: run-time arguments in
    the kernel's order; an int becomes int32, a float float32. constants: compile-time arguments without BLOCK, which
    `config` holds."""

    kernel: str
    programs: int
    arguments: Mapping[str, Tensor | int | float]
    constants: Mapping[str, int | float | bool | str]
    config: Config

    @property
    def compile_time(self) -> dict[str, int | float | bool | str]:
        """All compile-time arguments."""
        return {**self.constants, "BLOCK": self.config.block}

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of every run-time argument, in order."""
        return {name: _type(value) for name, value in self.arguments.items()}

    @property
    def key(self) -> str:
        """A name for one compiled variant, made of kernel, element types, compile-time arguments and warps."""
        types = ",".join(t.lstrip("*") for t in self.signature.values() if t.startswith("*"))
        constants = ",".join(f"{k}={v}" for k, v in self.compile_time.items())
        return f"{self.kernel}({types};{constants};warps={self.config.warps})"


def _type(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def device_function(kernel: str) -> Any:
    """The Triton function of a kernel (imports Triton)."""
    return getattr(importlib.import_module(f"deeplight.kernels.{MODULES[kernel]}.kernel"), kernel)


def run(launch: Launch) -> None:
    """Launch the kernel on the current stream of the arguments' device. With an empty grid nothing is launched."""
    if launch.programs == 0:
        return
    function = device_function(launch.kernel)
    config = launch.config
    first = next(v for v in launch.arguments.values() if isinstance(v, Tensor))
    with torch.cuda.device(first.device if first.is_cuda else -1):
        function[(launch.programs,)](
            **launch.arguments, **launch.compile_time, num_warps=config.warps, num_stages=config.stages
        )


def arch_of(device: torch.device) -> int:
    """Compute capability as one number (90 for 9.0) for the table of configurations; 0 for a device without one."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def next_power(n: int, least: int = 16) -> int:
    """The smallest power of two ≥ n and ≥ least. tl.dot needs at least 16."""
    return max(least, 1 << (n - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉."""
    return -(-a // b)


TRITON = importlib.util.find_spec("triton") is not None
"""Whether `import triton` would work."""


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1" and TRITON


def dot_precision(dtype: torch.dtype) -> str:
    """The PRECISION of deeplight.kernels.dot.dot for an element type: three TF32 products keep float32's accuracy."""
    if dtype == torch.bfloat16 and interpreting():
        return "upcast"
    return "tf32x3" if dtype == torch.float32 else "ieee"


def channels_last(x: Tensor) -> Tensor:
    """`x` in channels-last memory that starts on a 16-byte boundary: itself where it is so already, else a copy."""
    x = x.contiguous(memory_format=torch.channels_last)
    return x if _on_boundary(x) else x.clone(memory_format=torch.channels_last)


def ready(x: Tensor) -> Tensor:
    """`x` in contiguous memory that starts on a 16-byte boundary: itself where it is so already, else a copy."""
    x = x.contiguous()
    return x if _on_boundary(x) else x.clone()


def _on_boundary(x: Tensor) -> bool:
    return x.device.type == "meta" or x.data_ptr() % 16 == 0


def like_channels_last(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised channels-last tensor on the device of `x`, with its dtype unless another is given."""
    return torch.empty(shape, device=x.device, dtype=dtype or x.dtype, memory_format=torch.channels_last)
