"""The examples run as they are, as scripts in an empty folder; the built-in model gives way to one that is small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from tests.conftest import ROOT
from tests.engine.analytic import write_analytic

EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path, **changes: str) -> str:
    """What an example prints. changes: text → text, each of which must be in it."""
    script = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    (folder / name).write_text(script)
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_map(tmp_path: Path) -> None:
    model = write_analytic(tmp_path / "model")
    printed = run("first_map.py", tmp_path, **{"deeplight-tiny": str(model)})
    assert "Scene of 64×64 LR pixels" in printed
    assert "Result of 256×256 pixels (radiance, isp, offset)" in printed
    assert (tmp_path / "first-map/lights.png").is_file()
    with rasterio.open(tmp_path / "first-map/lights.tif") as file:
        assert file.shape == (512, 512)


def test_totals_by_region(tmp_path: Path) -> None:
    model = write_analytic(tmp_path / "model")
    printed = run("totals_by_region.py", tmp_path, **{"deeplight-tiny": str(model)})
    rows = [line.split() for line in printed.splitlines() if line.startswith("20")]
    east, west = ([float(row[i]) for row in rows] for i in (1, 2))
    assert [row[0] for row in rows] == ["2019", "2020", "2021"]
    assert west[1] / west[0] == pytest.approx(1.2, abs=0.03)
    assert west[2] / west[0] == pytest.approx(1.4, abs=0.03)
    assert east[2] / east[0] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_own_region(tmp_path: Path) -> None:
    printed = run("own_region.py", tmp_path)
    assert "in fp32, torch on" in printed
    with rasterio.open(tmp_path / "region/lights.tif") as file:
        assert file.shape == (1024, 1024)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_are_linked(example: Path) -> None:
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text()
