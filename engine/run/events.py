"""What happens during a run as JSON lines, for programs that watch it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.files import disk_errors


class Events:
    """Writes one JSON object a line, each at once. A context manager; `emit` may be called from any thread.

    Every object has `time` (UTC, ISO 8601) and `event`: started, tile, tile_failed, pack, assembling, seams,
    finished, failed; docs/running.md lists their fields. path: None writes nothing. append: keep what an earlier
    run wrote. common: facts that every object has from now on.
    Raises DeepLightError where the file cannot be written.
    """

    def __init__(self, path: Path | None, append: bool = False) -> None:
        self._path = path
        self.common: dict[str, Any] = {}
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        if path is not None:
            with disk_errors(path):
                self._file = path.open("a" if append else "w", encoding="utf-8")

    def emit(self, event: str, **facts: Any) -> None:
        """Write one line. facts: JSON values; others become texts."""
        if self._path is None or self._file is None:
            return
        with self._lock, disk_errors(self._path):
            # inside the lock: lines of several threads are in the order of their times
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps(
                {"time": now, "event": event, **self.common, **facts}, ensure_ascii=False, default=str
            )
            self._file.write(line + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                status = error.exit_code if isinstance(error, DeepLightError) else 1
                self.emit("failed", error=str(error) or type(error).__name__, exit_status=status)
        finally:
            if self._file is not None:
                self._file.close()
