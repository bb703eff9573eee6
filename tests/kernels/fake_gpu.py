"""A network on "cuda" without a GPU: fake tensors, and the only part of CUDA that is missing in a build for CPUs."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

DEVICE = "cuda:0"
_CUDA, _META = 1, 14
"""Indices of devices in PyTorch's list of device guards."""


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Inside this context tensors are fake and may be on "cuda". They have shapes and layouts, but no values.

    Slicing needs a guard that makes a CUDA device the current one, even for fake tensors. A build for CPUs has none,
    and that of a build with CUDA asks the driver, which may be missing. The guard of "meta", which does nothing, is
    used.
    Deterministic mode, which fills memory in these tests, is off as in the engine: with it PyTorch 2.11 pads in Python
    on CUDA, by a module that it imports as it goes, which Dynamo does not trace.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    try:
        guards = (ctypes.c_void_p * 16).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except ValueError:
        pytest.skip("this PyTorch keeps its device guards elsewhere")
    before, deterministic = guards[_CUDA], torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    guards[_CUDA] = guards[_META]
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        guards[_CUDA] = before
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def moved(model: nn.Module) -> nn.Module:
    """The model with fake weights and buffers on DEVICE, as they lie in memory. Inside `fake_cuda`."""

    def fake(t: Tensor) -> Tensor:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE)

    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(fake(weight), requires_grad=False)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = fake(buffer)
    return model
