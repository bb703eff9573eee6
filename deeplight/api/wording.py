"""What the library says, as whoever calls Python hears it: arrays have the names of their parameters, warnings are
heard where nobody listens."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from deeplight.engine.core.environment import environment_trouble
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.wording import in_python


@contextmanager
def arrays_named(arrays: Mapping[str, str] | None = None) -> Iterator[None]:
    """Around a call of the library: its errors and log lines name arrays in place of the files that hold them, and
    parameters without backquotes.

    arrays: file that an array was written to → the parameter that gave it. A full memory and a broken environment
    become DeepLightError and InputError, as on the command line.
    """

    def told(text: str) -> str:
        for file, name in (arrays or {}).items():
            text = text.replace(f"raster {file}", "array").replace(file, f"the array given as {name}")
        return in_python(text)

    try:
        with _LOGS.translated_by(told):
            yield
    except DeepLightError as error:
        error.args = (told(str(error)),)
        raise
    except MemoryError as error:
        raise DeepLightError("the memory is full: use smaller tiles, or free some memory") from error
    except Exception as error:
        trouble = environment_trouble(error)
        if trouble is None:
            raise
        raise InputError(trouble) from error


class _Logs(logging.Handler):
    """Rewords what the library logs while calls of the API are at work, before other handlers see it."""

    def __init__(self) -> None:
        super().__init__()
        self._translators: list[Callable[[str], str]] = []
        self._changing = threading.Lock()

    @contextmanager
    def translated_by(self, told: Callable[[str], str]) -> Iterator[None]:
        """Reword from here on; calls may overlap, in several threads too."""
        logger = logging.getLogger("deeplight")
        with self._changing:
            self._translators.append(told)
            logger.addHandler(self)  # does nothing where it is there already
        try:
            yield
        finally:
            with self._changing:
                self._translators.remove(told)
                if not self._translators:
                    logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for told in list(self._translators):
            text = told(text)
        record.msg, record.args = text, ()
        logger = logging.getLogger("deeplight")
        unheard = not logging.getLogger().handlers and logger.handlers == [self]
        if unheard and record.levelno >= logging.WARNING:  # as logging does where nobody listens
            print(f"warning: {text}", file=sys.stderr)


_LOGS = _Logs()
