"""Comparing a kernel with its reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplight.kernels.expected import TOLERANCE
from deeplight.kernels.launch import UNALIGNED, Launch


def assert_close(name: str, got: Tensor, want: Tensor, *, times: float = 1.0) -> None:
    """Same shape, finite, and within TOLERANCE of got's dtype times the largest value. `want` is float64."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert torch.isfinite(got).all(), f"{name}: {int((~torch.isfinite(got)).sum())} values are not finite"
    error = (got.double().cpu() - want.double().cpu()).abs().max() if got.numel() else torch.tensor(0.0)
    limit = times * TOLERANCE.get(got.dtype, 5e-6) * max(1.0, float(want.abs().max()))
    assert error <= limit, f"{name}: differs by {float(error):.3g}, allowed {limit:.3g}"


def doubled(x: object) -> object:
    """Every tensor, also in lists, as float64 on the CPU, without history."""
    if isinstance(x, Tensor):
        return x.detach().cpu().double() if x.dtype.is_floating_point else x.detach().cpu()
    return [doubled(y) for y in x] if isinstance(x, list | tuple) else x


def off_boundary(x: Tensor) -> Tensor:
    """The same values in memory that starts beside a 16-byte boundary, as views of flat parameters do."""
    moved = torch.cat([torch.zeros(1, dtype=x.dtype), x.flatten()])[1:].view_as(x)
    assert moved.data_ptr() % 16
    return moved


def assert_on_boundary(launches: list[Launch]) -> None:
    """One launch, whose memory starts where the machine code expects it."""
    (only,) = launches
    for name, argument in only.arguments.items():
        if isinstance(argument, Tensor) and name not in UNALIGNED:
            assert argument.data_ptr() % 16 == 0, name
