"""README's lines for people's own rasters run as they are printed, on small files of the names that they use."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.train.clips.index import read_index
from deeplight.train.data_cli import cli as data_command
from tests.engine.analytic import write_analytic
from tests.engine.test_cli import call
from tests.scenes import ARC, north_up, write_raster

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def printed(start: str) -> list[str]:
    """The arguments of README's command that begins so, without its name."""
    joined = README.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if line.startswith(f"$ {start}")]
    return shlex.split(line[2:], comments=True)[1:]


def recipe(case: str) -> list[str]:
    """What README's table adds for people who have `case`."""
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {case}")]
    found = re.search(r"`(--[^`]+)`", row)
    assert found is not None
    return shlex.split(found[1])


def write_files(height: int, width: int) -> None:
    """The files of README in the current folder: lights, Landsat Collection 2 level 2, percent, metres."""
    rng = np.random.default_rng(3)
    fine, finer = north_up(ARC / 2), (2 * height, 2 * width)
    write_raster(Path("viirs.tif"), rng.gamma(0.5, 8, (height, width)).astype(np.float32))
    write_raster(Path("sdgsat.tif"), rng.gamma(0.5, 8, finer).astype(np.float32), transform=fine)
    header = {"scales": [2.75e-5] * 7, "offsets": [-0.2] * 7, "nodata": 0}
    names = [f"SR_B{k}" for k in range(1, 8)]
    numbers = rng.integers(7300, 20000, (7, *finer)).astype(np.uint16)
    write_raster(Path("landsat.tif"), numbers, transform=fine, names=names, **header)  # type: ignore[arg-type]
    write_raster(Path("nlcd.tif"), rng.integers(0, 101, finer).astype(np.uint8), transform=fine, nodata=255)
    write_raster(Path("srtm.tif"), rng.integers(0, 900, finer).astype(np.int16), transform=fine)


def test_the_first_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(18, 24)
    status, stdout, stderr = call(capfd, *printed("deeplight-infer --ntl"))
    assert (status, stdout.split()) == (0, ["lights.tif", "lights.png"]), stderr
    with rasterio.open("lights.tif") as dataset:
        assert dataset.shape == (8 * 18, 8 * 24) and np.isfinite(dataset.read()).all()


def test_the_line_that_cuts_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(64, 440)  # blocks of 2 · 64 + 16: three of them, one for each split
    done = CliRunner().invoke(data_command, printed("deeplight-data clip"))
    assert done.exit_code == 0, done.exception
    rows = read_index(tmp_path / "clips")
    assert {row.split for row in rows} == {"train", "val", "test"}
    assert {row.layers for row in rows} == {"ntl ntl_hr dmo isp"}


@pytest.mark.parametrize(
    ("case", "added"),
    [
        ("Sentinel-2 digital numbers as ESA has delivered", 1000),
        ("Sentinel-2 digital numbers from before", 0),
    ],
)
def test_the_recipes_for_sentinel_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str, added: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(6, 9)
    numbers = np.random.default_rng(0).integers(150, 4000, (4, 6, 9)).astype(np.uint16) + np.uint16(added)
    write_raster(Path("s2.tif"), numbers)
    model = write_analytic(tmp_path / "model")
    given = ("--ntl", "viirs.tif", "--dmo", "s2.tif", "--out", "o.tif", "--model", model)
    status, _, stderr = call(capfd, *given, *recipe(case))
    assert status == 0, stderr


def test_the_recipe_for_a_file_a_band(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(6, 9)
    for band in ("B02", "B03", "B04"):
        write_raster(Path(f"{band}.tif"), np.full((6, 9), 0.1, np.float32))
    model = write_analytic(tmp_path / "model")
    given = ("--ntl", "viirs.tif", "--out", "o.tif", "--model", model)
    status, _, stderr = call(capfd, *given, *recipe("a file for each daytime band"))
    assert status == 0, stderr
