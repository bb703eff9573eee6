"""Odd grids and formats through the whole engine. NTL is dark and the model adds |DEM| / 1000, so the output is
the DEM's field at the HR pixel centres, wherever the layers put them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform as transform_points

from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import Raster
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.scenes import (
    ARC,
    NORTH,
    NTL,
    UTM,
    WEST,
    centres_xy,
    dmo_file,
    north_up,
    ntl_file,
    open_error,
    write_raster,
)

H, W = 11, 13
POLAR = "EPSG:3413"
WAVE_KM = 24.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def ground(crs: str, transform: Affine, height: int, width: int) -> NDArray[np.float64]:
    """A smooth field in 0.1 … 0.5 at a grid's pixel centres, of the place on the sphere alone: no seam
    anywhere."""
    xs, ys = centres_xy(transform, height, width)
    lon, lat = transform_points(crs, "EPSG:4326", xs.ravel(), ys.ravel())
    lam, phi = np.radians(lon).reshape(xs.shape), np.radians(lat).reshape(xs.shape)
    k = 2 * np.pi * 6371.0 / WAVE_KM
    point = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
    return np.asarray(0.3 + 0.2 / 3 * sum(np.sin(k * p + i) for i, p in enumerate(point)))


def dem(path: Path, crs: str, transform: Affine, height: int, width: int) -> str:
    values = ground(crs, transform, height, width) * 1000
    return str(write_raster(path, values.astype(np.float32), crs, transform))


def strip(path: Path, latitude: float, west: float = -180.0) -> str:
    """A DEM all around the Earth, 0.6° high, with pixels of 0.04° × 0.01°."""
    return dem(path, "EPSG:4326", Affine(0.04, 0, west, 0, -0.01, latitude + 0.3), 60, 9000)


def local(path: Path, crs: str, transform: Affine, pixel: float = 0.004) -> str:
    """A DEM in degrees that covers a grid of H × W with a margin."""
    xs, ys = transform_points(
        crs, "EPSG:4326", *zip(*(transform @ (c, r) for c in (0, W) for r in (0, H)), strict=True)
    )
    west, north = min(xs) - 0.02, max(ys) + 0.02
    rows, cols = int((north - min(ys) + 0.02) / pixel), int((max(xs) + 0.02 - west) / pixel)
    return dem(path, "EPSG:4326", north_up(pixel, west, north), rows, cols)


def run(tmp_path: Path, model: str, ntl: str, **layers: Any) -> NDArray[np.float32]:
    out = tmp_path / "out.tif"
    infer(RunOptions(scene=SceneOptions(ntl, **layers), out=out, model=model, tiles=TileRequest(6)))
    with rasterio.open(out) as written, rasterio.open(ntl) as given:
        assert written.shape == (given.height * SCALE, given.width * SCALE)
        np.testing.assert_allclose(written.transform @ (0, 0), given.transform @ (0, 0), atol=1e-9)
        corner = (given.width * SCALE, given.height * SCALE)
        np.testing.assert_allclose(
            written.transform @ corner, given.transform @ (given.width, given.height), rtol=1e-12, atol=1e-9
        )
        return np.asarray(written.read(1))


def centred(crs: str, lon: float, lat: float, pixel: float, turn: float = 0.0, up: float = -1.0) -> Affine:
    """A transform whose H × W grid has its middle at a place."""
    (x,), (y,) = transform_points("EPSG:4326", crs, [lon], [lat])
    inner = Affine.rotation(turn) @ Affine.scale(pixel, up * pixel) @ Affine.translation(-W / 2, -H / 2)
    return Affine.translation(x, y) @ inner


PLACES = {
    "rotated": (UTM, centred(UTM, 8, 50, 464, turn=30)),
    "sheared": (UTM, centred(UTM, 8, 50, 464) @ Affine.shear(20, 0)),
    "south-up": ("EPSG:4326", centred("EPSG:4326", 8, 50, ARC, up=1)),
    "east to west": ("EPSG:4326", centred("EPSG:4326", 8, 50, ARC) @ Affine(-1, 0, W, 0, 1, 0)),
    "polar stereographic": (POLAR, centred(POLAR, 20, 75, 464)),
    "longitudes to 360": ("EPSG:4326", centred("EPSG:4326", 8, 50, ARC) @ Affine.identity()),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_output_lies_where_the_layers_say(name: str, model: str, tmp_path: Path) -> None:
    crs, place = PLACES[name]
    aux = local(tmp_path / "dem.tif", crs, place)
    if name == "longitudes to 360":
        place = Affine.translation(360, 0) @ place
    ntl = str(write_raster(tmp_path / "ntl.tif", np.zeros((H, W), np.float32), crs, place))
    got = run(tmp_path, model, ntl, dem=aux)
    want = ground(crs, place @ Affine.scale(1 / SCALE), H * SCALE, W * SCALE)
    # Bilinear at 0.3 … 0.45 km: (2π / 54)² / 8 · 0.2; the mesh, 1/8 px of 58 m: 0.2 · 2π · 0.007 / 24.
    assert np.abs(got - want).max() < 1e-3
    assert want.std() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crs", "west"),
    [("EPSG:4326", -180.0), ("EPSG:4326", 0.0), (POLAR, -180.0)],
    ids=["degrees, seam at 180", "degrees, seam at 0", "polar, seam at 180"],
)
def test_a_layer_around_the_earth_is_read_across_its_own_seam(
    crs: str, west: float, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latitude = 70.0
    place = centred(crs, west, latitude, 464 if crs == POLAR else 0.01)
    ntl = str(write_raster(tmp_path / "ntl.tif", np.zeros((H, W), np.float32), crs, place))
    aux = strip(tmp_path / "dem.tif", latitude, west=west)
    widest = 0
    read = Raster.read

    def recording(self: Raster, window: Window, *how: Any) -> Any:
        nonlocal widest
        widest = max(widest, window.width if self.role == "DEM" else 0)
        return read(self, window, *how)

    with monkeypatch.context() as patch:
        patch.setattr(Raster, "read", recording)
        got = run(tmp_path, model, ntl, dem=aux)
    want = ground(crs, place @ Affine.scale(1 / SCALE), H * SCALE, W * SCALE)
    # A DEM pixel is 1.5 × 1.1 km: ((2π / 16)² + (2π / 22)²) / 8 · 0.1 = 3e-3. Without the neighbour beyond the seam,
    # half a pixel is flat: 0.76 km · 2π / 24 km · 0.1 = 2e-2.
    assert np.abs(got - want).max() < 4e-3
    assert 0 < widest < 200, "a tile at the seam must not read the layer's whole width"


def test_seam_crossing_windows_hold_the_same_bits_as_small_ones(tmp_path: Path) -> None:
    ntl = ntl_file(tmp_path, np.zeros((H, W), np.float32), crs=POLAR, transform=centred(POLAR, 180, 70, 464))
    with Scene.open(SceneOptions(ntl, dem=strip(tmp_path / "dem.tif", 70.0))) as scene:
        whole = scene.read_inputs(Window(0, 0, H, W))
        for window in (Window(5, 6, 1, 1), Window(0, 0, 6, 7), Window(3, 7, 8, 5)):
            rows, cols = window.scaled(SCALE).slices_in(Window(0, 0, H, W).scaled(SCALE))
            part = scene.read_inputs(window)
            np.testing.assert_array_equal(part["dem"], whole["dem"][..., rows, cols])
            np.testing.assert_array_equal(part["dem_valid"], whole["dem_valid"][..., rows, cols])
    assert whole["dem_valid"].all()


def test_a_layer_that_does_not_close_keeps_its_gap(tmp_path: Path) -> None:
    """Its first and last column are 2° apart: no value is made up between them."""
    values = np.full((30, 17900), 100.0, np.float32)
    ntl = ntl_file(tmp_path, np.zeros((H, W), np.float32), transform=centred("EPSG:4326", 180, 70, 0.5))
    aux = str(write_raster(tmp_path / "d.tif", values, transform=north_up(0.02, -179, 70.3)))
    with Scene.open(SceneOptions(ntl, dem=aux)) as scene:
        valid = scene.read_inputs(Window(5, 0, 1, W))["dem_valid"][0, 0]
    xs, _ = centres_xy(north_up(0.5 / 8, 180 - W / 4), 1, W * SCALE)
    middle = valid[valid.shape[0] // 2]
    assert not middle[(xs[0] > 179.05) & (xs[0] < 180.95)].any()
    assert middle[(xs[0] < 178.95) | (xs[0] > 181.05)].all()


def test_finer_layers_are_averaged_and_coarser_ones_interpolated(tmp_path: Path) -> None:
    ntl = ntl_file(tmp_path, np.zeros((H, W), np.float32))
    speckle = np.indices((H * 32, W * 32)).sum(axis=0) % 2 * 1000.0
    fine = str(write_raster(tmp_path / "f.tif", speckle.astype(np.float32), transform=north_up(ARC / 32)))
    steps = np.arange(W + 2, dtype=np.float32) * 80 + np.zeros((H + 2, 1), np.float32)
    coarse = str(write_raster(tmp_path / "c.tif", steps, transform=north_up(ARC, 6 - ARC, 50 + ARC)))
    with Scene.open(SceneOptions(ntl, dem=fine)) as scene:
        assert isinstance(scene._dem, AuxLayer) and scene._dem.factors == (4, 4)
        mean = scene.read_inputs(Window(0, 0, H, W))["dem"]
    # 16 pixels of a checkerboard; picking one of them would give 0 or 1000.
    np.testing.assert_allclose(mean, 500, atol=1e-3)
    with Scene.open(SceneOptions(ntl, dem=coarse)) as scene:
        ramp = scene.read_inputs(Window(0, 0, H, W))["dem"][0, 0]
    np.testing.assert_allclose(np.diff(ramp, axis=1), 10, atol=1e-3)


def test_log_and_report_say_which_share_of_the_output_had_which_layers(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ntl = np.zeros((8, 16), np.float32)
    ntl[:, 12:] = -1
    ntl_name = ntl_file(tmp_path, ntl, nodata=-1)
    place = north_up(ARC, WEST - ARC, NORTH + ARC)
    half = str(write_raster(tmp_path / "d.tif", np.ones((10, 7), np.float32), transform=place))
    lines: list[str] = []

    class Log:
        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: None

        def __enter__(self) -> Log:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def log(self, text: str) -> None:
            lines.append(text)

    caplog.set_level(logging.INFO, "deeplight")
    request = RunOptions(
        scene=SceneOptions(ntl_name, dem=half), out=tmp_path / "o.tif", model=model, tiles=TileRequest(5)
    )
    report = infer(request, Log())  # type: ignore[arg-type]
    assert report is not None
    # 6 of 12 valid columns, to the pixel.
    assert report.inputs["dem"]["share_of_output"] == 0.5
    assert "dmo" not in report.inputs
    assert any("valid pixels 50.0% had DEM and 50.0% NTL alone" in line for line in lines)
    assert "DEM: its file reaches over 38 % of the scene" in caplog.text  # 6 of 16 columns


def test_every_band_has_its_own_scale_and_offset(tmp_path: Path) -> None:
    raw = np.stack([np.full((15, 19), value, np.int16) for value in (3000, -500, 200, 0)])
    path = dmo_file(tmp_path, raw, scales=[1e-4, 1e-3, 2e-3, 1], offsets=[0.1, 0.9, 0, 0.25])
    with Scene.open(SceneOptions(ntl_file(tmp_path), path)) as scene:
        dmo = scene.read_inputs(Window(0, 0, 13, 17))["dmo"][0]
    for slot, value in {1: 0.4, 2: 0.4, 3: 0.4, 4: 0.25}.items():
        np.testing.assert_allclose(dmo[slot], value, rtol=1e-6)


def valid_in_output(tmp_path: Path, model: str, ntl: str, **changes: Any) -> NDArray[np.bool_]:
    """(h, w): where the output holds numbers; whole 8 × 8 blocks."""
    got = np.isfinite(run(tmp_path, model, ntl, **changes))
    blocks = got.reshape(got.shape[0] // SCALE, SCALE, -1, SCALE)
    assert (blocks.all(axis=(1, 3)) == blocks.any(axis=(1, 3))).all()
    return np.asarray(blocks.all(axis=(1, 3)))


HOLES = np.zeros((13, 17), bool)
HOLES[2:5, 3:9] = HOLES[12, 16] = HOLES[0, 0] = True


@pytest.mark.parametrize(
    "kind", ["internal mask", "NaN, undeclared", "nodata", "NaN, another nodata", "int8"]
)
def test_output_is_nodata_exactly_where_ntl_is(kind: str, model: str, tmp_path: Path) -> None:
    values, header = NTL.copy(), {}
    if kind == "internal mask":
        header = {"mask": ~HOLES}
    elif kind == "int8":
        values = np.where(HOLES, -128, NTL).astype(np.int8)
        header = {"nodata": -128}
    else:
        header = {"nodata": None if kind == "NaN, undeclared" else -999.0}
        values[HOLES] = -999.0 if kind == "nodata" else np.nan
    path = ntl_file(tmp_path, values, **header)
    np.testing.assert_array_equal(valid_in_output(tmp_path, model, path), ~HOLES)


def test_float16_and_complex(model: str, tmp_path: Path) -> None:
    half = ntl_file(tmp_path, NTL, NBITS=16)
    got = run(tmp_path, model, half)
    # 11 bits of the input's mantissa
    np.testing.assert_allclose(got[4 * 8, 8 * 8], NTL[2:7, 6:11].mean(), rtol=1e-3)
    path = str(write_raster(tmp_path / "c.tif", NTL.astype(np.complex64)))
    assert "holds complex numbers (complex64) and real ones are needed" in open_error(SceneOptions(path))


@pytest.mark.slow
def test_a_mosaic_of_thousands_of_tiles(model: str, tmp_path: Path) -> None:
    """3000 files behind one VRT: opened one after the other, never more than the system lets a process hold."""
    side, across, down = 4, 60, 50
    tile = write_raster(tmp_path / "t.tif", np.full((side, side), 250.0, np.float32))
    sources = []
    for k in range(across * down):
        name = f"t{k}.tif"
        (tmp_path / name).hardlink_to(tile)
        row, col = divmod(k, across)
        place = f'xOff="{col * side}" yOff="{row * side}" xSize="{side}" ySize="{side}"'
        sources.append(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>1</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{side}" ySize="{side}"/><DstRect {place}/></SimpleSource>'
        )
    vrt = tmp_path / "m.vrt"
    pixel = ARC / 4
    vrt.write_text(
        f'<VRTDataset rasterXSize="{across * side}" rasterYSize="{down * side}"><SRS>EPSG:4326</SRS>'
        f"<GeoTransform>6, {pixel}, 0, 50, 0, {-pixel}</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1">{"".join(sources)}</VRTRasterBand></VRTDataset>'
    )
    ntl = ntl_file(tmp_path, np.zeros((50, 60), np.float32))
    np.testing.assert_allclose(run(tmp_path, model, ntl, dem=str(vrt)), 0.25, rtol=1e-5)


STRUCT = """GROUP=GridStructure
GROUP=GRID_1
GridName="VIIRS_Grid_DNB_2d"
XDim={width}
YDim={height}
UpperLeftPointMtrs=(6000000.000000,50000000.000000)
LowerRightMtrs=(6006000.000000,49055000.000000)
Projection=HE5_GCTP_GEO
GridOrigin=HE5_HDFE_GD_UL
GROUP=Dimension
OBJECT=Dimension_1
DimensionName="YDim"
Size={height}
END_OBJECT=Dimension_1
OBJECT=Dimension_2
DimensionName="XDim"
Size={width}
END_OBJECT=Dimension_2
END_GROUP=Dimension
GROUP=DataField
OBJECT=DataField_1
DataFieldName="Lights"
DataType=H5T_NATIVE_USHORT
DimList=("YDim","XDim")
MaxdimList=("YDim","XDim")
END_OBJECT=DataField_1
END_GROUP=DataField
END_GROUP=GRID_1
END_GROUP=GridStructure
END
"""


def black_marble(path: Path, raw: NDArray[np.uint16]) -> str:
    """A file as Black Marble writes it, HDF-EOS5 with its grid in a text (20 × 24 pixels of 15″ from 6° E, 50° N);
    returns the GDAL name of its lights."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        about = file.create_group("HDFEOS INFORMATION")
        about.attrs["HDFEOSVersion"] = np.bytes_("HDFEOS_5.1.15")
        about["StructMetadata.0"] = np.bytes_(STRUCT.format(height=raw.shape[0], width=raw.shape[1]))
        fields = file.create_group("HDFEOS/GRIDS/VIIRS_Grid_DNB_2d/Data Fields")
        lights = fields.create_dataset("Lights", data=raw)
        lights.attrs["_FillValue"] = np.array([65535], np.uint16)
        lights.attrs["scale_factor"], lights.attrs["add_offset"] = np.array([0.1]), np.array([0.0])
        fields.create_dataset("Other", data=raw)
    return f'HDF5:"{path}"://HDFEOS/GRIDS/VIIRS_Grid_DNB_2d/Data_Fields/Lights'


