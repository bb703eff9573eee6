"""Lights that daytime bands do not explain: boats, gas flares, camps lose light, and the run says what took it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.lib.stride_tricks import sliding_window_view

from tests.engine.analytic import write_analytic
from tests.field.programs import run

SIDE = 96


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic country, and boats.tif: it with twenty points of 10 to 63 nW/cm²/sr in its dark."""
    folder = tmp_path_factory.mktemp("country")
    done = run("deeplight-data", "synth", "--out", "s", "--lr-size", SIDE, "--seed", "7", cwd=folder)
    assert done.returncode == 0, done.stderr
    with rasterio.open(folder / "s/ntl.tif") as dataset:
        ntl, profile = dataset.read(1, masked=True), dataset.profile
    valid, plain = ~np.ma.getmaskarray(ntl), ntl.filled(0).astype(float)
    brightest = sliding_window_view(np.pad(plain, 6, mode="edge"), (13, 13)).max((2, 3))
    dark = np.argwhere((brightest < 1) & sliding_window_view(np.pad(valid, 6), (13, 13)).all((2, 3)))
    random = np.random.default_rng(0)
    places: list[np.ndarray] = []
    for place in random.permutation(dark):
        if all(np.abs(place - other).max() > 14 for other in places):
            places.append(place)
    y, x = np.mgrid[:SIDE, :SIDE]
    for place in places[:20]:
        row, col = place + random.uniform(-0.5, 0.5, 2)
        plain += 10 ** random.uniform(1, 1.8) * np.exp(-((y - row) ** 2 + (x - col) ** 2) / 2 / 0.85**2)
    with rasterio.open(folder / "boats.tif", "w", **profile) as dataset:
        dataset.write(np.where(valid, plain, profile["nodata"]).astype(np.float32), 1)
    shutil.copy(folder / "s/ntl.tif", folder / "plain.tif")
    return folder


def told(country: Path, *arguments: object) -> str:
    done = run("deeplight-infer", *arguments, "--out", "o.tif", "--overwrite", "--tiles", SIDE, cwd=country)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_light_that_the_daytime_bands_move_is_laid_at_their_door(country: Path) -> None:
    """By a model that adds light wherever there are daytime bands."""
    write_analytic(country / "analytic")
    said = told(country, "--ntl", "plain.tif", "--dmo", "s/dmo.tif", "--model", "analytic")
    found = re.search(
        r"warning: .*changed by .*, because of the daytime bands \("
        r"(?:light where they show no settlement, as of boats, gas flares or camps, is lost; )?"
        r"without them \d+ places of the scene, computed again, change by "
        r"([-+]\d+)%, (\d+) of \d+ blocks in place of ([-+]\d+)%, (\d+) of \d+ blocks\): use --conserve-radiance",
        said,
    )
    assert found, said
    assert abs(int(found[1])) < abs(int(found[3])) and int(found[2]) < int(found[4])


def test_the_built_in_model_leaves_most_of_their_light_to_boats(country: Path) -> None:
    told(country, "--ntl", "boats.tif", "--dmo", "s/dmo.tif", "--psf", "1.2")
    with rasterio.open(country / "o.tif") as given, rasterio.open(country / "s/ntl.tif") as plain:
        out, before = given.read(1), plain.read(1, masked=True).filled(0)
    with rasterio.open(country / "boats.tif") as dataset:
        boats = dataset.read(1, masked=True).filled(0) - before
    seen = np.nan_to_num(out).reshape(SIDE, 8, SIDE, 8).mean((1, 3)) - before
    kept = seen[boats > 0.5].sum() / boats[boats > 0.5].sum()
    assert 0.8 < kept < 1.25, kept


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ntl", "boats.tif"),
        ("--ntl", "plain.tif", "--dmo", "s/dmo.tif"),
        ("--ntl", "boats.tif", "--dmo", "s/dmo.tif", "--conserve-radiance"),
    ],
    ids=["no daytime bands", "no boats", "conserved"],
)
def test_nothing_else_blames_the_daytime_bands(country: Path, arguments: tuple[str, ...]) -> None:
    assert "because of the daytime bands" not in told(country, *arguments)
