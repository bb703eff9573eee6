"""Fixtures of the runs' tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.run.wholes import PACKS, Whole
from tests.scenes import write_raster


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (4, 256 * (PACKS - 1) + 8)).astype(np.float32)
    ntl[:, 300:500] = -1
    request = RunOptions(
        scene=SceneOptions(ntl=str(write_raster(folder / "ntl.tif", ntl, nodata=-1))),
        out=folder / "o.tif",
        model=str(write_analytic(folder / "analytic")),
        tiles=TileRequest(64),
        threads=1,
    )
    infer(request)
    return Whole(request, request.out.read_bytes())


@pytest.fixture
def whole(whole_once: Whole, tmp_path: Path) -> Whole:
    """The same run, with an output folder of its own."""
    return dataclasses.replace(
        whole_once, request=dataclasses.replace(whole_once.request, out=tmp_path / "o.tif")
    )
