"""What a run tells the user while it works: a bar on a terminal, plain lines otherwise. Always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from deeplight.engine.core.wording import counted

LINE_EVERY_S = 10.0
PIXELS, BYTES = "HR pixels", "bytes"
"""Units whose rate is told; of others how many are done."""


class Progress(ABC):
    """Counts finished work; `advance` may be called from any thread. A context manager around the count."""

    @abstractmethod
    def log(self, message: str) -> None:
        """Say one line."""

    @abstractmethod
    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero. unit: PIXELS, BYTES or what is counted, such as "regions". what:
        the step, for people, where it is not the main one."""

    @abstractmethod
    def advance(self, done: int = 1) -> None:
        """So many more are finished."""

    def stop(self) -> None:  # noqa: B027
        """End of the counted part, well or not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Silent(Progress):
    """Says nothing: for use as a library."""

    def log(self, message: str) -> None:
        """Say one line."""

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""

    def advance(self, done: int = 1) -> None:
        """So many more are finished."""


class Lines(Progress):
    """One line every few seconds: share, rate, time left. told: what a line of `log` becomes."""

    def __init__(
        self, stream: TextIO, every_s: float = LINE_EVERY_S, told: Callable[[str], str] = str
    ) -> None:
        self._stream, self._told = stream, told
        self._every_s = every_s
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._unit, self._what = PIXELS, ""
        self._began = self._said = 0.0

    def log(self, message: str) -> None:
        """Say one line."""
        print(self._told(message), file=self._stream, flush=True)

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""
        self._total, self._done = total, 0
        self._unit, self._what = unit, f"{what}: " if what else ""
        self._began = self._said = time.monotonic()

    def advance(self, done: int = 1) -> None:
        """So many more are finished."""
        with self._lock:
            self._done += done
            now = time.monotonic()
            if now - self._said < self._every_s:
                return
            self._said = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0.0
            share = self._done / self._total if self._total else 1.0
            pace = pace_text(self._done, self._total, self._unit, rate)
            self.log(f"{self._what}{share:4.0%}  {pace}  {duration(left)} left")


class Bar(Progress):
    """A bar that stays at the bottom of the terminal. told: what a line of `log` becomes."""

    def __init__(self, told: Callable[[str], str] = str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._told = told
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._began = 0.0
        self._done = self._total = 0
        self._unit = PIXELS
        self._lock = threading.Lock()

    def log(self, message: str) -> None:
        """Say one line."""
        self._bar.console.print(self._told(message), markup=False, highlight=False, soft_wrap=True)

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""
        self._began = time.monotonic()
        self._done, self._total, self._unit = 0, total, unit
        if self._task is not None:  # the step before, which is over
            self._bar.remove_task(self._task)
        self._bar.start()
        self._task = self._bar.add_task(what or "deeplight", total=total, rate="")

    def advance(self, done: int = 1) -> None:
        """So many more are finished."""
        with self._lock:
            self._done += done
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            pace = pace_text(self._done, self._total, self._unit, rate)
            self._bar.update(self._task, advance=done, rate=pace)

    def stop(self) -> None:
        """The counted part ends, well or not."""
        self._bar.stop()


def terminal_progress(told: Callable[[str], str] = str) -> Progress:
    """A bar where stderr is a terminal, lines otherwise. told: what a line of `log` becomes."""
    return Bar(told) if sys.stderr.isatty() else Lines(sys.stderr, told=told)


def pace_text(done: int, total: int, unit: str, rate: float) -> str:
    """How fast it goes; of things that are few, how many are done."""
    if unit == PIXELS:
        return f"{rate / 1e6:.2f} HR Mpix/s"
    return f"{rate / 1e6:.0f} MB/s" if unit == BYTES else f"{done} of {counted(total, unit)}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
