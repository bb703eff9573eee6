"""What a run says: a bar on a terminal, lines elsewhere, nothing from further processes; records that go on."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from deeplight.train.fit.logs import Records, Reporter, StageBar, StageLines, terminal_reporter
from deeplight.train.fit.run_folder import METRICS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(reporter: Reporter) -> None:
    reporter.start("whole", 3, 10)
    for step in range(3, 6):
        reporter.advance()
        reporter.step("whole", step, 10, {"loss": 0.25, "radiance": 1.5, "rate": 1e-3})
    reporter.log("a line")
    reporter.stop()


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    reporter = terminal_reporter()
    assert isinstance(reporter, StageBar)
    told(reporter)
    text = stream.getvalue()
    assert "whole" in text and "6/10" in text and "loss 0.25" in text and "a line\n" in text


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    reporter = terminal_reporter()
    assert isinstance(reporter, StageLines)
    told(reporter)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("whole step 3/10 loss 0.25 radiance 1.5 rate 0.001 ")
    assert lines[0].endswith(" s/step 0:00 left") and lines[-1] == "a line" and len(lines) == 4


def test_further_processes_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    told(terminal_reporter())
    assert capsys.readouterr() == ("", "")


def test_records_drop_what_came_after_the_step_resumed_from(tmp_path: Path) -> None:
    records = Records(tmp_path, 0)
    for step in (1, 2, 3):
        records.add(step, "whole", {"loss": 1 / step})
    records.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write("4,whole,lo")  # killed while writing
    Records(tmp_path, 2).close()
    assert (tmp_path / METRICS).read_text() == "step,stage,name,value\n1,whole,loss,1.0\n2,whole,loss,0.5\n"
    Records(tmp_path, 0).close()
    assert (tmp_path / METRICS).read_text() == "step,stage,name,value\n"


def test_a_lost_wake_up_does_not_hold_up_the_end_of_an_interrupted_run(tmp_path: Path) -> None:
    """A signal's exception between two lines of Queue.put leaves TensorBoard's thread asleep beside a full queue."""
    records = Records(tmp_path, 0)
    records.add(1, "whole", {"loss": 1.0})
    time.sleep(0.5)
    queue = records._events._get_file_writer().event_writer._async_writer._byte_queue  # type: ignore[no-untyped-call]
    with queue.mutex:
        queue.not_empty._waiters.clear()
    start = time.monotonic()
    records.close()
    assert time.monotonic() - start < 20
