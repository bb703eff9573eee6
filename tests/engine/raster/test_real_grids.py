"""Real rasters on odd grids through the whole engine; see the hostile folder's SOURCES.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic

FILES = [
    "h16_rotated_nan_no_nodata.tif",
    "h17_sheared_utm.tif",
    "h20_sinusoidal.nc",
]


@pytest.mark.parametrize("name", FILES)
def test_the_output_lies_on_the_input_and_is_nodata_where_it_is(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    scene = SceneOptions(str(shared_data / "hostile" / name))
    model = str(write_analytic(tmp_path / "model"))
    out = tmp_path / "o.tif"
    infer(RunOptions(scene=scene, out=out, model=model, tiles=TileRequest(64), bands=("quality",)))
    with Scene.open(scene) as opened:
        grid, unit = opened.grid, opened.unit
        valid = opened.read_ntl(Window(0, 0, grid.height, grid.width))[1] != 0
    with rasterio.open(out) as d:
        assert d.shape == (8 * grid.height, 8 * grid.width)
        assert (d.units[0] or "") == unit
        for row, col in ((0, 0), (grid.height, grid.width), (0, grid.width)):
            np.testing.assert_allclose(
                d.transform @ (8 * col, 8 * row), grid.transform @ (col, row), rtol=1e-9
            )
        assert d.crs == grid.crs or d.crs.to_dict() == grid.crs.to_dict()
        for band in d.read():
            np.testing.assert_array_equal(np.isfinite(band), np.kron(valid, np.ones((8, 8), bool)))
    assert valid.any()


def test_a_real_raster_without_a_valid_pixel_is_refused(shared_data: Path, tmp_path: Path) -> None:
    """A south-up grid of the globe, every pixel of it −9999, its nodata value."""
    scene = SceneOptions(str(shared_data / "hostile" / "h10_south_up.tif"))
    request = RunOptions(scene=scene, out=tmp_path / "o.tif", model=str(write_analytic(tmp_path / "model")))
    with pytest.raises(InputError, match="has no valid pixel: all are NaN, masked or the nodata value -9999"):
        infer(request)
    assert not request.out.exists()
