from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.dataset_names import locate
from deeplight.engine.raster.source import Raster, open_raster
from tests.scenes import UTM, north_up, write_raster

RAMP = np.arange(63 * 50, dtype=np.uint16).reshape(63, 50)


def refusal(name: str | Path, role: str = "NTL") -> str:
    """The message of the InputError that opening must raise; one sentence."""
    with pytest.raises(InputError) as error:
        open_raster(str(name), role).close()
    message = str(error.value)
    assert "\n" not in message
    assert not message.endswith(".")
    assert message.startswith(f"{role} raster ")
    return message


def vrt(path: Path, sources: str, head: str = "<VRTDataset", tail: str = "") -> Path:
    path.write_text(
        f'{head} rasterXSize="50" rasterYSize="63">\n<SRS>EPSG:4326</SRS>\n'
        "<GeoTransform>6, 0.004, 0, 50, 0, -0.004</GeoTransform>\n"
        f'<VRTRasterBand dataType="UInt16" band="1">{sources}</VRTRasterBand>{tail}</VRTDataset>'
    )
    return path


def source(name: str, relative: int = 1, tag: str = "SourceFilename") -> str:
    file = f'<{tag} relativeToVRT="{relative}">{name}</{tag}>'
    return f"<SimpleSource>{file}<SourceBand>1</SourceBand></SimpleSource>"


def test_header_and_pixels_of_a_plain_geotiff(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif",
        np.stack([RAMP, RAMP + 1]),
        nodata=7,
        scales=[0.5, 2],
        offsets=[1, -3],
        names=["red", ""],
    )
    with open_raster(str(path), "DMO") as raster:
        assert (raster.grid.height, raster.grid.width, raster.count, raster.dtype) == (63, 50, 2, "uint16")
        assert raster.grid.crs.to_epsg() == 4326
        assert raster.grid.transform == north_up()
        assert raster.scales.tolist() == [0.5, 2.0]
        assert raster.offsets.tolist() == [1.0, -3.0]
        assert raster.nodata == (7.0, 7.0)
        assert raster.band_names == ("red", "")
        assert raster.size_bytes == path.stat().st_size
        raw, mask = raster.read(Window(61, 3, 2, 5), [2, 1])
    assert mask is None
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(raw, np.stack([RAMP + 1, RAMP])[:, 61:63, 3:8])


def test_common_name_tag_wins_over_description(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", RAMP, names=["B8"])
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, **{"eo:common_name": "nir"})
    with open_raster(str(path), "DMO") as raster:
        assert raster.band_names == ("nir",)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_real_dtypes_are_read_as_they_are(tmp_path: Path, dtype: str) -> None:
    values = (RAMP % 100).astype(dtype)
    with open_raster(str(write_raster(tmp_path / "a.tif", values)), "NTL") as raster:
        raw, _ = raster.read(Window(0, 0, 63, 50), [1])
    assert raw.dtype == dtype
    np.testing.assert_array_equal(raw[0], values)


def test_float16_file_is_read(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", (RAMP % 100).astype(np.float32), NBITS=16)
    with open_raster(str(path), "NTL") as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 63, 50), [1])[0][0], RAMP % 100)


def test_bands_of_two_dtypes_share_one_that_holds_both(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", RAMP)
    write_raster(tmp_path / "b.tif", RAMP.astype(np.float32) / 4)
    second = f'</VRTRasterBand><VRTRasterBand dataType="Float32" band="2">{source("b.tif")}'
    path = vrt(tmp_path / "ab.vrt", source("a.tif") + second)
    with open_raster(str(path), "DMO") as raster:
        raw, _ = raster.read(Window(1, 2, 3, 4), [1, 2])
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw[1], RAMP[1:4, 2:6] / 4)


def test_internal_mask_is_returned_and_nodata_is_not(tmp_path: Path) -> None:
    mask = RAMP % 3 > 0
    with open_raster(str(write_raster(tmp_path / "m.tif", RAMP, mask=mask)), "NTL") as raster:
        _, found = raster.read(Window(5, 6, 20, 30), [1])
    assert found is not None
    np.testing.assert_array_equal(found > 0, mask[5:25, 6:36])


