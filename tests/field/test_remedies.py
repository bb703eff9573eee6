"""What a message advises works as printed, needs only what pip has installed, and leaves the user's files alone."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from tests.engine.analytic import write_analytic
from tests.field.programs import advised, options_in, refusal, run, shell
from tests.scenes import ARC, NORTH, NTL, UTM, WEST, north_up, write_raster
from tests.sources import tracked

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
EDGES = f"{WEST!r},{NORTH - 13 * ARC!r},{WEST + 17 * ARC!r},{NORTH!r}"
"""Of tests.scenes.NTL."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def infer(folder: Path, model: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(
        "deeplight-infer",
        *arguments,
        "--out",
        "o.tif",
        "--model",
        model,
        "--tiles",
        "16",
        "--overwrite",
        cwd=folder,
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def like_the_plain_one(folder: Path, model: str, out: np.ndarray) -> None:
    """The result is that of the same lights as an ordinary GeoTIFF."""
    write_raster(folder / "plain.tif", NTL)
    done = infer(folder, model, "--ntl", "plain.tif")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(pixels(folder), out, rtol=1e-6)


def pixels(folder: Path) -> np.ndarray:
    with rasterio.open(folder / "o.tif") as d:
        return np.asarray(d.read(1))


def write_netcdf(path: Path) -> None:
    """Two variables on latitude and longitude, as xarray writes them: no CRS."""
    with h5py.File(path, "w", track_order=True) as file:
        for name, unit, values in (
            ("lat", "degrees_north", NORTH - ARC * (np.arange(13) + 0.5)),
            ("lon", "degrees_east", WEST + ARC * (np.arange(17) + 0.5)),
        ):
            file[name] = values
            file[name].attrs["units"] = np.bytes_(unit)
            file[name].make_scale(name)
        for name, pixels in (("avg_rad", NTL), ("cf_cvg", np.full_like(NTL, 5))):
            file[name] = pixels
            for axis, dimension in enumerate(("lat", "lon")):
                file[name].dims[axis].attach_scale(file[dimension])


def test_a_netcdf_is_used_by_following_the_messages(tmp_path: Path, model: str) -> None:
    write_netcdf(tmp_path / "n.nc")
    before = digest(tmp_path / "n.nc")
    which = options_in(refusal(infer(tmp_path, model, "--ntl", "n.nc")))
    assert which[1].startswith("netcdf:") and which[1].endswith(":avg_rad")
    crs = options_in(refusal(infer(tmp_path, model, *which)))
    assert crs == ["--ntl-crs", "EPSG:4326"]
    done = infer(tmp_path, model, *which, *crs)
    assert done.returncode == 0, done.stderr
    out = pixels(tmp_path)
    done = infer(tmp_path, model, "--ntl", which[1].replace("netcdf:", "NETCDF:"), *crs)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "n.nc") == before
    like_the_plain_one(tmp_path, model, out)


def test_a_raster_without_any_place_is_given_one(tmp_path: Path, model: str) -> None:
    write_raster(tmp_path / "n.tif", NTL, crs=None, transform=Affine.identity())
    before = digest(tmp_path / "n.tif")
    message = refusal(infer(tmp_path, model, "--ntl", "n.tif"))
    added = options_in(message)
    assert added == ["--ntl-crs", "EPSG:4326", "--ntl-bounds", "WEST"], message
    done = infer(tmp_path, model, "--ntl", "n.tif", *added[:3], EDGES)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "n.tif") == before
    like_the_plain_one(tmp_path, model, pixels(tmp_path))


@pytest.mark.parametrize("crs", ["OGC:CRS84", "+proj=longlat +datum=WGS84", "EPSG:4326"])
def test_longitude_and_latitude_however_they_are_written(tmp_path: Path, model: str, crs: str) -> None:
    """As the place of a file without one, beside a file that says it otherwise, and of a coverage count."""
    header = {"driver": "GTiff", "count": 1, "dtype": "float32", "height": 13, "width": 17}
    with rasterio.open(tmp_path / "n.tif", "w", **header) as file:  # with no geotransform at all
        file.write(NTL, 1)
    done = infer(tmp_path, model, "--ntl", "n.tif", "--ntl-crs", crs, "--ntl-bounds", EDGES)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    like_the_plain_one(tmp_path, model, pixels(tmp_path))
    write_raster(tmp_path / "count.tif", np.ones((13, 17), np.uint8), crs=crs)
    done = infer(tmp_path, model, "--ntl", "plain.tif", "--ntl-crs", crs, "--ntl-valid", "count.tif")
    assert done.returncode == 0, done.stderr


