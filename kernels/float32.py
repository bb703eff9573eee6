"""Products in full float32, also where PyTorch or the caller has switched on shorter ones such as TF32."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

SWITCHES = (
    ("cuda.matmul", "cudnn"),
    ("cudnn.conv", "cudnn"),
    ("cudnn.rnn", "cudnn"),
    ("mkldnn.matmul", "mkldnn"),
    ("mkldnn.conv", "mkldnn"),
    ("mkldnn.rnn", "mkldnn"),
)
"""Settings below torch.backends that have an `fp32_precision`, each with its parent, whose value applies where the
setting's own is "none"."""

EXACT = "ieee"
"""The `fp32_precision` that multiplies whole float32 numbers; "tf32" and "bf16" shorten them first."""


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside this context matrix products and convolutions of float32 numbers use all bits, on GPUs and CPUs.

    By default cuDNN shortens the numbers to TF32, which changes radiance by 2.5e-3 (one NVIDIA H200). The settings
    belong to the process: they apply to all threads while any thread is inside, and are restored when the last leaves.
    Inside, each of PyTorch's three ways to ask for the setting works (allow_tf32, get_float32_matmul_precision,
    fp32_precision); Inductor uses several of them.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


@dataclass(frozen=True)
class _State:
    """matmul: value of set_float32_matmul_precision. cudnn: value of cudnn.allow_tf32. values: fp32_precision of each
    of SWITCHES, "none" where that of its parent applies."""

    matmul: str
    cudnn: bool
    values: tuple[str, ...]


@dataclass
class _Shared:
    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    before: _State | None = None


_shared = _Shared()


def _enter() -> None:
    with _shared.lock:
        if _shared.inside == 0:
            _shared.before = _read()
            _write(_State("highest", False, (EXACT,) * len(SWITCHES)))
        _shared.inside += 1


def _leave() -> None:
    with _shared.lock:
        _shared.inside -= 1
        if _shared.inside == 0 and _shared.before is not None:
            _write(_shared.before)


def _read() -> _State:
    with _quiet():
        return _State(_matmul(), _cudnn(), _own_values())


def _own_values() -> tuple[str, ...]:
    """The value that each of SWITCHES was given itself, "none" where it follows its parent.

    PyTorch only tells which value is in effect. So the parents are changed for a moment: a value is the switch's own if
    it is not "ieee" while the parent is "ieee", or is "ieee" while the parent is "none". A cuDNN switch that was never
    set also follows its parent, but says "tf32" where the parent is "none". Since it cannot be made unset again, it is
    given that value.
    """
    now, parents = _values(), tuple(_backend(parent).fp32_precision for _, parent in SWITCHES)
    with _parents(EXACT):
        below_exact = _values()
    with _parents("none"):
        below_none = _values()
    values = []
    for value, parent, exact, free in zip(now, parents, below_exact, below_none, strict=True):
        own = exact != EXACT or free == EXACT
        values.append(value if own or value != parent else "none")
    return tuple(values)


def _values() -> tuple[str, ...]:
    return tuple(_backend(name).fp32_precision for name, _ in SWITCHES)


@contextlib.contextmanager
def _parents(value: str) -> Iterator[None]:
    """Inside this context all parents of SWITCHES have one value; afterwards each is as before, own value or none."""
    everything: Any = torch.backends
    generic, above = everything.fp32_precision, sorted({parent for _, parent in SWITCHES})
    everything.fp32_precision = "none"  # then each parent shows its own value
    own = [_backend(parent).fp32_precision for parent in above]
    try:
        for parent in above:
            _backend(parent).fp32_precision = value
        yield
    finally:
        for parent, before in zip(above, own, strict=True):
            _backend(parent).fp32_precision = before
        everything.fp32_precision = generic


def _write(state: _State) -> None:
    # the older settings first: writing them changes the newer ones too, but not the other way round
    with _quiet():
        torch.set_float32_matmul_precision(state.matmul)
        torch.backends.cudnn.allow_tf32 = state.cudnn
        for (name, _), value in zip(SWITCHES, state.values, strict=True):
            _backend(name).fp32_precision = value


def _matmul() -> str:
    """The value of the older setting. Some of PyTorch's functions refuse to tell it where newer ones contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        pass
    try:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
    except RuntimeError:
        return "highest"  # the default: only the newer settings were ever used


def _cudnn() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True  # the default: only the newer settings were ever used


def _backend(name: str) -> Any:
    found: Any = torch.backends
    for part in name.split("."):
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside this context PyTorch 2.9 and later do not warn that only the newer settings should be used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        yield
