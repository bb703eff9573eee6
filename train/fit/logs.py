"""What a training run tells while it works: a bar or lines for people, CSV and TensorBoard for programs."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from deeplight.engine.core.files import write_file
from deeplight.engine.core.progress import LINE_EVERY_S, duration
from deeplight.train.fit.run_folder import EVENTS, METRICS

_HEAD = ("step", "stage", "name", "value")


class Reporter:
    """The base of all reporters, which itself says nothing."""

    def log(self, text: str) -> None:
        """Say one line."""

    def start(self, stage: str, done: int, total: int) -> None:
        """A stage, or another long part of the work, begins or is taken up again at `done` of `total` steps."""

    def step(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Every `log_every` steps: the parts of the loss and the learning rate."""

    def advance(self) -> None:
        """One more step is made."""

    def stop(self) -> None:
        """The run ends, whether it succeeded or not."""


class StageLines(Reporter):
    """Plain lines; where no step has told anything for a while, how far it is. told: what a line of `log` becomes."""

    def __init__(
        self, stream: TextIO | None = None, every_s: float = LINE_EVERY_S, told: Callable[[str], str] = str
    ) -> None:
        self._stream, self._told = stream or sys.stderr, told
        self._every_s = every_s
        self._stage = ""
        self._began = self._said = 0.0
        self._from = self._done = self._total = 0

    def log(self, text: str) -> None:
        """Print the text as a line."""
        print(self._told(text), file=self._stream, flush=True)

    def start(self, stage: str, done: int, total: int) -> None:
        """Note where the stage begins and when, for the time that is left."""
        self._stage, self._from, self._done, self._total = stage, done, done, total
        self._began = self._said = time.monotonic()

    def advance(self) -> None:
        """Count a step; print how far the stage is where nothing was printed for a while."""
        self._done += 1
        if time.monotonic() - self._said >= self._every_s:
            self._said = time.monotonic()
            self.log(f"{self._stage} {self._done}/{self._total} {self._left()}")

    def _left(self) -> str:
        pace = (time.monotonic() - self._began) / max(self._done - self._from, 1)
        return f"{duration(pace * (self._total - self._done))} left"

    def step(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Print the values of a step, the pace and the time that is left."""
        self._said = time.monotonic()
        pace = (self._said - self._began) / (done + 1 - self._from)
        self.log(f"{stage} step {done}/{total} {_text(values)} {pace:.2f} s/step {self._left()}")


class StageBar(Reporter):
    """A bar for each stage that stays at the bottom of the terminal. told: what a line of `log` becomes."""

    def __init__(self, told: Callable[[str], str] = str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._told = told
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def log(self, text: str) -> None:
        """Print the text above the bar."""
        self._bar.console.print(self._told(text), markup=False, highlight=False, soft_wrap=True)

    def start(self, stage: str, done: int, total: int) -> None:
        """Show a bar for the stage; the bar of a finished stage goes."""
        if self._task is not None and self._bar.tasks[-1].finished:  # an early end stays to be seen
            self._bar.remove_task(self._task)
        self._bar.start()
        self._task = self._bar.add_task(stage, completed=done, total=total, loss="")

    def step(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Show the first two values beside the bar."""
        self._bar.update(self._task, loss=_text(dict(list(values.items())[:2])))

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.advance(self._task)

    def stop(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        self._bar.stop()


def terminal_reporter(told: Callable[[str], str] = str) -> Reporter:
    """A bar where stderr is a terminal, lines otherwise; silence in all but the first process of a run.

    told: what a line of `log` becomes, as `told_in_flags` gives it.
    """
    if int(os.environ.get("RANK", 0)):
        return Reporter()
    return StageBar(told) if sys.stderr.isatty() else StageLines(told=told)


def _text(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


_FLUSH_S = 3
"""TensorBoard's thread waits that long for its queue. An interruption within `add` may cost the queue its wake-up call,
and `close` then waits for the thread: 120 s by default."""


class Records:
    """`metrics.csv` (step, stage, name, value) and TensorBoard's events in the run's folder.

    step counts the steps of all stages. A resumed run drops what was recorded after the step that it goes on from.
    """

    def __init__(self, run: Path, step: int) -> None:
        """step: the one that the run starts from; 0 for a new one."""
        from torch.utils.tensorboard import SummaryWriter

        self._file = run / METRICS
        kept = [row for row in _rows(self._file) if int(row[0]) <= step] if step else []
        write_file(self._file, [_csv([_HEAD, *kept]).encode()])
        purge = step + 1 if step else None
        self._events = SummaryWriter(str(run / EVENTS), purge_step=purge, flush_secs=_FLUSH_S)

    def add(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(_csv([(step, stage, name, repr(float(v))) for name, v in values.items()]))
        for name, value in values.items():
            self._events.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._events.close()


def _rows(file: Path) -> list[list[str]]:
    """Whole rows of an earlier run's CSV; a last one cut short is left out."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [r for r in csv.reader(opened) if len(r) == len(_HEAD) and r[0].isdecimal()]


def _csv(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
