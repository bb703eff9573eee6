"""Kernels run in Triton's interpreter, or compiled where there is a GPU; memory that nobody wrote holds NaN."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deeplight.kernels import launch
from deeplight.kernels.float32 import exact_float32
from tests.kernels.interpreter import quicken


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a GPU is skipped, and counted, before its fixtures build anything."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
        quicken()


MOST_PROGRAMS = 50
"""Of one launch: a program takes the interpreter some 5 ms."""


class _Counted:
    """A device function whose launches are small."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert grid[0] <= MOST_PROGRAMS, f"{grid[0]} programs, at most {MOST_PROGRAMS} a case"
        return self.function[grid]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No case launches more than MOST_PROGRAMS in the interpreter."""
    if not launch.interpreting():
        return
    find = launch.device_function
    monkeypatch.setattr(launch, "device_function", lambda kernel: _Counted(find(kernel)))


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernel runs: "cpu" through the interpreter, "cuda" compiled."""
    pytest.importorskip("triton")
    if request.param == "gpu":
        return "cuda"
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU: -m gpu")
    return "cpu"


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """What is compared with a reference in float64 must not have been shortened to TF32."""
    with exact_float32():
        yield


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Deterministic mode fills torch.empty with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