def test_alpha_band_is_a_mask_and_no_data_band(tmp_path: Path) -> None:
    alpha = np.where(RAMP % 5 > 0, 255, 0).astype(np.uint16)
    path = write_raster(tmp_path / "a.tif", np.stack([RAMP, alpha]), photometric="MINISBLACK", alpha="YES")
    with open_raster(str(path), "NTL") as raster:
        assert (raster.count, raster.bands) == (1, (1,))
        _, mask = raster.read(Window(0, 0, 63, 50), raster.bands)
    assert mask is not None
    np.testing.assert_array_equal(mask > 0, alpha > 0)


def test_window_outside_is_an_error_not_a_smaller_array(tmp_path: Path) -> None:
    with (
        open_raster(str(write_raster(tmp_path / "a.tif", RAMP)), "NTL") as raster,
        pytest.raises(ValueError, match="not inside"),
    ):
        raster.read(Window(60, 0, 4, 4), [1])


def test_threads_read_the_same_through_handles_of_their_own(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", RAMP, tiled=True, blockxsize=16, blockysize=16, compress="deflate"
    )
    windows = [Window(r, c, 13, 11) for r in range(0, 50, 7) for c in range(0, 39, 5)]
    with open_raster(str(path), "NTL") as raster, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda w: raster.read(w, [1])[0][0], windows))
        handles = list(raster._handles)
    for window, pixels in zip(windows, found, strict=True):
        np.testing.assert_array_equal(
            pixels, RAMP[window.row : window.row + 13, window.col : window.col + 11]
        )
    assert len(handles) >= 2
    assert all(handle.closed for handle in handles)
    with pytest.raises(ValueError, match="closed"):
        raster.read(windows[0], [1])


def test_handles_are_closed_when_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Raster] = []
    monkeypatch.setattr(Raster, "close", lambda self, close=Raster.close: (opened.append(self), close(self)))
    assert "CRS" in refusal(write_raster(tmp_path / "a.tif", RAMP, crs=None))
    assert len(opened) == 1
    assert opened[0]._handles == []


def test_paths_that_are_no_raster_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "notes.tif"
    text.write_text("not a raster")
    assert "does not exist" in refusal(tmp_path / "absent.tif")
    assert "does not exist" in refusal("")
    assert "does not exist" in refusal("x" * 5000)
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "zarr.json").touch()
    assert "is a Zarr group, which is not read here" in refusal(tmp_path)
    assert "not a regular file" in refusal("/dev/null")
    assert "cannot be opened as a raster" in refusal(text)
    assert "accepted are GeoTIFF" in refusal(text)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "check its permissions" in refusal(text)


def test_picture_formats_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.png", (RAMP % 256).astype(np.uint8), driver="PNG")
    assert "cannot be opened as a raster" in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/a.tif",
        "s3://bucket/a.tif",
        "zip://a.zip!a.tif",
        "/vsicurl/https://example.org/a.tif",
        "/VSIcurl/https://example.org/a.tif",
        'HDF5:"/vsicurl/https://example.org/a.h5"://x',
        "NETCDF:http://example.org/a.nc:x",
        "vrt://a.tif?bands=1",
        "<VRTDataset/>",
        '{"type": "tiledb"}',
    ],
)
def test_remote_names_are_refused_unless_allowed(name: str) -> None:
    assert "`allow_remote=True`" in refusal(name)
    assert locate(name, "NTL raster", allow_remote=True).path is None


def test_subdataset_name_of_a_missing_file(tmp_path: Path) -> None:
    assert "in this dataset name does not exist" in refusal(f'HDF5:"{tmp_path}/absent.h5"://x')


def test_page_of_a_multipage_tiff_by_its_gdal_name(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "pages.tif", RAMP)
    with open_raster(f"GTIFF_DIR:1:{path}", "NTL") as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 63, 50), [1])[0][0], RAMP)


