"""Progress that names the date."""

from __future__ import annotations

from deeplight.engine.core.progress import PIXELS, Progress


class DateProgress(Progress):
    """Shows the progress of one of several dates. name: the date with its number, which stands before each line."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.name = ""

    def log(self, message: str) -> None:
        """Say one line."""
        self._inner.log(f"{self.name}: {message}" if self.name else message)

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""
        self._inner.start(total, unit, ": ".join(part for part in (self.name, what) if part))

    def advance(self, done: int = 1) -> None:
        """Tell that so many more are finished."""
        self._inner.advance(done)

    def stop(self) -> None:
        """End the counted part, whether it succeeded or not."""
        self._inner.stop()