def test_what_contradicts_the_file_is_refused_and_what_agrees_is_not(tmp_path: Path, model: str) -> None:
    write_raster(tmp_path / "n.tif", NTL)
    call = ("--ntl", "n.tif")
    assert "--ntl-crs says EPSG:32632: leave out --ntl-crs" in refusal(
        infer(tmp_path, model, *call, "--ntl-crs", "EPSG:32632")
    )
    assert "leave out --ntl-bounds" in refusal(infer(tmp_path, model, *call, "--ntl-bounds", "6,49,7,50"))
    assert infer(tmp_path, model, *call, "--ntl-crs", "EPSG:4326", "--ntl-bounds", EDGES).returncode == 0
    assert "is no coordinate reference system" in refusal(
        infer(tmp_path, model, *call, "--ntl-crs", "EPSG:999999")
    )
    assert "is not WEST,SOUTH,EAST,NORTH" in refusal(
        infer(tmp_path, model, *call, "--ntl-bounds", "7,49,6,50")
    )
    assert "--dem-crs is about the elevation and there is none" in refusal(
        infer(tmp_path, model, *call, "--dem-crs", "EPSG:4326")
    )


def test_a_crs_that_does_not_fit_its_coordinates_is_replaced(tmp_path: Path, model: str) -> None:
    write_raster(tmp_path / "n.tif", NTL, "EPSG:4326", Affine(500, 0, 400000, 0, -500, 5500000))
    message = refusal(infer(tmp_path, model, "--ntl", "n.tif"))
    assert "--ntl-crs" in options_in(message)
    done = infer(tmp_path, model, "--ntl", "n.tif", "--ntl-crs", UTM)
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "o.tif") as d:
        assert d.crs.to_string() == UTM


def test_where_and_what_of_the_other_layers(tmp_path: Path, model: str) -> None:
    """DMO and DEM have the same options; a DEM in feet and one with several bands are used as the messages say."""
    write_raster(tmp_path / "n.tif", NTL)
    names = ["blue", "green", "red", "nir"]
    write_raster(tmp_path / "d.tif", np.full((4, 13, 17), 0.2, np.float32), crs=None, names=names)
    feet = np.stack([np.full((13, 17), 1000, np.int16)] * 2)
    write_raster(tmp_path / "z.tif", feet, crs=None, transform=Affine.identity(), units=["ft", "ft"])
    call: list[object] = ["--ntl", "n.tif", "--dmo", "d.tif", "--dem", "z.tif"]
    for _ in range(5):
        done = infer(tmp_path, model, *call)
        if done.returncode == 0:
            break
        added = options_in(refusal(done))
        call += [EDGES if value == "WEST" else value for value in added]
    assert done.returncode == 0, done.stderr
    assert [v for v in call if str(v).startswith("--d")][2:] == [
        "--dmo-crs", "--dem-crs", "--dem-bounds", "--dem-band", "--dem-scale",
    ]  # fmt: skip
    high = pixels(tmp_path)
    write_raster(tmp_path / "z.tif", np.full((13, 17), 304.8, np.float32))
    layers = ("--dmo", "d.tif", "--dmo-crs", "EPSG:4326", "--dem", "z.tif")
    assert infer(tmp_path, model, "--ntl", "n.tif", *layers).returncode == 0
    np.testing.assert_allclose(high, pixels(tmp_path), rtol=1e-5)


def test_one_of_several_bands_of_lights(tmp_path: Path, model: str) -> None:
    """The band's own scale stays: a tool that cuts bands out would lose it."""
    both = np.stack([NTL * 10, np.full_like(NTL, 5)])
    write_raster(tmp_path / "two.tif", both, names=["avg_rad", "cf_cvg"], scales=[0.1, 1.0])
    message = refusal(infer(tmp_path, model, "--ntl", "two.tif"))
    assert "1 avg_rad, 2 cf_cvg" in message
    assert "--ntl-band 1 --ntl-valid two.tif --ntl-valid-band 2" in message
    done = infer(tmp_path, model, "--ntl", "two.tif", *options_in(message))
    assert done.returncode == 0, done.stderr
    like_the_plain_one(tmp_path, model, pixels(tmp_path))
    assert "has no band 3" in refusal(infer(tmp_path, model, "--ntl", "two.tif", "--ntl-band", "3"))