def test_local_vrt_mosaics_are_read(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    write_raster(tmp_path / "tiles/a.tif", RAMP)
    inner = vrt(tmp_path / "tiles/inner.vrt", source("a.tif"))
    for path in (
        vrt(tmp_path / "plain.vrt", source("tiles/a.tif")),
        vrt(tmp_path / "named.tif", source("tiles/a.tif")),
        vrt(tmp_path / "absolute.vrt", source(str(inner), relative=0)),
        vrt(tmp_path / "nested.vrt", source("tiles/inner.vrt")),
    ):
        with open_raster(str(path), "NTL") as raster:
            np.testing.assert_array_equal(raster.read(Window(0, 0, 63, 50), [1])[0][0], RAMP)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (source("/vsicurl/https://example.org/a.tif", relative=0), "is not a file here"),
        (source("https://example.org/a.tif", relative=0), "is not a file here"),
        (source("/vsicurl/https://example.org/a.tif", tag="sourcefilename"), "is not a file here"),
        ('<SimpleSource SourceFilename="/vsicurl/http://example.org/a.tif"/>', "is not a file here"),
        (source("absent.tif"), "absent.tif is not a file here"),
        (source("a.tif") + source("absent.tif"), "absent.tif is not a file here"),
        (source("fetch.xml"), "fetch.xml is no TIFF"),
        (source("loop.vrt"), "deeper than"),
        ("<PixelFunctionCode>import os</PixelFunctionCode>", "carries code"),
        (
            '<Overview><SourceFilename relativeToVRT="1">absent.tif</SourceFilename></Overview>',
            "is not a file",
        ),
        ('<Metadata><MDI key="X_DATASET">/vsicurl/http://example.org/x</MDI></Metadata>', "is not a file"),
        ("<SourceFilename><b/>a.tif</SourceFilename>", "elements inside a file name"),
        ("<open", "not well-formed"),
    ],
)
def test_vrt_that_reaches_out_is_refused(tmp_path: Path, sources: str, expected: str) -> None:
    write_raster(tmp_path / "a.tif", RAMP)
    (tmp_path / "fetch.xml").write_text("<GDAL_WMS><Service/></GDAL_WMS>")
    for k in range(5):
        vrt(tmp_path / f"loop{k}.vrt", source(f"loop{k + 1}.vrt"))
    vrt(tmp_path / "loop.vrt", source("loop0.vrt"))
    assert expected in refusal(vrt(tmp_path / "top.tif", sources))


def test_vrt_with_raw_bands_document_type_or_other_classes_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", RAMP)
    raw = '</VRTRasterBand><VRTRasterBand dataType="Byte" band="2" subClass="VRTRawRasterBand">' + source(
        "a.tif"
    )
    assert "uses VRTRawRasterBand" in refusal(vrt(tmp_path / "raw.vrt", raw))
    entity = '<!DOCTYPE x [<!ENTITY e "a.tif">]><VRTDataset'
    assert "document type" in refusal(vrt(tmp_path / "entity.vrt", source("&e;"), head=entity))
    other = '<VRTDataset subClass="VRTProcessedDataset"'
    assert "uses VRTProcessedDataset" in refusal(vrt(tmp_path / "other.vrt", source("a.tif"), head=other))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_georeferencing_that_is_missing_or_wrong(tmp_path: Path) -> None:
    here = tmp_path / "a.tif"
    assert 'has no CRS; say which it is: add `ntl_crs="EPSG:4326"`' in refusal(
        write_raster(here, RAMP, crs=None)
    )
    assert "is not georeferenced" in refusal(write_raster(here, RAMP, crs=None, transform=Affine.identity()))
    flat = refusal(write_raster(here, RAMP, transform=Affine(1, 2, 0, 2, 4, 0)))
    assert "cannot be inverted" in flat
    metres = refusal(write_raster(here, RAMP, transform=Affine(30, 0, 561480, 0, -30, 4532648)))
    assert "cannot be placed on the globe" in metres
    local = refusal(write_raster(here, RAMP, crs='LOCAL_CS["site",UNIT["metre",1]]'))
    assert "cannot be placed on the globe" in local


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_control_points_and_camera_models_say_how_to_get_a_grid(tmp_path: Path) -> None:
    plain = {"crs": None, "transform": Affine.identity()}
    path = write_raster(tmp_path / "gcp.tif", RAMP, **plain)
    with rasterio.open(path, "r+") as file:
        corners = [(0, 0), (0, 50), (63, 0), (63, 50)]
        file.gcps = ([GroundControlPoint(r, c, 6 + c / 100, 50 - r / 100) for r, c in corners], "EPSG:4326")
    assert "ground control points only; warp it onto a grid first: deeplight-data copy" in refusal(path)
    path = write_raster(tmp_path / "rpc.tif", RAMP, **plain)
    with rasterio.open(path, "r+") as file:
        rpc = {
            f"{axis}_{part}": "1"
            for axis in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")
            for part in ("OFF", "SCALE")
        }
        ones = " ".join(["1"] * 20)
        terms = {f"{axis}_{part}_COEFF": ones for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")}
        file.update_tags(ns="RPC", **rpc, **terms)
    assert "an RPC camera model only; give it on a grid" in refusal(path)
    path = write_raster(tmp_path / "geoloc.tif", RAMP, **plain)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="GEOLOCATION", X_BAND="1", Y_BAND="1")
    assert "geolocation arrays only; give it on a grid" in refusal(path)


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    assert "complex numbers" in refusal(write_raster(tmp_path / "a.tif", RAMP.astype(np.complex64)))


