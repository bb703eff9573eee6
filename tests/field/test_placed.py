"""Rasters whose place is given or does not fit: the rows stay in their order, and a message leads out."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import open_raster
from tests.field.lights import lights, put
from tests.field.programs import advised, shell
from tests.scenes import ARC, NORTH, WEST, open_error

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
WHOLE = Window(0, 0, 48, 48)
EDGES = (WEST, NORTH - 48 * ARC, WEST + 48 * ARC, NORTH)


def netcdf_without_coordinates(path: Path) -> str:
    with h5py.File(path, "w", track_order=True) as file:
        for name in ("y", "x"):
            file[name] = np.zeros(48, np.float32)
            file[name].make_scale("This is a netCDF dimension but not a netCDF variable.        48")
        file["avg_rad"] = lights()
        for axis, name in enumerate(("y", "x")):
            file["avg_rad"].dims[axis].attach_scale(file[name])
    return str(path)


def test_a_netcdf_without_coordinates_is_not_turned_upside_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = netcdf_without_coordinates(tmp_path / "n.nc")
    place = {"ntl_crs": "EPSG:4326", "ntl_bounds": EDGES}
    with Scene.open(SceneOptions(path, **place)) as scene:
        np.testing.assert_array_equal(scene.read_ntl(WHOLE)[0], lights())
        assert scene.grid.transform.e < 0
    assert "its first row is taken as the northernmost" in caplog.text
    caplog.clear()
    plain = put(tmp_path, lights())
    with Scene.open(SceneOptions(plain, ntl_bounds=EDGES)) as scene:
        np.testing.assert_array_equal(scene.read_ntl(WHOLE)[0], lights())
    assert "northernmost" not in caplog.text


def test_deeplight_data_copy_keeps_the_rows_too(tmp_path: Path) -> None:
    netcdf_without_coordinates(tmp_path / "n.nc")
    shell("deeplight-data copy netcdf:n.nc:avg_rad c.tif", tmp_path)
    with rasterio.open(tmp_path / "c.tif") as d:
        np.testing.assert_array_equal(d.read(1), lights())


def test_the_copy_of_a_netcdf_without_coordinates_keeps_its_rows(tmp_path: Path) -> None:
    """Layers without options for their place are copied by the command that the message prints."""
    path = netcdf_without_coordinates(tmp_path / "isp.nc")
    with pytest.raises(InputError) as error:
        open_raster(path, "ISP")
    command = advised(str(error.value), "GDAL_NETCDF_BOTTOMUP=NO ")
    wanted = f"{ARC!r}, 0, {WEST!r}, 0, -{ARC!r}, {NORTH!r}"
    shell(command.replace("pixel width, 0, west, 0, -pixel height, north", wanted), tmp_path)
    with rasterio.open(tmp_path / "placed.tif") as placed:
        np.testing.assert_array_equal(placed.read(1), lights())


def test_degrees_under_a_crs_in_metres_are_refused_and_the_way_out_works(tmp_path: Path) -> None:
    plain = put(tmp_path, lights())
    with Scene.open(SceneOptions(plain)) as scene:
        wanted = scene.grid
    path = put(tmp_path, lights(), "utm.tif", crs="EPSG:32633")
    said = open_error(SceneOptions(path))
    assert "its CRS and its coordinates (from x = 6, y = 50) do not fit together" in said
    assert 'add `ntl_crs="EPSG:4326"` (or' in said
    with Scene.open(SceneOptions(path, ntl_crs="EPSG:4326")) as scene:
        assert scene.grid == wanted
    with pytest.raises(InputError) as error:  # a layer without options
        open_raster(path, "ISP")
    shell(advised(str(error.value), f"{sys.executable} -c"), tmp_path)
    with open_raster(str(tmp_path / "placed.tif"), "ISP") as placed:
        assert placed.grid == wanted


def test_small_pixels_in_metres_are_no_degrees(tmp_path: Path) -> None:
    """A drone's picture at 5 cm has large coordinates."""
    place = rasterio.Affine(0.05, 0, 480_000, 0, -0.05, 5_400_000)
    path = put(tmp_path, lights(), "drone.tif", crs="EPSG:32633", transform=place)
    with open_raster(path, "DMO") as opened:
        assert opened.grid.transform == place
