"""open_scene: layers as paths, arrays and DataArrays; what a scene says of itself; parts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

import deeplight as dl
from deeplight.api import layers
from deeplight.engine.core.windows import Window
from tests.scenes import ARC, NORTH, NTL, WEST, SceneFiles, north_up


def raw(path: Path) -> tuple[NDArray, dl.Grid, float | None]:
    with rasterio.open(path) as file:
        return file.read(), dl.Grid(file.crs, file.transform, file.height, file.width), file.nodata


def test_what_a_scene_says_of_itself(scene: dl.Scene) -> None:
    assert repr(scene).splitlines() == [
        "Scene of 21×27 LR pixels, 168×216 in results",
        "  grid: EPSG:4326, pixels of 0.00416667×0.00416667 degrees",
        "  lights: nW/cm²/sr",
        "  daytime bands: coastal 1, blue 2, green 3, red 4, nir 5, swir1 6, swir2 7, the file reaches over 100% of "
        "the scene",
        "  elevation: the file reaches over 100% of the scene",
    ]
    assert scene.shape == (21, 27)
    assert scene.coverage["dem"] == 1


def test_layers_may_be_texts(files: SceneFiles) -> None:
    with dl.open_scene(str(files.ntl)) as scene:
        assert "daytime bands: not given" in repr(scene)
        assert "elevation: not given" in repr(scene)


def test_parts_of_parts(scene: dl.Scene) -> None:
    part = scene[4:20, 5:][2:6, :-3]
    assert part.window == Window(6, 5, 4, 19)
    assert part.grid.transform @ (0, 0) == pytest.approx(scene.grid.transform @ (5, 6))
    assert part.grid.shape == part.shape == (4, 19)
    assert repr(part).startswith("Part (rows 6 to 9, columns 5 to 23) of 4×19 LR pixels")


def test_arrays_give_the_inputs_that_their_files_give(files: SceneFiles, scene: dl.Scene) -> None:
    ntl, ntl_grid, nodata = raw(files.ntl)
    dmo, dmo_grid, _ = raw(files.dmo)
    dem, dem_grid, void = raw(files.dem)
    given = (
        dl.Layer(ntl[0], ntl_grid, nodata=nodata, unit="nW/cm²/sr"),
        dl.Layer(dmo, dmo_grid, nodata=0, names=["coastal", "blue", "green", "red", "nir", "swir1", "swir2"],
                 scale=(1e-4, -0.1)),
        dl.Layer(dem[0], crs=dem_grid.crs, transform=tuple(dem_grid.transform)[:6], nodata=void),
    )  # fmt: skip
    with dl.open_scene(*given) as other:
        window = Window(0, 0, 21, 27)
        theirs, ours = scene.rasters.read_inputs(window), other.rasters.read_inputs(window)
        assert other.unit == "nW/cm²/sr"
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def test_a_file_for_each_slot_one_of_them_an_array(files: SceneFiles) -> None:
    dmo, grid, _ = raw(files.dmo)
    blue = dl.Layer(dmo[1].astype(np.float32) * 1e-4 - 0.1, grid)
    red = dl.Layer(dmo[3].astype(np.float32) * 1e-4 - 0.1, grid)
    with dl.open_scene(files.ntl, {"blue": blue, "red": red}) as scene:
        assert list(scene.bands) == ["blue", "red"]


def test_masked_pixels_and_nan_are_nodata() -> None:
    values = np.ma.masked_array(NTL.copy(), NTL < 5)
    values[0, -1] = np.nan
    with dl.open_scene(dl.Layer(values, crs="EPSG:4326", transform=north_up())) as scene:
        _, valid = scene.rasters.read_ntl(Window(0, 0, *NTL.shape))
    expected = NTL >= 5
    expected[0, -1] = False
    np.testing.assert_array_equal(valid != 0, expected)


def test_what_arrays_were_written_to_is_removed(
    files: SceneFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    layer = dl.Layer(NTL, crs="EPSG:4326", transform=north_up())
    scene = dl.open_scene(layer)
    assert list(tmp_path.glob("*/*.tif"))
    scene.close()
    scene.close()
    assert not list(tmp_path.iterdir())
    dl.open_scene(layer)  # nobody keeps it
    with pytest.raises(dl.InputError):
        dl.open_scene(layer, dem="absent.tif")
    assert not list(tmp_path.iterdir())


def test_strips_of_an_array_are_all_written() -> None:
    values = np.arange(600 * 3, dtype=np.float32).reshape(600, 3) / 50
    with dl.open_scene(
        dl.Layer(values, crs="EPSG:4326", transform=Affine(ARC, 0, WEST, 0, -ARC, NORTH))
    ) as scene:
        lights, _ = scene.rasters.read_ntl(Window(0, 0, 600, 3))
    np.testing.assert_array_equal(lights, values)


def test_the_lights_of_a_messages_array_are_called_so() -> None:
    with pytest.raises(dl.InputError) as error:
        dl.open_scene(dl.Layer(NTL, transform=north_up()))
    assert (
        str(error.value)
        == 'NTL array has no CRS; say which it is: add ntl_crs="EPSG:4326" (or the code of its own CRS)'
    )


def test_crs_as_number_and_as_object() -> None:
    layer = dl.Layer(NTL, transform=north_up())
    for crs in (4326, "EPSG:4326", rasterio.CRS.from_epsg(4326)):
        with dl.open_scene(layer, ntl_crs=crs) as scene:
            assert scene.grid.crs.to_epsg() == 4326


def test_a_full_disk_for_temporary_files_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layers, "write_layer", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(dl.DeepLightError) as error:
        dl.open_scene(dl.Layer(NTL, crs="EPSG:4326", transform=north_up()))
    assert str(error.value).startswith("the array given as ntl cannot be copied to ")
    assert str(error.value).endswith("free some space there, or set TMPDIR to another folder")
    assert not list(tmp_path.iterdir())
