"""OpenVINO, imported without the package by which it reports every import to its makers."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from deeplight.engine.core.errors import DeepLightError

_REPORTS = "openvino_telemetry"

_hidden = _REPORTS not in sys.modules
if _hidden:
    sys.modules[_REPORTS] = None  # type: ignore[assignment]  # so that its import fails, which OpenVINO allows for
try:
    import openvino as ov
finally:
    if _hidden:
        del sys.modules[_REPORTS]

__all__ = ["check_process", "library_core", "ov"]


@functools.cache
def library_core() -> Any:
    """The only openvino.Core of the process, which stays. Each puts a stack of its own in place for the signals of a
    thread and at its end the one before it, which may be gone with its owner: the next signal then ends the process."""
    return ov.Core()


_computes_in: list[int] = []
"""The process in which OpenVINO has its threads, once it computes."""


def check_process(*, computes: bool) -> None:
    """Raises DeepLightError in a process that was forked after OpenVINO computed: its threads are not there, and it
    would wait for them for ever. computes: whether it is about to compute."""
    if computes and not _computes_in:
        _computes_in.append(os.getpid())
    if _computes_in and os.getpid() not in _computes_in:
        raise DeepLightError(
            "OpenVINO had computed before this process was forked, and its threads are not here: start processes "
            "before that, or by spawn"
        )