@pytest.mark.parametrize("named", [False, True])
def test_a_black_marble_tile_leads_to_its_converter(tmp_path: Path, model: str, named: bool) -> None:
    """The file as it comes, and the dataset in it."""
    file = "VNP46A4.A2021001.h29v05.001.2022001000000.h5"
    group = "HDFEOS/GRIDS/VIIRS_Grid_DNB_2d/Data Fields"
    raw = np.zeros((2400, 2400), np.uint16)
    raw[:40, :40] = 123
    with h5py.File(tmp_path / file, "w") as h:
        for layer, values in (
            ("AllAngle_Composite_Snow_Free", raw),
            ("AllAngle_Composite_Snow_Free_Quality", raw // 255),
        ):
            data = h.create_group(group) if group not in h else h[group]
            d = data.create_dataset(layer, data=values, compression=1)
            d.attrs["_FillValue"], d.attrs["scale_factor"], d.attrs["offset"] = (
                np.uint16([65535]),
                [0.1],
                [0.0],
            )
    name = f"HDF5:{file}://{group.replace(' ', '_')}/AllAngle_Composite_Snow_Free" if named else file
    command = advised(refusal(infer(tmp_path, model, "--ntl", name)), "deeplight-data blackmarble")
    shell(command, tmp_path)
    with rasterio.open(tmp_path / "blackmarble.tif") as d:
        assert (
            d.crs.to_epsg() == 4326 and d.units == ("nW/cm²/sr",) and d.read(1)[0, 0] == pytest.approx(12.3)
        )


@pytest.mark.parametrize(
    "kind", ["x.tif.gz", "x.tgz", "the (old) x.tar", "-x.tar", "y's lights.gz", "x.tif", "x.zip"]
)
def test_packed_files_are_unpacked_as_the_message_says(tmp_path: Path, model: str, kind: str) -> None:
    write_raster(tmp_path / "n.tif", NTL)
    packed = tmp_path / kind
    if kind.endswith("zip"):
        shutil.make_archive(str(packed.with_suffix("")), "zip", tmp_path, "n.tif")
        assert "is packed by zip; unpack it first" in refusal(infer(tmp_path, model, "--ntl", kind))
        return
    tar = kind.endswith(("tgz", "tar"))
    if tar:
        with tarfile.open(packed, "w:gz" if "tgz" in kind else "w") as archive:
            archive.add(tmp_path / "n.tif", "inside.tif")
    else:
        packed.write_bytes(gzip.compress((tmp_path / "n.tif").read_bytes()))
    shell(
        advised(refusal(infer(tmp_path, model, "--ntl", kind)), "tar -" if tar else "gunzip"),
        tmp_path,
    )
    assert packed.exists(), "the original stays"
    unpacked = {"x.tif.gz": "x.tif", "y's lights.gz": "y's lights"}.get(
        kind, "inside.tif" if tar else "unpacked.tif"
    )
    assert digest(tmp_path / unpacked) == digest(tmp_path / "n.tif")


def test_a_file_inside_an_archive_is_told_as_such(tmp_path: Path, model: str) -> None:
    name = f"/vsigzip/{tmp_path}/x.tif.gz"
    assert "names a file in an archive; unpack" in refusal(infer(tmp_path, model, "--ntl", name))


def test_control_points_are_warped_as_the_message_says(tmp_path: Path, model: str) -> None:
    path = write_raster(tmp_path / "g.tif", NTL, crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as file:
        at = [(0, 0), (0, 17), (13, 0), (13, 17)]
        file.gcps = ([GroundControlPoint(r, c, WEST + c * ARC, NORTH - r * ARC) for r, c in at], "EPSG:4326")
    before = digest(path)
    shell(advised(refusal(infer(tmp_path, model, "--ntl", "g.tif")), "deeplight-data copy"), tmp_path)
    assert infer(tmp_path, model, "--ntl", "warped.tif").returncode == 0
    out = pixels(tmp_path)
    assert digest(path) == before
    like_the_plain_one(tmp_path, model, out)


def test_huge_blocks_are_rewritten_with_all_that_the_header_says(tmp_path: Path, model: str) -> None:
    side = dict.fromkeys(("width", "height", "blockxsize", "blockysize"), 8192)
    header = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "float32",
        "crs": UTM,
        "transform": Affine(9, 0, 4e5, 0, -9, 5e6),
    }
    with rasterio.open(tmp_path / "b.tif", "w", tiled=True, SPARSE_OK=True, **header, **side) as file:
        file.scales, file.units = (0.1,), ("nW/cm²/sr",)
    command = advised(refusal(infer(tmp_path, model, "--ntl", "b.tif")), sys.executable)
    shell(command, tmp_path)
    with rasterio.open(tmp_path / "tiled.tif") as d:
        assert d.block_shapes[0] == (256, 256) and d.scales == (0.1,) and d.units == ("nW/cm²/sr",)


def clip(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(
        "deeplight-data", "clip", "--out", "tree", "--place", "here", "--ntl", "n.tif", *arguments, cwd=folder
    )


def test_layers_that_only_training_knows(tmp_path: Path) -> None:
    """They have no options for their place or their band: a copy is advised, never a change of the file."""
    write_raster(tmp_path / "n.tif", NTL)
    isp = write_raster(tmp_path / "i.tif", np.full((13, 17), 0.5, np.float32), crs=None)
    before = digest(isp)
    command = advised(refusal(clip(tmp_path, "--isp", "i.tif")), sys.executable)
    shell(command, tmp_path)
    assert digest(isp) == before
    with rasterio.open(tmp_path / "placed.tif") as d:
        assert d.crs.to_epsg() == 4326 and d.transform.almost_equals(north_up())
    write_raster(tmp_path / "j.tif", np.full((2, 13, 17), 0.5, np.float32))
    shell(advised(refusal(clip(tmp_path, "--isp", "j.tif")), "deeplight-data copy"), tmp_path)
    with rasterio.open(tmp_path / "one_band.tif") as d:
        assert d.count == 1


@pytest.mark.slow
def test_a_truth_on_another_grid_is_warped_as_the_message_says(tmp_path: Path) -> None:
    province = tmp_path / "p"
    province.mkdir()
    write_raster(province / "ntl.tif", NTL)
    rng = np.random.default_rng(0)
    write_raster(
        province / "ntl_hr.tif", rng.random((170, 200)).astype(np.float32), transform=north_up(ARC / 10)
    )
    call = ("--model", "deeplight-tiny", "--data", "p", "--out", "scores")
    command = advised(refusal(run("deeplight-eval", *call, cwd=tmp_path)), "deeplight-data copy")
    shell(command, tmp_path)
    (tmp_path / "aligned.tif").replace(province / "ntl_hr.tif")
    done = run("deeplight-eval", *call, "--tiles", "16", "--overwrite", cwd=tmp_path)
    assert "must lie on the NTL grid" not in done.stderr


@pytest.mark.parametrize("extra", ["stac", "eval"])
def test_packages_are_installed_as_the_message_says(extra: str, tmp_path: Path) -> None:
    """They are there already, so pip has nothing to fetch; what matters is that it knows every name. eval has all of
    train's."""
    from deeplight.engine.core.extras import install_command

    done = shell(f"{install_command(extra)} --no-index", tmp_path)
    assert (
        "Requirement already satisfied" in done.stdout
        and "deeplight" not in install_command(extra).split("install")[1]
    )


def test_no_message_advises_what_pip_does_not_bring() -> None:
    """Tools of GDAL may be named as one way among others, never as a command, and no file of the user's is edited."""
    found = []
    for path in tracked("engine", "train", "export"):
        text = path.read_text()
        found += [
            (path.name, m)
            for m in re.findall(r"gdal(?:_\w+|buildvrt|info|warp -)", text)
            if not m.startswith(("gdal_version", "gdal_config_options"))
        ]
        found += [
            (path.name, m) for m in re.findall(r"rio edit-info (?!\{edit\} placed\.tif)[^`]{0,30}", text)
        ]
        found += [(path.name, m) for m in re.findall(r"pip install '?deeplight", text)]
    assert [f for f in found if f[0] != "to_tensorrt.py"] == []
