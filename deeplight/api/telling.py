"""Progress of a run for whoever calls Python: lines of text, or a function."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import PIXELS, Lines, Progress, Silent, duration, pace_text
from deeplight.engine.core.wording import in_python

Teller: TypeAlias = Callable[[float, str], object]
"""What `progress` may be: called with the share that is done (0 to 1) and a line of text, one call at a time, from any
thread. An exception that it raises stops the run, which can be resumed."""


def progress_of(asked: bool | Teller | None) -> Progress:
    """What is told, by the argument `progress`. Raises InputError where it is none of these."""
    if asked is None or asked is False:
        return Silent()
    if asked is True:
        return Lines(sys.stderr, told=in_python)
    if not callable(asked):
        raise InputError(f"progress={asked!r} is not None, True or a function: give one of them")
    return _Calls(asked)


class _Calls(Progress):
    """Tells a function."""

    def __init__(self, tell: Teller) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._unit, self._what, self._began = PIXELS, "", 0.0

    def log(self, message: str) -> None:
        """Say one line."""
        with self._lock:
            self._tell(self._share(), in_python(message))

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""
        with self._lock:
            self._total, self._done, self._unit = total, 0, unit
            self._what, self._began = f"{what}: " if what else "", time.monotonic()

    def advance(self, done: int = 1) -> None:
        """So many more are finished."""
        with self._lock:
            self._done += done
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            left = duration((self._total - self._done) / rate)
            pace = pace_text(self._done, self._total, self._unit, rate)
            self._tell(self._share(), f"{self._what}{self._share():.0%}  {pace}  {left} left")

    def stop(self) -> None:
        """The counted part ends, well or not."""
        with self._lock:
            self._done = self._total

    def _share(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 0.0
