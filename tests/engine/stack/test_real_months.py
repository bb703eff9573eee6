"""Twelve synthetic months over the real layers of Luxembourg: twelve maps, byte for byte those of twelve runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.stack.options import StackOptions
from deeplight.engine.stack.run import infer_dates


@pytest.mark.slow
def test_twelve_maps_are_those_of_twelve_runs(shared_data: Path, tmp_path: Path) -> None:
    place, random = shared_data / "luxembourg", np.random.default_rng(0)
    with rasterio.open(place / "ntl.tif") as d:
        lights, profile = d.read(1), d.profile
    for month in range(1, 13):
        season = lights * (1 + 0.15 * np.sin(month)) + random.normal(0, 0.3, lights.shape)
        with rasterio.open(tmp_path / f"ntl-2013-{month:02}.tif", "w", **profile) as d:
            d.write(np.clip(np.rint(season), 0, 62).astype(lights.dtype), 1)
    scene = SceneOptions(
        str(tmp_path / "ntl-2013-*.tif"),
        str(place / "dmo.tif"),
        str(place / "dem.tif"),
        dmo_scale=(0.0001, 0.0),
        dmo_bands={"blue": 1, "green": 2, "red": 3, "nir": 4},
    )
    run = RunOptions(scene, tmp_path / "out", threads=1)
    infer_dates(StackOptions((scene.ntl,), run))
    dates = json.loads((tmp_path / "out" / "run.json").read_text())["dates"]
    assert len(dates) == 12
    for number, date in enumerate(dates):
        ntl = str(tmp_path / f"ntl-{date['date']}.tif")
        single = tmp_path / f"{date['date']}.tif"
        report = infer(replace(run, scene=replace(scene, ntl=ntl), out=single))
        assert single.read_bytes() == (tmp_path / "out" / single.name).read_bytes(), date["date"]
        assert report is not None
        for layer in ("dmo", "dem"):
            read = date["run"]["inputs"][layer]["bytes_read"]
            assert read == 0 if number else read == pytest.approx(report.inputs[layer]["bytes_read"], rel=0.1)
        took = {
            "date": date["date"],
            "seconds": date["run"]["seconds"]["total"],
            "bytes": date["run"]["bytes_read"],
        }
        print({**took, "alone": (report.seconds["total"], report.bytes_read)})
        assert took["seconds"] > 0 and (
            took["bytes"] is None or took["bytes"] < report.bytes_read or not number
        )
