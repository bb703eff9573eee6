"""Choice of the implementation of an operation: by explicit argument, by device and by whether a graph is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling, is_exporting

from deeplight.kernels import launch

Implementation = Literal["auto", "triton", "reference"]
""""auto" takes the kernel for CUDA tensors. It takes the reference on other devices, during an export, for arguments
beyond the kernel's limits, and where a gradient is needed that the kernel does not have. "triton" takes the kernel or
raises an error. "reference" takes plain PyTorch."""

CHOICES = ("auto", "triton", "reference")
ACTIVATIONS = (torch.float32, torch.float16, torch.bfloat16)
RAW = (torch.uint8, torch.uint16, torch.int16)
"""Element types of pixels as they are in files, beside those."""


_emitting = 0
"""How many `emit_operators` contexts are open. This is a plain number because Dynamo, which cannot trace a ContextVar,
reads it."""


@contextlib.contextmanager
def emit_operators() -> Iterator[None]:
    """Inside this context torch.export traces "auto" as the operators deeplight::…, not as their decompositions.

    The context applies to the whole process, as the state of torch.export itself does.
    """
    global _emitting
    _emitting += 1
    try:
        yield
    finally:
        _emitting -= 1


def exporting() -> bool:
    """Whether torch.export is tracing the caller with strict=False.

    strict=True traces through Dynamo, which cannot be distinguished from torch.compile here. is_exporting() alone does
    not suffice: under the Dynamo of PyTorch 2.11 it is True during torch.compile as well.
    """
    return not is_dynamo_compiling() and is_exporting()


# A ContextVar, so that each thread has its own value. Only the bodies of operators read it, which no tracer enters.
_INTERPRETED = ContextVar("interpreted", default=True)


@contextlib.contextmanager
def never_interpreted() -> Iterator[None]:
    """Inside this context the operators run their reference on the CPU even where Triton's interpreter is switched on.

    This is for whole networks. The interpreter is made to check kernels on small cases; a tile would take it minutes.
    """
    token = _INTERPRETED.set(False)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def kernel_runs_on(device: torch.device) -> bool:
    """Return whether the kernels can run on a device: Triton on CUDA, the interpreter on the CPU."""
    if device.type == "cuda":
        return launch.TRITON
    return device.type == "cpu" and launch.interpreting()


def operator_runs_kernel(device: torch.device) -> bool:
    """Whether an operator's body launches its kernel: `kernel_runs_on`, unless inside `never_interpreted`."""
    return kernel_runs_on(device) and (device.type != "cpu" or _INTERPRETED.get())


def use_kernel(
    op: str,
    implementation: Implementation,
    tensors: Sequence[Tensor | None],
    *,
    differentiable: bool,
    limit: str | None = None,
    exported: bool = True,
) -> bool:
    """Return True for the Triton kernel, False for the reference. The device is that of tensors[0].

    differentiable: whether the kernel has a gradient. exported: whether the operator may be part of an exported graph;
    where it may not, "auto" traces the reference. limit: a sentence about what the kernel requires and these arguments
    do not meet ("the kernel takes …, not …"); None where the kernel can compute them.

    Raises ValueError for an unknown implementation, and where "triton" cannot compute what is asked.
    """
    if implementation not in CHOICES:
        raise ValueError(f"{op}: implementation must be one of {', '.join(CHOICES)}, not {implementation!r}")
    if implementation == "reference":
        return False
    given = [t for t in tensors if t is not None]
    device = given[0].device
    tracked = not differentiable and torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if implementation == "auto":
        if exporting():
            return exported and _emitting > 0
        wanted = device.type == "cuda" and kernel_runs_on(device) and supported(given[0].dtype)
        return wanted and limit is None and not tracked
    if limit is not None:
        raise ValueError(f"{op}: {limit}")
    if tracked:
        raise ValueError(
            f"{op}: the kernel has no gradient; use implementation='reference' or torch.no_grad()"
        )
    if not exporting() and not kernel_runs_on(device):
        raise ValueError(
            f"{op}: implementation 'triton' needs CUDA tensors and Triton (or TRITON_INTERPRET=1 on the CPU); "
            f"these are on {device} and Triton is {'' if launch.TRITON else 'not '}installed"
        )
    return True


def supported(dtype: torch.dtype) -> bool:
    """Return whether the kernels read features or raw pixels of this element type."""
    return dtype in (*ACTIVATIONS, *RAW)


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int | None]) -> None:
    """Raise ValueError unless the tensor has the expected shape; an axis given as None may have any length."""
    if exporting():
        return  # comparing symbolic sizes would make them constants
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        want is not None and got != want for got, want in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{op}: {name} must have shape ({wanted}), not {shape}")


def check_dtype(op: str, name: str, tensor: Tensor, accepted: Iterable[torch.dtype]) -> None:
    """Raise ValueError unless the element type is one of `accepted`."""
    accepted = tuple(accepted)
    if tensor.dtype not in accepted:
        names = ", ".join(str(d).removeprefix("torch.") for d in accepted)
        raise ValueError(f"{op}: {name} must be {names}, not {str(tensor.dtype).removeprefix('torch.')}")


def check_together(op: str, tensors: dict[str, Tensor | None], *, dtype: bool = True) -> None:
    """Raise ValueError unless all tensors are on the device of the first and, with `dtype`, have its element type."""
    items = [(name, t) for name, t in tensors.items() if t is not None]
    first_name, first = items[0]
    for name, t in items[1:]:
        if t.device != first.device:
            raise ValueError(f"{op}: {name} is on {t.device}, {first_name} on {first.device}")
        if dtype and t.dtype != first.dtype:
            raise ValueError(f"{op}: {name} is {t.dtype}, {first_name} is {first.dtype}")