def test_black_marble_hdf5_by_its_gdal_name(model: str, tmp_path: Path) -> None:
    raw = np.zeros((20, 24), np.uint16)
    raw[5:9, 3:7] = 65535
    name = black_marble(tmp_path / "VNP46A3.A2020032.h18v04.h5", raw)
    aux = dem(tmp_path / "dem.tif", "EPSG:4326", north_up(0.004, 5.98, 50.02), 40, 40)
    got = run(tmp_path, model, name, dem=aux)
    filled = np.kron(raw == 65535, np.ones((8, 8), bool))
    np.testing.assert_array_equal(np.isnan(got), filled)
    want = ground("EPSG:4326", north_up(ARC / 8), 160, 192)
    # As above; the file's sphere and the DEM's ellipsoid share latitudes.
    assert np.nanmax(np.abs(got - want)) < 1e-3


def test_netcdf_variable_by_its_gdal_name(model: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "cf.nc"
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("CF-1.8")
        axes = {"lat": 50 - ARC * (np.arange(H) + 0.5), "lon": 6 + ARC * (np.arange(W) + 0.5)}
        for axis, values in axes.items():
            file[axis] = values
            file[axis].attrs["units"] = np.bytes_(f"degrees_{'north' if axis == 'lat' else 'east'}")
            file[axis].make_scale(axis)
        file["crs"] = np.int32(0)
        file["crs"].attrs["grid_mapping_name"] = np.bytes_("latitude_longitude")
        for variable in ("lights", "count"):
            data = file.create_dataset(variable, data=np.full((H, W), 16.0, np.float32))
            data.attrs["grid_mapping"] = np.bytes_("crs")
            data.dims[0].attach_scale(file["lat"])
            data.dims[1].attach_scale(file["lon"])
    assert "name one: `ntl=" in open_error(SceneOptions(str(path)))
    got = run(tmp_path, model, f'NETCDF:"{path}":lights')
    np.testing.assert_allclose(got[40:48, 48:56], 16.0, rtol=1e-6)
