"""The quickened interpreter still refuses what the interpreter refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeplight.kernels import launch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def _combined(out: Any, x: Any, y: Any, HOW: tl.constexpr) -> None:
    if HOW == "add":
        value = x + y
    elif HOW == "sub":
        value = x - y
    else:
        value = x * y
    tl.store(out, value)


@pytest.mark.parametrize(
    ("how", "x", "y"), [("add", 2**31 - 1, 1), ("sub", -(2**31), 1), ("mul", 2**16, 2**15)]
)
def test_integers_that_overflow_are_refused(how: str, x: int, y: int) -> None:
    if not launch.interpreting():
        pytest.skip("the interpreter is off where there is a GPU")
    out = torch.zeros(1, dtype=torch.int32)
    _combined[(1,)](out, x - (how == "add"), y - (how != "add"), how)
    assert out.item() == {"add": 2**31 - 1, "sub": -(2**31), "mul": 2**16 * (2**15 - 1)}[how], (
        "the most that fits"
    )
    with pytest.raises(Exception, match="overflow"):
        _combined[(1,)](out, x, y, how)
