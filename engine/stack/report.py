"""run.json of a folder: what became of each date. It is written anew after each date; a resumed run reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deeplight.engine.core.files import write_file
from deeplight.engine.core.machine import peak_memory
from deeplight.engine.core.wording import counted

if TYPE_CHECKING:
    from deeplight.engine.run.report import RunReport

Status = Literal["waiting", "complete", "no data"]


@dataclass
class DateReport:
    """One date. status: "no data" where the lights have no valid pixel, so that nothing was written. run: the report of
    the run that finished the date; None where it is not known."""

    date: str
    output: str
    status: Status = "waiting"
    run: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """It as JSON."""
        own = {"date": self.date, "output": self.output, "status": self.status, "run": None}
        return _json(own).replace('"run": null', f'"run": {_inner(self._run_text)}')

    @cached_property
    def _run_text(self) -> str:
        """Made once: the file is written as often as there are dates."""
        return _json(self.run)


@dataclass
class StackReport:
    """The content of run.json in a folder.

    status: "incomplete" until all files of the folder are written. mode: how its maps were begun ("new" or
    "overwrite"); runs that resume keep it. seconds: of this run: "opening" of all layers and the model, "dates",
    "total". bytes_read: for the dates that this run computed; None where the system does not count them.
    """

    output: str
    mode: str
    dates: list[DateReport]
    status: Literal["incomplete", "complete"] = "incomplete"
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int | None = 0
    peak_memory_bytes: int = 0
    computed: int = 0

    @classmethod
    def begin(cls, out: Path, mode: str, outputs: Mapping[str, Path]) -> StackReport:
        """The report of a run that has done nothing yet. outputs: from each date to the file of its map."""
        return cls(str(out), mode, [DateReport(name, str(output)) for name, output in outputs.items()])

    def of(self, date: str) -> DateReport:
        """The report of one date, by its name."""
        return next(report for report in self.dates if report.date == date)

    def finished(self, name: str, report: RunReport) -> None:
        """Record that a date was computed."""
        date = self.of(name)
        run = {**json.loads(report.to_json()), "output": date.output}
        self.dates[self.dates.index(date)] = DateReport(name, date.output, "complete", run)
        self.computed += 1
        self.bytes_read = (
            None
            if self.bytes_read is None or report.bytes_read is None
            else self.bytes_read + report.bytes_read
        )

    def remember(self, earlier: StackReport | None) -> None:
        """Take over the report of the earlier run that this one resumes."""
        if earlier is None:
            return
        self.mode = earlier.mode
        known = {date.date: date for date in earlier.dates}
        self.dates = [known.get(date.date, date) for date in self.dates]

    def write(self, path: Path) -> None:
        """Write the file durably. Raises DeepLightError if it cannot be written."""
        self.peak_memory_bytes = peak_memory()
        dates = _inner("[\n  " + ",\n  ".join(_inner(date.text) for date in self.dates) + "\n]")
        text = _json({**vars(self), "dates": []}).replace('"dates": []', f'"dates": {dates}')
        write_file(path, [f"{text}\n".encode()])

    def headline(self) -> str:
        """A summary of the run in one line."""
        done = sum(date.status == "complete" for date in self.dates)
        empty = sum(date.status == "no data" for date in self.dates)
        before = f", {done - self.computed} of them complete before" if done > self.computed else ""
        without = f" ({empty} more without data)" if empty else ""
        return (
            f"{counted(done, 'dates')}{before}{without} in {self.seconds['total']:.1f} s, "
            f"peak memory {self.peak_memory_bytes / 1e9:.2f} GB"
        )


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def _inner(text: str) -> str:
    """A text of _json as a value inside another."""
    return text.replace("\n", "\n  ")


def earlier_report(path: Path) -> StackReport | None:
    """Read the report of an earlier run; None where there is none that can be read. Then only its times and counts
    are lost."""
    try:
        content = json.loads(path.read_bytes())
        dates = [DateReport(**date) for date in content.pop("dates")]
        return StackReport(dates=dates, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
