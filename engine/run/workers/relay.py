"""What a worker would tell the user, kept until the process that leads the run asks for it."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from deeplight.engine.core.progress import PIXELS, Progress
from deeplight.engine.core.terminal import one_line
from deeplight.engine.run.events import Events

Message = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Method of Progress, or "emit" of Events; arguments."""
_MOST = 10_000
"""Messages kept for a leader that does not ask."""


class Relay(Progress):
    """Keeps messages, from any thread. counting: keep the steps of the progress as well as lines. events: keep events;
    else nobody asks for them, and they would only travel."""

    def __init__(self, events: bool = True) -> None:
        self._messages: deque[Message] = deque(maxlen=_MOST)
        self.counting = False
        self.events = _Events(self) if events else Events(None)

    def log(self, message: str) -> None:
        """Say one line."""
        self.keep("log", message)

    def start(self, total: int, unit: str = PIXELS, what: str = "") -> None:
        """Begin counting towards `total`, from zero."""
        if self.counting:
            self.keep("start", total, unit, what)

    def advance(self, done: int = 1) -> None:
        """Count so many more as finished."""
        if self.counting:
            self.keep("advance", done)

    def stop(self) -> None:
        """End the counted part."""
        if self.counting:
            self.keep("stop")

    def keep(self, name: str, *given: Any, **named: Any) -> None:
        """Keep one message."""
        self._messages.append((name, given, named))

    def taken(self) -> list[Message]:
        """The messages that were kept since the last call."""
        found = []
        while self._messages:
            found.append(self._messages.popleft())
        return found

    def listen(self) -> None:
        """Keep what the package logs in this process as well."""
        logger = logging.getLogger("deeplight")
        logger.addHandler(_Forward(self.log))
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Events(Events):
    """Events, which the process that leads the run writes."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(None)
        self._relay = relay

    def emit(self, event: str, **facts: Any) -> None:
        """Keep one line."""
        self._relay.keep("emit", event, **facts)


class _Forward(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._say(prefix + one_line(record.getMessage()))


class Voice:
    """Passes on what workers have kept. A line that several workers say is passed on once."""

    def __init__(self, progress: Progress, events: Events) -> None:
        self.progress, self._events = progress, events
        self._said: set[str] = set()

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """What the package logs in this process while the block runs is said by that."""
        logger, handler = logging.getLogger("deeplight"), _Forward(self._said.add)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def say(self, messages: list[Message]) -> None:
        """Pass messages on, in their order."""
        for name, given, named in messages:
            if name == "emit" and given != ("started",):  # which is said once, where the run is led
                self._events.emit(*given, **named)
            elif name not in ("emit", "log"):
                getattr(self.progress, name)(*given, **named)
            elif name == "log":
                self.log(*given)

    def log(self, line: str) -> None:
        """Say a line that was not said before."""
        if line not in self._said:
            self._said.add(line)
            self.progress.log(line)
