"""Trouble that the environment makes is told as such, with a way out that works."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engine.analytic import write_analytic
from tests.field.programs import MODULES, advised, refusal, run, shell
from tests.scenes import NTL, write_raster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.mark.parametrize(("variable", "old"), [("PROJ_LIB", True), ("PROJ_DATA", False)])
def test_files_of_another_proj(tmp_path: Path, model: str, variable: str, old: bool) -> None:
    write_raster(tmp_path / "n.tif", NTL)
    other = tmp_path / "proj"
    other.mkdir()
    if old:
        with sqlite3.connect(other / "proj.db") as base:
            base.execute("create table metadata(key text, value text)")
            for key, value in (("MAJOR", "1"), ("MINOR", "0")):
                base.execute("insert into metadata values(?, ?)", (f"DATABASE.LAYOUT.VERSION.{key}", value))
    call = ("--ntl", "n.tif", "--out", "o.tif", "--model", model)
    message = refusal(run("deeplight-infer", *call, cwd=tmp_path, environment={variable: str(other)}))
    assert "files of another installation" in message and "defect" not in message
    again = (
        f"{advised(message, 'unset')} && {sys.executable} -m {MODULES['deeplight-infer']} {' '.join(call)}"
    )
    shell(again, tmp_path, {variable: str(other)})
    assert (tmp_path / "o.tif").exists()
    made = run(
        "deeplight-data",
        "synth",
        "--out",
        "s",
        "--lr-size",
        "8",
        cwd=tmp_path,
        environment={variable: str(other)},
    )
    assert "files of another installation" in refusal(made)


def test_a_terminal_that_cannot_show_a_name(tmp_path: Path, model: str) -> None:
    """Neither the units in the log nor the name of the output stop a run."""
    write_raster(tmp_path / "lights.tif", NTL)
    call = ("--ntl", "lights.tif", "--out", "łódź.tif", "--model", model)
    done = run("deeplight-infer", *call, cwd=tmp_path, environment={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\u0142") and (tmp_path / "łódź.tif").exists()


def test_names_that_are_not_utf_8(tmp_path: Path, model: str) -> None:
    odd = os.fsdecode(b"l\xfcx.tif")
    try:
        write_raster(tmp_path / "n.tif", NTL).rename(tmp_path / odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_raster(tmp_path / "n.tif", NTL)
    for call in (("--ntl", odd, "--out", "o.tif"), ("--ntl", "n.tif", "--out", odd.replace("l", "L"))):
        message = refusal(run("deeplight-infer", *call, "--model", model, cwd=tmp_path))
        assert "not UTF-8, which GDAL needs" in message and "defect" not in message


def test_a_missing_native_module_is_told_once(tmp_path: Path, model: str) -> None:
    """As after an installation without a C++ compiler; the pixels stay the same."""
    write_raster(tmp_path / "n.tif", NTL)
    write_raster(tmp_path / "z.tif", np.full((13, 17), 300.0, np.float32))
    hide = "import sys; sys.modules['deeplight.engine.raster._native'] = None"
    hide += "; from deeplight.engine.cli import main; main()"
    call = ("--ntl", "n.tif", "--dem", "z.tif", "--model", model, "--tiles", "8")
    done = subprocess.run(
        [sys.executable, "-c", hide, *call, "--out", "a.tif"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "native module" in line]
    assert len(told) == 1 and told[0].startswith("warning: ") and "slower" in told[0]
    quiet = run(
        "deeplight-infer", *call, "--out", "b.tif", cwd=tmp_path, environment={"DEEPLIGHT_NO_NATIVE": "1"}
    )
    assert quiet.returncode == 0 and "native module" not in quiet.stderr, "whoever leaves it out knows"
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
