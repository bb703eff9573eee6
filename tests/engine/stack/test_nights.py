"""What the given lights are read as: dates, pieces of one date, both; and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.acquired import parse_dates
from deeplight.engine.output.parts import Mode
from deeplight.engine.output.taken import on_axis, taken
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.raster.source import open_raster
from deeplight.engine.run.pipeline import infer
from deeplight.engine.stack.nights import Night, find_nights, read_pieces
from deeplight.engine.stack.run import infer_dates
from deeplight.train.clips.copying import Change, copy_raster
from tests.engine.stack.months import EMPTY, NODATA, Months, name
from tests.scenes import ARC, NORTH, WEST, north_up, write_raster

SHAPE = (6, 8)


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


def nights(*names: object, dates: str = "", **options: Any) -> list[Night]:
    scene = SceneOptions(str(names[0]), **options)
    told = parse_dates(dates) if dates else None
    given = [str(n) for n in names]
    return find_nights(read_pieces(given, scene, len(told or ())), given, scene, told)


def refused(*names: object, dates: str = "") -> str:
    with pytest.raises(InputError) as error:
        nights(*names, dates=dates)
    message = str(error.value)
    assert "\n" not in message and not message.endswith(".")
    return message


def write(folder: Path, file: str, col: int = 0, row: int = 0, **header: Any) -> Path:
    place = north_up(ARC, WEST + col * ARC, NORTH - row * ARC)
    return write_raster(folder / file, np.ones(SHAPE, np.float32), transform=place, **header)


def files_of(night: Night) -> list[str]:
    with open_raster(night.scene.ntl, "NTL") as raster:
        return [Path(p).name for p in raster.pieces] or [Path(night.scene.ntl).name]


def write_series(path: Path, months: Months, units: str = "days since 2020-01-15 12:00:00") -> None:
    """A netCDF file with a time axis, as xarray and CDO write it."""
    days = "{0,31,60,91}"
    with rasterio.open(months.folder / "ntl-2020-01.tif") as d:
        place = d.transform
    tiff = write_raster(
        path.with_suffix(".tif"), months.lights, transform=place, nodata=NODATA, units=["nW/cm²/sr"] * 4
    )
    with rasterio.open(tiff, "r+") as d:
        axis = {"NETCDF_DIM_EXTRA": "{time}", "NETCDF_DIM_time_DEF": "{4,6}", "NETCDF_DIM_time_VALUES": days}
        d.update_tags(**axis, **{"time#units": units, "time#calendar": "proleptic_gregorian"})
        for band in d.indexes:
            d.update_tags(band, NETCDF_VARNAME="lights")
    rasterio.shutil.copy(tiff, path, driver="netCDF")
    tiff.unlink()


def write_separate_vrt(path: Path, files: Sequence[Path]) -> None:
    """As gdalbuildvrt -separate: only the names of the sources say what the bands are."""
    with rasterio.open(files[0]) as d:
        place, crs, (height, width) = d.transform.to_gdal(), d.crs.to_wkt(), d.shape
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{n}"><NoDataValue>{NODATA}</NoDataValue><ComplexSource>'
        f'<SourceFilename relativeToVRT="1">{file.name}</SourceFilename><SourceBand>1</SourceBand>'
        f"<NODATA>{NODATA}</NODATA></ComplexSource></VRTRasterBand>"
        for n, file in enumerate(files, 1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{crs}</SRS>'
        f"<GeoTransform>{', '.join(map(repr, place))}</GeoTransform>{bands}</VRTDataset>"
    )


@pytest.mark.parametrize("kind", ["bands of a GeoTIFF", "VRT", "netCDF", "repeated", "told"])
def test_every_form_of_a_stack_gives_the_maps_of_single_runs(
    months: Months, tmp_path: Path, kind: str
) -> None:
    files = [months.folder / f"ntl-{name(m)}.tif" for m in range(1, 5)]
    ntl: list[object] = [tmp_path / "stack.tif"]
    dates = ""
    expected = [name(m) for m in months.with_data]
    if kind in ("bands of a GeoTIFF", "told"):
        with rasterio.open(files[0]) as d:
            header = {"transform": d.transform, "nodata": NODATA, "units": ["nW/cm²/sr"] * 4}
        names = [f"avg_rad {name(m)}" for m in range(1, 5)] if kind != "told" else None
        write_raster(tmp_path / "stack.tif", months.lights, names=names, **header)
        if kind == "told":
            dates, expected = "2013,2014,2015,2016", ["2013", "2014", "2016"]
    elif kind == "VRT":
        ntl = [months.folder / "stack.vrt"]
        write_separate_vrt(months.folder / "stack.vrt", files)
    elif kind == "netCDF":
        ntl = [tmp_path / "stack.nc"]
        write_series(tmp_path / "stack.nc", months)
        expected = ["2020-01-15", "2020-02-15", "2020-04-15"]
    else:
        ntl = list(reversed(files))
    months.run(tmp_path / "out", *ntl, dates=dates)
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.tif")) == expected
    for month, date in zip(months.with_data, expected, strict=True):
        band, one = (None, files[month - 1]) if kind == "repeated" else (month, ntl[0])
        told = {"when": parse_dates(date)[0]} if kind == "told" else {}
        single = months.single(tmp_path / "s.tif", one, band, mode=Mode.OVERWRITE, **told)
        assert (tmp_path / "out" / f"{date}.tif").read_bytes() == single, date


def test_a_mosaic_a_date(months: Months, tmp_path: Path) -> None:
    for month in (1, 2):
        with rasterio.open(months.folder / f"ntl-{name(month)}.tif") as d:
            values, place = d.read(1), d.transform
        for side, cols in (("west", slice(0, 12)), ("east", slice(12, None))):
            part = values[:, cols]
            there = place @ place.translation(cols.start, 0)
            file = tmp_path / f"{side}_{name(month)}.tif"
            write_raster(file, part, transform=there, nodata=NODATA, units=["nW/cm²/sr"])
    found = nights(tmp_path / "*.tif")
    assert [night.name for night in found] == ["2020-01", "2020-02"]
    assert [files_of(night) for night in found] == [
        [f"east_{name(m)}.tif", f"west_{name(m)}.tif"] for m in (1, 2)
    ]
    months.run(tmp_path / "out", tmp_path / "*.tif")
    for month in (1, 2):
        single = months.single(tmp_path / "s.tiff", tmp_path / f"*_{name(month)}.tif", mode=Mode.OVERWRITE)
        assert (tmp_path / "out" / f"{name(month)}.tif").read_bytes() == single
        whole = months.single(
            tmp_path / "s.tiff", months.folder / f"ntl-{name(month)}.tif", mode=Mode.OVERWRITE
        )
        (tmp_path / "w.tiff").write_bytes(whole)
        with (
            rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as a,
            rasterio.open(tmp_path / "w.tiff") as b,
        ):
            np.testing.assert_array_equal(a.read(), b.read())


def test_pieces_side_by_side_are_one_date(tmp_path: Path) -> None:
    for file, col in (("p-a.tif", 0), ("p-b.tif", 8), ("p-2020.tif", 16)):
        write(tmp_path, file, col)
    (night,) = nights(tmp_path / "p-*.tif")
    assert night.scene.ntl.endswith("p-*.tif") and night.when is None
    (night,) = nights(tmp_path / "p-*.tif", dates="2020-05")
    assert night.name == "2020-05" and night.told
    (night,) = nights(tmp_path / "p-a.tif", tmp_path / "p-b.tif", tmp_path / "p-2020.tif")
    assert files_of(night) == ["p-2020.tif", "p-a.tif", "p-b.tif"]
    assert "no pattern finds them alone" in refused(tmp_path / "p-a.tif", tmp_path / "p-2020.tif")


def test_order_is_that_of_time(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{n}.tif") for n in ("a-2021", "b-2020-06", "c-2020-01-31")]
    assert [n.name for n in nights(*files)] == ["2020-01-31", "2020-06", "2021"]
    told = nights(*files, dates="2001,2000-02-01/2000-03-15,1999-12")
    assert [n.name for n in told] == ["1999-12", "2000-02-01_2000-03-15", "2001"]
    assert [files_of(n) for n in told] == [["c-2020-01-31.tif"], ["b-2020-06.tif"], ["a-2021.tif"]]


def test_what_can_be_read_in_two_ways_is_refused_with_both(tmp_path: Path) -> None:
    a = [write(tmp_path, f"a-2020-0{m}.tif") for m in (1, 2)]
    b = write(tmp_path, "b-2020-01.tif", col=8)
    for given, other in (
        ([*a, b], f"dates of one place (then leave out {b}, which lies elsewhere)"),
        ([a[1], b], 'pieces of one raster (then say one date for all: `dates="2020"`)'),
    ):
        message = refused(*given)
        assert f"which can mean two things: {other}, or dates that are each a mosaic" in message
        assert "every date needs all pieces, and 2020-0" in message
    a[0].rename(tmp_path / "elsewhere")
    assert len(nights(a[1], b, dates="2020")) == 1
    (tmp_path / "elsewhere").rename(a[0])
    c = write(tmp_path, "b-2020-02.tif", col=8)
    assert len(nights(*a, b, c)) == 2


@pytest.mark.parametrize("how", ["another CRS", "shifted", "smaller"])
def test_dates_on_two_grids_are_told_how_to_come_together(tmp_path: Path, how: str) -> None:
    first = write(tmp_path, "ntl-2020-01.tif")
    place, shape, crs = north_up(), SHAPE, "EPSG:4326"
    if how == "another CRS":
        # 15″ are 463 m of latitude; the corner lies at 6° east, 50° north
        place, crs = Affine(463, 0, 285015, 0, -463, 5542944), "EPSG:32632"
    elif how == "shifted":
        place = north_up(west=WEST + 0.4 * ARC)
    else:
        shape = (4, 8)
    other = write_raster(tmp_path / "ntl-2020-02.tif", np.ones(shape, np.float32), crs=crs, transform=place)
    message = refused(first, other)
    assert "show the same ground on two grids" in message and crs in message
    command = f"deeplight-data copy '{other}' on_grid_2020-02.tif --like '{first}'"
    assert message.endswith(command)
    copy_raster(str(other), tmp_path / "on_grid_2020-02.tif", Change(like=str(first)), Silent())
    assert [n.name for n in nights(first, tmp_path / "on_grid_2020-02.tif")] == ["2020-01", "2020-02"]


@pytest.mark.parametrize(
    ("files", "dates", "says"),
    [
        (["x.tif", "y.tif"], "", "neither the name nor the metadata of"),
        (["x-2020.tif", "y-2020.tif"], "", "are on one grid and have the same date, 2020"),
        (["x.tif", "y.tif"], "2020", "2 rasters of lights are given and 1 date: give `dates` one for each"),
        (["x.tif"], "2020,2021", "1 raster of lights is given and 2 dates"),
        (["x.tif", "x.tif"], "", "is given twice as `ntl`"),
        (["x.tif", "gone.tif"], "", "does not exist"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, files: list[str], dates: str, says: str) -> None:
    for file in {*files} - {"gone.tif"}:
        write(tmp_path, file)
    assert says in refused(*(tmp_path / file for file in files), dates=dates)


def test_bands_that_are_no_dates(tmp_path: Path) -> None:
    two = np.ones((2, *SHAPE), np.float32)
    count = write_raster(tmp_path / "a-2020-01.tif", two, names=["avg_rad", "cf_cvg"])
    (night,) = nights(count)
    assert night.scene.ntl_band is None and night.name == "2020-01"
    four = np.ones((4, *SHAPE), np.float32)
    names = ["20200101_avg_rad", "20200101_cf_cvg", "20200201_avg_rad", "20200201_cf_cvg"]
    export = write_raster(tmp_path / "export.tif", four, names=names)
    assert [(n.name, n.scene.ntl_band) for n in nights(export)] == [("2020-01-01", 1), ("2020-02-01", 3)]
    (night,) = nights(export, ntl_band=3)
    assert (night.name, night.scene.ntl_band) == ("2020-02-01", 3)


@pytest.mark.parametrize(
    ("units", "calendar", "value", "expected"),
    [
        ("days since 2020-01-01", "", "31", "2020-02-01"),
        ("hours since 1970-01-01T00:00:00Z", "standard", "438288.5", "2020-01-01"),
        ("seconds since 2000-1-1 12:00:00.0 +00:00", "gregorian", "1e8", "2003-03-03"),
        ("days since 2020-01-01", "noleap", "31", None),
        ("days since 2020-01-01 00:00 +05:30", "standard", "31", None),
        ("months since 2020-01-01", "standard", "1", None),
        ("days since 2020-01-01", "standard", "nan", None),
        ("days since 2020-01-01", "standard", "1e12", None),
        ("days since 2020-13-01", "standard", "1", None),
        ("m", "", "1", None),
    ],
)
def test_days_on_a_time_axis(units: str, calendar: str, value: str, expected: str | None) -> None:
    when = on_axis({"time#units": units, "time#calendar": calendar}, {"NETCDF_DIM_time": value})
    assert (when and f"{when[0]:%Y-%m-%d}") == expected
    assert when is None or f"{when[0]:%H:%M:%S} {when[1]:%H:%M:%S}" == "00:00:00 23:59:59"


def test_a_file_says_when_it_was_taken(months: Months, tmp_path: Path) -> None:
    write_series(tmp_path / "series.nc", months)
    with open_raster(str(tmp_path / "series.nc"), "NTL") as raster:
        assert taken(raster) is None
        when = taken(raster, EMPTY)
    assert when is not None and f"{when[0]:%Y-%m-%d}" == "2020-03-15"


@pytest.mark.parametrize("kind", ["files", "bands", "told", "one for all", "bands beside the lights"])
def test_counts_of_observations_belong_to_their_dates(months: Months, tmp_path: Path, kind: str) -> None:
    """Each date's map is that of a run with the date's own count."""
    with rasterio.open(months.folder / "ntl-2020-01.tif") as d:
        place = d.transform
    random = np.random.default_rng(2)
    counts = random.integers(0, 3, months.lights.shape).astype(np.uint16)
    ntl: object = months.pattern
    dates, valid = "", str(tmp_path / "cvg-*.tif")
    singles: list[dict[str, Any]] = []
    for month, values in enumerate(counts, 1):
        label = name(month) if kind != "told" else str(month)
        file = write_raster(tmp_path / f"cvg-{label}.tif", values, transform=place)
        singles.append({"ntl_valid": str(file)})
    if kind == "told":
        dates = "2020-01,2020-02,2020-03,2020-04"
    elif kind == "one for all":
        valid = str(tmp_path / "cvg-2020-01.tif")
        singles = [{"ntl_valid": valid}] * 4
    elif kind == "bands":
        valid = str(
            write_raster(tmp_path / "c.tif", counts, transform=place, names=[name(m) for m in range(1, 5)])
        )
        singles = [{"ntl_valid": valid, "ntl_valid_band": m} for m in range(1, 5)]
    elif kind == "bands beside the lights":
        both = np.stack([v for m in range(4) for v in (months.lights[m], counts[m].astype(np.float32))])
        names = [f"{name(m)}_{what}" for m in range(1, 5) for what in ("avg_rad", "cf_cvg")]
        units = ["nW/cm²/sr", "1"] * 4
        path = tmp_path / "export.tif"
        ntl = valid = str(write_raster(path, both, transform=place, names=names, units=units, nodata=NODATA))
        singles = [{"ntl_band": 2 * m + 1, "ntl_valid": valid, "ntl_valid_band": 2 * m + 2} for m in range(4)]
    request = months.request(tmp_path / "out", ntl, dates=dates)
    scene = replace(request.run.scene, ntl_valid=valid)
    infer_dates(replace(request, run=replace(request.run, scene=scene)))
    for month in months.with_data:
        own = singles[month - 1]
        light = ntl if "ntl_band" in own else months.folder / f"ntl-{name(month)}.tif"
        when = {"when": parse_dates(name(month))[0]} if kind == "told" else {}
        run = replace(
            request.run, scene=replace(scene, ntl=str(light), **own), out=tmp_path / "s.tif", **when
        )
        infer(replace(run, mode=Mode.OVERWRITE))
        assert (tmp_path / "out" / f"{name(month)}.tif").read_bytes() == (tmp_path / "s.tif").read_bytes()


def test_a_date_without_its_count_is_refused(months: Months, tmp_path: Path) -> None:
    for month in (1, 2, 3):
        write_raster(tmp_path / f"cvg-{name(month)}.tif", np.ones(months.lights[0].shape, np.uint8))
    request = months.request(tmp_path / "out")
    scene = replace(request.run.scene, ntl_valid=str(tmp_path / "cvg-*.tif"))
    with pytest.raises(InputError, match="`ntl_valid` has 3 dates and 2020-04 is not among them"):
        infer_dates(replace(request, run=replace(request.run, scene=scene)))
