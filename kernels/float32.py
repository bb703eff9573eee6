"""float32 that is float32: without the shorter products that PyTorch and its caller may have switched on."""

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
"""Below torch.backends: what has an `fp32_precision`, and whose it takes where its own is "none"."""

EXACT = "ieee"
"""Its value for products of whole float32 numbers; "tf32" and "bf16" shorten them."""


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, matrix products and convolutions of float32 use all of its bits, on GPUs and CPUs.

    cuDNN shortens them to TF32 unless told not to, which moves radiance by 2.5e-3 (one NVIDIA H200). The switches are
    the process's: they hold for all threads while any of them is inside, and are as they were after the last has left.
    Every spelling can be read inside (allow_tf32, get_float32_matmul_precision, fp32_precision), as Inductor does.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


@dataclass(frozen=True)
class _State:
    """matmul: of set_float32_matmul_precision. cudnn: of cudnn.allow_tf32. values: fp32_precision of SWITCHES, "none"
    where it is the parent's."""

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
    """What each of SWITCHES was given itself, "none" where it follows its parent.

    PyTorch tells only what is in effect, so the parents are moved for a moment: what is not "ieee" below "ieee", or is
    "ieee" below "none", is the switch's own. An untouched cuDNN follows too, but says "tf32" where its parent says
    "none"; it cannot be made untouched again, so it is given that.
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
    """All that SWITCHES may follow at a value; afterwards as it was, following or not."""
    everything: Any = torch.backends
    generic, above = everything.fp32_precision, sorted({parent for _, parent in SWITCHES})
    everything.fp32_precision = "none"  # a parent then shows its own value
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
    # the old spelling first: its setters write the new one too, but not the other way round
    with _quiet():
        torch.set_float32_matmul_precision(state.matmul)
        torch.backends.cudnn.allow_tf32 = state.cudnn
        for (name, _), value in zip(SWITCHES, state.values, strict=True):
            _backend(name).fp32_precision = value


def _matmul() -> str:
    """The old spelling's value. Where the new one contradicts it PyTorch refuses to tell, but not all ways."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        pass
    try:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
    except RuntimeError:
        return "highest"  # the default: only the new spelling was ever used


def _cudnn() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True  # the default: only the new spelling was ever used


def _backend(name: str) -> Any:
    found: Any = torch.backends
    for part in name.split("."):
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning with which PyTorch 2.9 and later ask for the new spelling alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        yield
