"""What happens during a run as JSON lines, for programs that watch it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from deeplight.engine.core.files import disk_errors
from deeplight.engine.core.terminal import explained


class Events:
    """Writes one JSON object a line, each at once. A context manager; `emit` may be called from any thread.

    Every object has `time` (UTC, ISO 8601) and `event`: started, tile, tile_failed, pack, assembling, seams,
    finished, failed; docs/running.md lists their fields. path: None writes nothing; the file is made with the first
    object. append: keep what an earlier run wrote. common: facts that every object has from now on.
    Raises DeepLightError where the file cannot be written.
    """

    def __init__(self, path: Path | None, append: bool = False) -> None:
        self._path = path
        self._mode: Literal["a", "w"] = "a" if append else "w"
        self.common: dict[str, Any] = {}
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def emit(self, event: str, **facts: Any) -> None:
        """Write one line. facts: JSON values; others become texts."""
        if self._path is None:
            return
        with self._lock, disk_errors(self._path):
            # inside the lock: lines of several threads are in the order of their times
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps(
                {"time": now, "event": event, **self.common, **facts}, ensure_ascii=False, default=str
            )
            if self._file is None:
                self._file = self._path.open(self._mode, encoding="utf-8")
            self._file.write(line + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                message = str(error) or type(error).__name__
                self.emit("failed", error=message, exit_status=explained(error)[1])
        finally:
            if self._file is not None:
                self._file.close()
