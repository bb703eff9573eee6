"""What TensorRT and TensorRT for RTX log: errors are kept for a message, the rest is not shown."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def log_of(trt: Any) -> Any:
    """The logger of a module tensorrt or tensorrt_rtx, of which a process can have only one: the library goes on using
    the first that it was given, for builders, parsers and runtimes alike, and ignores all others.

    errors: texts of all errors since the list was last cleared. warnings: the same for warnings.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def clear(self) -> None:
            """Forget what was logged."""
            self.errors.clear()
            self.warnings.clear()

    return Log()
