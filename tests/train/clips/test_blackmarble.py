"""Black Marble tiles: georeference from the name, scale and fill from the attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.clips.blackmarble import TILE, convert, open_tile, tile_of
from deeplight.train.data_cli import cli

GROUP = "HDFEOS/GRIDS/VNP_Grid_DNB/Data Fields"
A2 = "Gap_Filled_DNB_BRDF-Corrected_NTL"


def write_tile(
    folder: Path, name: str, layers: dict[str, tuple[np.ndarray, dict[str, Any]]], group: str = GROUP
) -> Path:
    path = folder / name
    with h5py.File(path, "w") as file:
        place = file.create_group(group)
        for layer, (values, attributes) in layers.items():
            dataset = place.create_dataset(layer, data=values, chunks=(480, 480), compression=1)
            dataset.attrs.update(attributes)
        place.create_dataset("QF_Cloud_Mask", data=np.zeros((8, 8), np.uint16))
    return path


def raw(value: int = 123, dtype: str = "uint16") -> np.ndarray:
    return np.full((TILE, TILE), value, dtype)


DAILY = {"_FillValue": np.uint16(65535), "scale_factor": np.float32(0.1), "add_offset": np.float32(0.0)}


def test_the_name_gives_the_place() -> None:
    assert tile_of("VNP46A2.A2021001.h29v05.001.2021012345678.h5") == (29, 5)
    assert tile_of("VJ146A3.A2021001.h00v17.002.x.h5") == (0, 17)
    for name in ("VNP46A2.A2021001.001.h5", "VNP46A2.A2021001.h36v05.001.h5", "VNP46A2.h10v18.h5", "h2v3.h5"):
        with pytest.raises(InputError, match="which tile it is"):
            tile_of(name)


def test_a_daily_tile_becomes_radiance(tmp_path: Path) -> None:
    values = raw()
    values[0, 0], values[0, 1], values[TILE - 1, TILE - 1] = 65535, 0, 65534
    path = write_tile(tmp_path, "VNP46A2.A2021032.h29v05.001.1.h5", {A2: (values, DAILY)})
    out = tmp_path / "ntl.tif"
    (tile,) = convert([path], out, Silent())
    assert (tile.h, tile.v, tile.date, tile.layer) == (29, 5, "2021032", A2)
    with rasterio.open(out) as dataset:
        assert dataset.crs.to_epsg() == 4326 and dataset.shape == (TILE, TILE)
        assert dataset.bounds == pytest.approx((110.0, 30.0, 120.0, 40.0))
        assert dataset.units == ("nW/cm²/sr",)
        got = dataset.read(1)
    assert np.isnan(got[0, 0]) and np.isnan(got).sum() == 1
    assert got[0, 1] == 0 and got[-1, -1] == pytest.approx(6553.4) and got[5, 5] == pytest.approx(12.3)
    with Scene.open(SceneOptions(str(out))) as scene:  # the engine takes it as it is
        seen, valid = scene.read_ntl(Window(0, 0, 1, 2))
        assert valid.tolist() == [[0, 1]] and seen.tolist() == [[0.0, 0.0]] and scene.unit == "nW/cm²/sr"


def test_a_float_composite_with_its_own_fill_and_no_scale(tmp_path: Path) -> None:
    values = raw(3, "float32") + np.float32(0.5)
    values[10, 20] = -999.9
    layer = "AllAngle_Composite_Snow_Free"
    layers = {
        layer: (values, {"_FillValue": np.float32(-999.9)}),
        "AllAngle_Composite_Snow_Free_Std": (values, {}),
    }
    path = write_tile(
        tmp_path, "VNP46A4.A2021001.h18v04.002.1.h5", layers, "HDFEOS/GRIDS/VIIRS_Grid_DNB_2d/Data Fields"
    )
    convert([path], tmp_path / "o.tif", Silent())
    with rasterio.open(tmp_path / "o.tif") as dataset:
        got = dataset.read(1)
    assert np.isnan(got[10, 20]) and np.nanmin(got) == np.nanmax(got) == 3.5


def test_quality_flags_drop_pixels(tmp_path: Path) -> None:
    flags = raw(0, "uint8")
    flags[0, :4] = [1, 2, 255, 0]
    layers = {A2: (raw(), DAILY), "Mandatory_Quality_Flag": (flags, {"_FillValue": np.uint8(255)})}
    path = write_tile(tmp_path, "VNP46A2.A2021032.h00v00.001.1.h5", layers)
    for most, lost in (
        (0, [True, True, True, False]),
        (1, [False, True, True, False]),
        (2, [False, False, True, False]),
    ):
        convert([path], tmp_path / "q.tif", Silent(), max_quality=most)
        with rasterio.open(tmp_path / "q.tif") as dataset:
            assert np.isnan(dataset.read(1)[0, :4]).tolist() == lost
            assert dataset.bounds[0] == -180 and dataset.bounds[3] == 90


def test_neighbours_become_one_raster(tmp_path: Path) -> None:
    east = write_tile(tmp_path, "VNP46A2.A2021032.h11v04.001.1.h5", {A2: (raw(20), DAILY)})
    south = write_tile(tmp_path, "VNP46A2.A2021032.h10v05.001.1.h5", {A2: (raw(30), DAILY)})
    done = CliRunner().invoke(cli, ["blackmarble", str(east), str(south), "--out", str(tmp_path / "m.tif")])
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.shape == (2 * TILE, 2 * TILE) and dataset.bounds == pytest.approx(
            (-80.0, 30.0, -60.0, 50.0)
        )
        corners = dataset.read(1)[:: TILE + 7, :: TILE + 7]
    np.testing.assert_allclose(corners, [[np.nan, 2.0], [3.0, np.nan]], rtol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([east.name, south.name, "m.tif"])


def test_what_is_no_such_tile_is_refused_in_a_sentence(tmp_path: Path) -> None:
    small = write_tile(tmp_path, "VNP46A2.A2021032.h10v05.001.h5", {A2: (raw()[:480, :480], DAILY)})
    other = write_tile(
        tmp_path, "VNP46A2.A2021033.h10v06.001.h5", {A2: (raw(), DAILY), "Snow_Flag": (raw(), {})}
    )
    first = write_tile(tmp_path, "VNP46A2.A2021032.h10v07.001.h5", {A2: (raw(), DAILY)})
    broken = tmp_path / "VNP46A2.A2021032.h10v08.001.h5"
    broken.write_bytes(b"no HDF5")
    cases = [
        ([small], {}, "480x480 pixels"),
        ([first, other], {}, "differ in date"),
        ([first, first], {}, "the same tile"),
        ([first], {"layer": "Moon"}, "no layer Moon; its layers are " + A2),
        ([first], {"max_quality": 1}, "no quality flags"),
        ([broken], {}, "cannot be opened as HDF5"),
        ([tmp_path / "VNP46A2.A2021032.h10v09.001.h5"], {}, "does not exist"),
    ]
    for files, options, message in cases:
        with pytest.raises(InputError, match=message) as error:
            convert(files, tmp_path / "out.tif", Silent(), **options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out.tif").exists()
    (tmp_path / "out.tif").write_bytes(b"mine")
    done = CliRunner().invoke(cli, ["blackmarble", str(first), "--out", str(tmp_path / "out.tif")])
    assert isinstance(done.exception, InputError) and "--overwrite" in str(done.exception)
    assert (tmp_path / "out.tif").read_bytes() == b"mine"
    assert open_tile(other, None, quality=False).layer == A2
