"""A vegetation index given as impervious surface teaches the model the opposite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.scene import SceneOptions
from deeplight.train.clips.place import Place, PlaceOptions
from deeplight.train.data_cli import cli
from tests.field.lights import lights, put

RNG = np.random.default_rng(4)
NDVI = np.clip(RNG.normal(0.4, 0.2, (48, 48)), -0.3, 0.9).astype(np.float32)


def opened(folder: Path, values: Any, name: str = "isp.tif", **options: Any) -> None:
    scene = SceneOptions(put(folder, lights(), units=["nW/cm2/sr"]))
    with Place(PlaceOptions(scene, isp=put(folder, values, name), **options)):
        pass


def refusal(folder: Path, values: Any, name: str = "isp.tif") -> str:
    with pytest.raises(InputError) as error:
        opened(folder, values, name)
    return str(error.value)


def test_ndvi_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, NDVI)
    assert "looks like a vegetation index" in said and "give impervious surface" in said
    few = np.where(NDVI < 0.01, np.float32(0.01), NDVI)
    few[5, 5:10] = -0.02  # water on 0.2 % of the place: less than what a fraction may have beyond 0…1
    assert "0.22 % of the sampled values are below 0" in refusal(tmp_path, few)
    assert "looks like a vegetation index" in refusal(tmp_path, np.abs(NDVI), "NDVI_2020.tif")


def test_a_place_without_bare_ground_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path, np.maximum(NDVI, 0.01))
    assert "looks like a vegetation index" in caplog.text and "if it is one" in caplog.text


@pytest.mark.parametrize("kind", ["rural", "percent", "whole city in percent", "resampled"])
def test_fractions_pass(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = np.where(RNG.random((48, 48)) < 0.7, 0, RNG.random((48, 48))).astype(np.float32)
    values, options = {
        "rural": (built, {}),
        "percent": (np.rint(built * 100).astype(np.uint8), {"isp_scale": (0.01, 0.0)}),
        "whole city in percent": (
            RNG.integers(20, 100, (48, 48)).astype(np.uint8),
            {"isp_scale": (0.01, 0.0)},
        ),
        "resampled": (np.where(built == 0, np.float32(0), built - np.float32(0.003)), {}),
    }[kind]
    opened(tmp_path, values, **options)
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path) -> None:
    ntl, isp = put(tmp_path, lights(), units=["nW/cm2/sr"]), put(tmp_path, NDVI, "isp.tif")
    done = CliRunner().invoke(
        cli, ["clip", "--out", str(tmp_path / "tree"), "--place", "here", "--ntl", ntl, "--isp", isp]
    )
    assert isinstance(done.exception, InputError) and "looks like a vegetation index" in str(done.exception)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("place", ["us_nyc", "us_la", "us_chicago", "us_philly"])
def test_real_indices_are_refused_and_real_fractions_pass(
    place: str, shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared_data / place
    scene = SceneOptions(str(folder / "ntl.tif"), ntl_scale=(0.1, 0.0))
    unnamed = tmp_path / "layer.tif"
    unnamed.write_bytes((folder / "ndvi.tif").read_bytes())
    with pytest.raises(InputError, match="looks like a vegetation index"):
        Place(PlaceOptions(scene, isp=str(unnamed)))
    with Place(PlaceOptions(scene, isp=str(folder / "bld_density.tif"))):
        pass
    assert "vegetation" not in caplog.text
