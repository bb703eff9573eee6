"""exact_float32: the switches before, inside and after, in every spelling; and under threads and errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.backends import cuda, cudnn, mkldnn

from deeplight.kernels.float32 import EXACT, SWITCHES, _backend, _read, _write, exact_float32

READERS: dict[str, Callable[[], Any]] = {
    "cuda.matmul.allow_tf32": lambda: cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: cudnn.allow_tf32,
    "get_float32_matmul_precision": torch.get_float32_matmul_precision,
    "fp32_precision": lambda: torch.backends.fp32_precision,
    "cuda.matmul.fp32_precision": lambda: cuda.matmul.fp32_precision,
    "cudnn.fp32_precision": lambda: cudnn.fp32_precision,
    "cudnn.conv.fp32_precision": lambda: cudnn.conv.fp32_precision,
    "cudnn.rnn.fp32_precision": lambda: cudnn.rnn.fp32_precision,
    "mkldnn.fp32_precision": lambda: mkldnn.fp32_precision,
    "mkldnn.matmul.fp32_precision": lambda: mkldnn.matmul.fp32_precision,
    "mkldnn.conv.fp32_precision": lambda: mkldnn.conv.fp32_precision,
}


def state() -> dict[str, Any]:
    """What a caller can read; "refused" where PyTorch raises, since spellings contradict each other."""

    def read(reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except RuntimeError:
            return "refused"

    return {name: read(reader) for name, reader in READERS.items()}


def switch(name: str, value: Any) -> None:
    """Set what `name` says below torch.backends, or set_float32_matmul_precision."""
    if name == "matmul_precision":
        torch.set_float32_matmul_precision(value)
        return
    *path, last = name.split(".")
    where: Any = torch.backends
    for part in path:
        where = getattr(where, part)
    setattr(where, last, value)


CALLERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "TF32 in the old spelling": {"cuda.matmul.allow_tf32": True, "cudnn.allow_tf32": True},
    "no TF32 in the old spelling": {"cuda.matmul.allow_tf32": False, "cudnn.allow_tf32": False},
    "medium": {"matmul_precision": "medium"},
    "high": {"matmul_precision": "high"},
    "TF32 everywhere": {"fp32_precision": "tf32"},
    "IEEE everywhere": {"fp32_precision": "ieee"},
    "TF32 in all of CUDA": {"cudnn.fp32_precision": "tf32"},
    "TF32 in matrix products": {"cuda.matmul.fp32_precision": "tf32"},
    "convolutions apart": {"cudnn.conv.fp32_precision": "ieee"},
    "bfloat16 on the CPU": {"mkldnn.conv.fp32_precision": "bf16"},
    "both spellings": {"matmul_precision": "high", "cuda.matmul.fp32_precision": "ieee"},
}


@pytest.fixture(autouse=True)
def float32_is_float32() -> None:
    """Not as for the other tests: what it does is tested here."""


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before, generic, all_cuda = _read(), torch.backends.fp32_precision, cudnn.fp32_precision
    yield
    switch("fp32_precision", generic)
    switch("cudnn.fp32_precision", all_cuda)
    _write(before)


@pytest.mark.parametrize("caller", CALLERS)
def test_inside_it_is_exact_and_afterwards_as_before(caller: str) -> None:
    for name, value in CALLERS[caller].items():
        switch(name, value)
    before = state()
    with exact_float32():
        inside = state()
    assert state() == before
    # no spelling is refused inside: Inductor and Dynamo read the old one
    assert inside["cuda.matmul.allow_tf32"] is False and inside["cudnn.allow_tf32"] is False
    assert inside["get_float32_matmul_precision"] == "highest"
    for name, _ in SWITCHES:
        if f"{name}.fp32_precision" in inside:
            assert inside[f"{name}.fp32_precision"] == EXACT, name


def test_what_had_its_parents_value_still_follows_the_parent() -> None:
    switch("fp32_precision", "tf32")
    with exact_float32():
        pass
    switch("fp32_precision", "ieee")
    assert cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("value", ["tf32", "ieee"])
@pytest.mark.parametrize("parent", ["fp32_precision", "cudnn.fp32_precision"])
@pytest.mark.parametrize("child", ["cuda.matmul", "cudnn.conv", "cudnn.rnn"])
def test_an_own_value_that_equals_the_parents_stays(child: str, parent: str, value: str) -> None:
    switch(parent, value)
    switch(f"{child}.fp32_precision", value)
    with exact_float32():
        pass
    switch(parent, "ieee" if value == "tf32" else "tf32")
    assert _backend(child).fp32_precision == value


@pytest.mark.parametrize("value", ["tf32", "ieee"])
@pytest.mark.parametrize("child", ["cuda.matmul", "cudnn.conv", "cudnn.rnn"])
def test_a_switch_without_a_value_still_follows_the_parent(child: str, value: str) -> None:
    switch(f"{child}.fp32_precision", "none")
    switch("cudnn.fp32_precision", value)
    with exact_float32():
        pass
    for other in ("ieee", "tf32"):
        switch("cudnn.fp32_precision", other)
        assert _backend(child).fp32_precision == other


def test_afterwards_as_before_where_something_fails() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), exact_float32():
        _ = 1 / 0
    assert state() == before


def test_the_last_of_several_threads_restores() -> None:
    before = state()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen: list[dict[str, Any]] = []

    def first() -> None:
        with exact_float32():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with exact_float32():
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(state())

    threads = [threading.Thread(target=f) for f in (first, second)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen[0]["cudnn.allow_tf32"] is False
    assert state() == before


def test_the_caller_is_not_warned(recwarn: pytest.WarningsRecorder) -> None:
    with exact_float32():
        pass
    assert not recwarn.list
