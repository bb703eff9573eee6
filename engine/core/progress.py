"""What a run tells the user while it works: a bar on a terminal, plain lines otherwise. Always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self, TextIO

_LINE_EVERY_S = 10.0


class Progress(ABC):
    """Counts finished work; `advance` may be called from any thread. A context manager around the count."""

    @abstractmethod
    def log(self, message: str) -> None:
        """Say one line."""

    @abstractmethod
    def start(self, total: int) -> None:
        """Begin counting towards `total` HR pixels."""

    @abstractmethod
    def advance(self, pixels: int) -> None:
        """`pixels` HR pixels more are finished."""

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
        """See Progress."""

    def start(self, total: int) -> None:
        """See Progress."""

    def advance(self, pixels: int) -> None:
        """See Progress."""


class Lines(Progress):
    """One line every few seconds: share, rate, time left."""

    def __init__(self, stream: TextIO, every_s: float = _LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._began = self._said = 0.0

    def log(self, message: str) -> None:
        """See Progress."""
        print(message, file=self._stream, flush=True)

    def start(self, total: int) -> None:
        """See Progress."""
        self._total, self._done = total, 0
        self._began = self._said = time.monotonic()

    def advance(self, pixels: int) -> None:
        """See Progress."""
        with self._lock:
            self._done += pixels
            now = time.monotonic()
            if now - self._said < self._every_s:
                return
            self._said = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0.0
            share = self._done / self._total if self._total else 1.0
            self.log(f"{share:4.0%}  {rate / 1e6:.2f} HR Mpix/s  {_duration(left)} left")


class Bar(Progress):
    """A bar that stays at the bottom of the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("deeplight"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._began = 0.0
        self._done = 0
        self._lock = threading.Lock()

    def log(self, message: str) -> None:
        """See Progress."""
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def start(self, total: int) -> None:
        """See Progress."""
        self._began = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task("", total=total, rate="")

    def advance(self, pixels: int) -> None:
        """See Progress."""
        with self._lock:
            self._done += pixels
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            self._bar.update(self._task, advance=pixels, rate=f"{rate / 1e6:.2f} HR Mpix/s")

    def stop(self) -> None:
        """See Progress."""
        self._bar.stop()


def terminal_progress() -> Progress:
    """A bar where stderr is a terminal, lines otherwise."""
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