def test_rotated_and_south_up_rasters_are_accepted(tmp_path: Path) -> None:
    rotated = Affine.translation(400000, 5500000) @ Affine.rotation(30) @ Affine.scale(500, -500)
    for transform in (rotated, Affine(500, 0, 400000, 0, 500, 5500000)):
        with open_raster(str(write_raster(tmp_path / "a.tif", RAMP, UTM, transform)), "NTL") as raster:
            assert raster.grid.transform.almost_equals(transform)


def test_tiny_file_with_a_huge_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    side = dict.fromkeys(("width", "height", "blockxsize", "blockysize"), 16384)
    place = Affine(10, 0, 4e5, 0, -10, 5e6)
    with rasterio.open(
        path, "w", driver="GTiff", count=1, dtype="float32", crs=UTM, transform=place, tiled=True,
        SPARSE_OK=True, **side,
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 1000
    assert "blocks of 1024 MB" in refusal(path)


def test_truncated_file_is_refused_before_the_run(tmp_path: Path) -> None:
    for interleave in ("pixel", "band"):
        path = write_raster(
            tmp_path / "a.tif",
            np.stack([RAMP] * 3),
            tiled=True,
            blockxsize=16,
            blockysize=16,
            interleave=interleave,
        )
        open_raster(str(path), "DMO").close()
        path.write_bytes(path.read_bytes()[:-40])
        assert "truncated" in refusal(path, "DMO")


def test_damaged_pixels_name_file_and_place(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 60000, (64, 64)).astype(np.uint16)
    path = write_raster(
        tmp_path / "a.tif", noise, tiled=True, blockxsize=32, blockysize=32, compress="deflate"
    )
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with open_raster(str(path), "NTL") as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 32, 64), [1])[0][0], noise[:32])
        with pytest.raises(
            DeepLightError, match=r"a\.tif cannot be read at rows 32–63, columns 40–47"
        ) as error:
            raster.read(Window(32, 40, 32, 8), [1])
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_hdf5_container_names_its_datasets(shared_data: Path) -> None:
    message = refusal(shared_data / "hostile/h04_two_subdatasets.h5")
    assert "holds 2 datasets" in message
    assert '`ntl="HDF5:' in message


def test_netcdf_by_gdal_name_and_by_path_are_the_same(shared_data: Path) -> None:
    path = shared_data / "hostile/h20_sinusoidal.nc"
    window = Window(17, 3, 40, 51)
    with (
        open_raster(f'NETCDF:"{path}":__xarray_dataarray_variable__', "NTL") as named,
        open_raster(str(path), "NTL") as plain,
        ThreadPoolExecutor(2) as pool,
    ):
        first, second = pool.map(lambda raster: raster.read(window, [1])[0], (named, plain))
        np.testing.assert_array_equal(first, second)
        assert named.nodata == (-28672.0,)
    # The HDF5 library under both is not thread-safe.
    assert locate(str(path), "NTL raster").serial


def test_import_loads_no_raster_library() -> None:
    code = "import deeplight.engine.raster.scene, sys; assert not {'rasterio', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
