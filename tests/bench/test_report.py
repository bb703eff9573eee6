"""bench/report.py: the page, and README's table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report, tables
from bench.results import load
from deeplight.engine.core.errors import InputError
from tests.bench import runs
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two stored runs and the report of the second."""
    folder = tmp_path_factory.mktemp("report")
    runs.write(folder, "bench-20260101T000000.json", date="2026-01-01T00:00:00", factor=0.8)
    runs.write(folder, "bench-20260102T030405.json")
    report.program(["--out", str(folder), "--history", str(folder)])
    return folder


def test_the_page_has_every_part(made: Path) -> None:
    text = (made / "report.md").read_text()
    assert "| model (ONNX Runtime) | 1 |" in text  # of the largest tile: 2 HR Mpix in 2 s
    assert "rate since 2026-01-01" in text and "| -20 % |" in text
    assert "20.0 ms, 19.0 at least and 22.0 at most" in text
    assert "GFLOP/s (100 of one thread)" in text and "Test CPU" in text
    assert "- test_backend: no <TensorRT> here" in text
    assert text.index("## How fast") < text.index("## Stages")
    for title in ("How fast", "Stages", "Targets", "Other tools", "All stages", "Machine", "Left out"):
        assert f"## {title}" in text


def test_rates_are_compared_on_one_machine_only(tmp_path: Path) -> None:
    document = runs.document(date="2026-01-01T00:00:00")
    document["machine_info"]["deeplight"]["cpu"] = "Another CPU"
    (tmp_path / "bench-20260101T000000.json").write_text(json.dumps(document))
    path = runs.write(tmp_path)
    assert report.run_before(report.stored_runs(tmp_path), path, load(path)) is None


def test_targets_are_judged(tmp_path: Path) -> None:
    found = {t.name: t for t in tables.targets(load(runs.write(tmp_path)))}
    assert found["a tile's DMO through the mesh over WarpedVRT"].measured == "4.00"
    assert found["engine's wall time over bare model calls"].met
    assert found["peak memory of a scene 4 times as large"].measured == "1.04"
    assert found["deeplight-infer --tiles 128: difference / range"].met
    worse = runs.document()
    for e in worse["benchmarks"]:
        if e["extra_info"].get("peer", {}).get("tool", "").startswith("deeplight"):
            e["extra_info"]["peer"] |= {"seconds": 13.0, "difference": 2e-5}
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    found = {t.name: t for t in tables.targets(load(tmp_path / "worse.json"))}
    assert found["deeplight-infer --tiles 128: difference / range"].met is False


def test_a_busy_machine_is_named(tmp_path: Path) -> None:
    assert report.busy(load(runs.write(tmp_path))) == ""
    assert "load 3.0 on 2 CPUs" in report.busy(load(runs.write(tmp_path, load=3.0)))


def test_nothing_to_report_is_said_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.report", "--history", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no run in")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "report.md").exists()


def test_readme_gets_its_table_between_the_marks(tmp_path: Path) -> None:
    data = report.readme_data(load(runs.write(tmp_path)))
    text = f"# A\n\n{report.BEGIN}\nold\n{report.END}\n\nrest\n"
    new = report.with_section(text, report.readme_section(data))
    assert "old" not in new and new.startswith("# A\n") and new.endswith("\n\nrest\n")
    assert "Measured on 2026-01-02 (Test CPU, 2 CPUs, GPU none)." in new and "| MONAI | 20.00 | 2.00 |" in new
    assert "| Test CPU, 2 CPUs | onnxruntime fp32 | 1 | 12 % | 0.8 | 52.1 |" in new
    assert report.with_section(new, report.readme_section(data)) == new
    with pytest.raises(InputError, match="no marks"):
        report.with_section("# A\n", "x")


def test_readme_takes_no_rates_of_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SUMMARY", tmp_path / "results" / "summary.json")
    readme = tmp_path / "README.md"
    readme.write_text(report.readme_section(None))
    path = runs.write(tmp_path, load=3.0)
    options = [str(path), "--out", str(tmp_path), "--history", str(tmp_path), "--readme", str(readme)]
    with pytest.raises(InputError, match="while the machine did other work"):
        report.program(options)
    assert readme.read_text() == report.readme_section(None) and not report.SUMMARY.exists()
    report.program([*options, "--busy"])
    assert readme.read_text() == report.readme_section(json.loads(report.SUMMARY.read_text()))
    assert "The machine did other work meanwhile (load 3.0 on 2 CPUs" in readme.read_text()


def test_the_readme_is_in_the_generated_form() -> None:
    """Its table is what the command makes of the data stored with it: no number was typed in."""
    text = (ROOT / "README.md").read_text()
    data = json.loads(report.SUMMARY.read_text()) if report.SUMMARY.exists() else None
    assert report.readme_section(data) in text, "python -m bench.report --readme README.md"
    assert text.count(report.BEGIN) == 1


def test_a_damaged_run_in_the_history_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.write(tmp_path, "bench-20260102T030405.json")
    (tmp_path / "bench-20260101T000000.json").write_text("")
    report.program([str(run), "--out", str(tmp_path / "o"), "--history", str(tmp_path)])
    assert "left out of the comparison: " in capsys.readouterr().err
    assert (tmp_path / "o" / "report.md").exists()


@pytest.mark.parametrize("place", ["machine", "load", "benchmarks", "control"])
def test_a_file_that_lacks_numbers_is_refused(tmp_path: Path, place: str) -> None:
    run = runs.write(tmp_path, "bench-20260102T030405.json")
    d = json.loads(run.read_text())
    if place == "machine":
        d["machine_info"]["deeplight"] = []
    elif place == "load":
        del d["machine_info"]["deeplight"]["load"]
    elif place == "benchmarks":
        d["benchmarks"] = []
    else:
        d["deeplight"]["control_s"] = {"x": 1}
    run.write_text(json.dumps(d))
    with pytest.raises(InputError, match="is not a result of `make bench`"):
        load(run)


def test_a_readme_without_marks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = runs.write(tmp_path, "bench-20260102T030405.json")
    (tmp_path / "README.md").write_text("no marks")
    arguments = [str(run), "--out", str(tmp_path / "o"), "--history", str(tmp_path), "--busy"]
    with pytest.raises(InputError, match="no marks"):
        report.program([*arguments, "--readme", str(tmp_path / "README.md")])
    assert not (tmp_path / "o").exists()
