"""deeplight-zonal and dl.zonal as people use them: dates, files, the picture, and one sentence for every wrong use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyogrio
import pytest
import shapely
from click.testing import CliRunner
from PIL import Image

import deeplight as dl
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.output.acquired import acquired, parse_date
from deeplight.engine.zonal.cli import command
from tests.engine.zonal.places import LATLON, light, write_map, write_regions

TOWNS = {
    "low town": shapely.box(15.01, 61.7, 15.1, 61.8),
    "high town": shapely.box(15.12, 61.75, 15.4, 61.95),
}
"""Within the map but for the second, which leaves it in the east."""


@pytest.fixture
def towns(tmp_path: Path) -> Path:
    return write_regions(tmp_path / "towns.gpkg", TOWNS)


@pytest.fixture
def years(tmp_path: Path) -> list[Path]:
    """Maps of three dates; the light grows, and the last has another grid."""
    half = ("EPSG:4326", LATLON[1] @ LATLON[1].scale(0.5))
    return [
        write_map(tmp_path / "lights-2021.tif", values=2 * light()),
        write_map(tmp_path / "lights-2019.tif"),
        write_map(tmp_path / "lights_202203.tif", half, 3 * np.kron(light(), np.ones((2, 2), np.float32))),
    ]


def run(*arguments: object) -> str:
    """deeplight-zonal's output."""
    done = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_series(years: list[Path], towns: Path) -> None:
    found = dl.zonal(years, towns, by="name")
    assert list(found["region"]) == [*TOWNS] * 3
    assert [f"{d:%Y-%m-%d}" for d in found["date"][::2]] == ["2019-01-01", "2021-01-01", "2022-03-01"]
    assert [f"{d:%Y-%m-%d}" for d in found["date_last"][::2]] == ["2019-12-31", "2021-12-31", "2022-03-31"]
    mean = found["mean_nW_cm2_sr"].to_numpy()
    np.testing.assert_allclose(mean.reshape(3, 2) / mean[:2], [[1, 1], [2, 2], [3, 3]], rtol=1e-5)
    pixels = found["pixels"].to_numpy().reshape(3, 2)
    np.testing.assert_allclose(pixels[2], 4 * pixels[0], rtol=1e-5)
    for column in ("sum_nW_cm2_sr_km2", "mean_nW_cm2_sr"):
        single = dl.zonal(years[0], towns, by="name")[column]
        np.testing.assert_array_equal(single, found[column][2:4])


def test_files_hold_the_table(years: list[Path], towns: Path, tmp_path: Path) -> None:
    table = dl.zonal(years, towns, by="name")
    out, parquet, plot = tmp_path / "t.csv", tmp_path / "t.parquet", tmp_path / "series.png"
    shown = run(*years, "--regions", towns, "--by", "name")
    assert run(*years, "--regions", towns, "--by", "name", "--out", out, "--plot", plot) == f"{out}\n{plot}\n"
    run(*years, "--regions", towns, "--by", "name", "--out", parquet)
    assert out.read_text() == shown
    pandas.testing.assert_frame_equal(pandas.read_parquet(parquet), table, check_dtype=False)
    back = pandas.read_csv(out, parse_dates=["date", "date_last"])
    pandas.testing.assert_frame_equal(back, table, check_dtype=False, rtol=1e-8)  # nine digits
    picture = np.asarray(Image.open(plot).convert("RGB")).reshape(-1, 3)
    assert (np.abs(picture.astype(int) - (0xB3, 0x38, 0x7A)).sum(axis=1) < 30).sum() > 200  # two lines


@pytest.mark.parametrize("count", [1, 30])
def test_a_picture_of_one_date_or_of_many_regions(count: int, tmp_path: Path, years: list[Path]) -> None:
    from deeplight.engine.zonal.plot import MOST, figure

    boxes = {f"r{k}": shapely.box(15.01 + 0.009 * k, 61.7, 15.02 + 0.009 * k, 61.9) for k in range(30)}
    regions = write_regions(tmp_path / "r.gpkg", boxes)
    drawn = figure(dl.zonal(years[:count], regions, by="name"))
    panels = [a for a in drawn.axes if a.axison]
    assert len(panels) == (1 if count == 1 else MOST)
    assert f"of the {MOST} regions with the most light (30 in all)" in " ".join(
        drawn._suptitle.get_text().split()
    )


def test_regions_may_be_of_any_format_and_unnamed(years: list[Path], tmp_path: Path) -> None:
    found = [
        dl.zonal(years[1], write_regions(tmp_path / f"r{e}", TOWNS))
        for e in (".geojson", ".gpkg", ".shp", ".fgb")
    ]
    for table in found:
        assert sorted(table["mean_nW_cm2_sr"]) == pytest.approx(sorted(found[0]["mean_nW_cm2_sr"]), rel=1e-6)
        assert table["region"].dtype.kind == "i"


def test_numbers_of_maps_may_be_told(years: list[Path], towns: Path, tmp_path: Path) -> None:
    stored = np.nan_to_num(light() * 10, nan=9999).astype(np.uint16)
    raw = write_map(tmp_path / "raw.tif", values=stored, nodata=None, units=None)
    told = dl.zonal(
        {"2020-05": raw}, towns, by="name", map_scale=0.1, map_nodata=9999, map_unit="nW/cm²/sr", threshold=3
    )
    plain = dl.zonal(years[1], towns, by="name", threshold=3)
    np.testing.assert_allclose(told["mean_nW_cm2_sr"], plain["mean_nW_cm2_sr"], rtol=0.05)  # whole tenths
    assert list(told["lit_from_nW_cm2_sr"]) == [3, 3]
    dn = write_map(
        tmp_path / "F182010.tif", values=np.minimum(stored, 63).astype(np.uint8), nodata=None, units=["DN"]
    )
    assert "sum_DN_pixels" in dl.zonal(dn, towns)


Use = Callable[[Path], Any]
"""(empty folder) → what is refused."""
HERE = {"a": shapely.box(15.01, 61.7, 15.1, 61.8)}


def refused(shapes: Any = HERE, maps: int = 1, crs: str | None = "EPSG:4326", **options: Any) -> Use:
    def use(folder: Path) -> Any:
        files = [write_map(folder / f"m{'abc'[k]}.tif") for k in range(maps)]
        return dl.zonal(files, write_regions(folder / "r.gpkg", shapes, crs), **{"by": "name", **options})

    return use


def with_map(values: np.ndarray, name: str = "m.tif", **more: Any) -> Use:
    def use(folder: Path) -> Any:
        given = {k: more.pop(k) for k in ("map_unit", "without") if k in more}
        return dl.zonal(
            write_map(folder / name, values=values, **more), write_regions(folder / "r.gpkg", HERE), **given
        )

    return use


def two_layers(folder: Path) -> Any:
    for layer in ("states", "towns"):
        file = write_regions(folder / "r.gpkg", HERE, layer=layer, append=layer == "towns")
    return dl.zonal(write_map(folder / "m.tif"), file)


def no_vector(folder: Path) -> Any:
    (folder / "r.gpkg").write_text("not a table")
    return dl.zonal(write_map(folder / "m.tif"), folder / "r.gpkg")


HILLS = np.linspace(300, 900, 40 * 40, dtype=np.float32).reshape(40, 40)
USES: dict[str, tuple[Use, str]] = {
    "no regions file": (
        lambda f: dl.zonal(write_map(f / "m.tif"), f / "gone.gpkg"),
        "gone.gpkg do not exist",
    ),
    "no vector": (no_vector, "cannot be opened"),
    "no CRS": (refused(crs=None), "have no CRS, so nothing says where they lie"),
    "points": (refused({"a": shapely.Point(15.1, 61.8)}), "hold Point and no polygons"),
    "mixed": (
        refused({"a": shapely.Point(15, 61), **{"b": HERE["a"]}}),
        "hold Point where polygons are needed",
    ),
    "nothing": (refused({"a": shapely.Polygon()}), "hold nothing where polygons are needed"),
    "column": (refused(by="county"), "have no column county; their columns are name: correct by"),
    "layers": (two_layers, 'choose, for example with layer="states"'),
    "layer": (refused(layer="rivers"), "have no layer rivers; their layers are r"),
    "elsewhere": (refused({"a": shapely.box(0, 0, 1, 1)}), "no region of"),
    "no date": (refused(maps=2), "says when it was taken: say it for all maps, as in dates="),
    "few dates": (refused(maps=2, dates=["2019"]), "2 maps and 1 date are given"),
    "twice": (refused(maps=2, dates=["2019", "2019"]), "have the same date, 2019-01-01"),
    "odd date": (refused(dates=["2019-13"]), "'2019-13' is no date"),
    "no flag": (refused(without="BLURRED"), "'BLURRED' is no flag: choose from any, NTL_FILLED_NEAR"),
    "no quality": (refused(without="any"), "has no quality band, which without needs"),
    "no map": (lambda f: dl.zonal([], write_regions(f / "r.gpkg", HERE)), "no map is given"),
    "absent map": (
        lambda f: dl.zonal(f / "m.tif", write_regions(f / "r.gpkg", HERE)),
        "m.tif does not exist",
    ),
    "unit": (
        with_map(light(), units=None),
        "does not say its unit, and tables are of nW/cm²/sr or DN: say which its",
    ),
    "hills": (with_map(HILLS, units=["m"]), "is in m, as elevations are"),
    "likely hills": (with_map(HILLS, units=None), "looks like elevation"),
    "counts": (with_map(light(), "cf_cvg.tif", units=None), "is called as a count of observations would be"),
    "bands": (with_map(np.stack([light(), light()])), "choose, for example with map_band=1"),
    "kelvin": (with_map(light(), map_unit="K"), "the unit of a temperature"),
}


@pytest.mark.parametrize("use", USES)
def test_a_wrong_use_is_one_sentence(use: str, tmp_path: Path) -> None:
    act, words = USES[use]
    with pytest.raises(dl.InputError) as caught:
        act(tmp_path)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert "--" not in text


def test_names_that_occur_twice_or_are_missing(tmp_path: Path) -> None:
    file, boxes = write_map(tmp_path / "m.tif"), list(TOWNS.values())
    for names, words in (
        (["a", "a"], "names 1 regions more than once (a)"),
        (["a", None], "is empty in 1 of 2"),
    ):
        regions = tmp_path / "r.gpkg"
        columns, about = [np.array(names, object)], {"geometry_type": "Polygon", "crs": "EPSG:4326"}
        pyogrio.raw.write(regions, shapely.to_wkb(boxes), columns, ["name"], **about)
        with pytest.raises(dl.InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
            dl.zonal(file, regions, by="name")


def test_an_outline_that_crosses_itself_is_mended_and_said(tmp_path: Path, caplog: Any) -> None:
    bow = shapely.Polygon([(15.05, 61.7), (15.15, 61.8), (15.15, 61.7), (15.05, 61.8)])
    with caplog.at_level("WARNING", "deeplight"):
        found = dl.zonal(write_map(tmp_path / "m.tif"), write_regions(tmp_path / "r.gpkg", {"bow": bow}))
    box = dl.zonal(tmp_path / "m.tif", write_regions(tmp_path / "b.gpkg", {"box": bow.envelope}))
    assert "1 of 1 regions have outlines that cross themselves" in caplog.text
    assert found["area_km2"][0] == pytest.approx(box["area_km2"][0] / 2, rel=0.01)  # of two triangles


def test_files_are_not_replaced_unasked(years: list[Path], towns: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    out.write_text("mine")
    for arguments, words in (
        (("--out", out), "exists: choose another name, or replace it with --overwrite"),
        (("--out", tmp_path / "t.xlsx"), "does not end in .csv or .parquet"),
        (("--plot", tmp_path / "gone" / "p.png"), "is in a folder that does not exist"),
    ):
        with pytest.raises(DeepLightError, match=words):
            run(years[0], "--regions", towns, *arguments)
    assert out.read_text() == "mine"
    run(years[0], "--regions", towns, "--out", out, "--overwrite")
    assert out.read_text().startswith("region,date,date_last,map,area_km2,")


def test_the_program_ends_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deeplight.engine.zonal.cli", "m.tif", "--regions", "gone.gpkg"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the regions gone.gpkg do not exist")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("lights-2021-03.tif", "2021-03-01", "2021-03-31"),
        ("lights_20200229.tif", "2020-02-29", "2020-02-29"),
        ("avg_rad.202112.tif", "2021-12-01", "2021-12-31"),
        ("growth_2012-2020.tif", "2012-01-01", "2012-12-31"),
        ("lights_2020_1.tif", None, None),
        ("lights-2020-3-15.tif", None, None),
        ("tile_20201301.tif", None, None),
        ("lights_2019-02-30.tif", None, None),
    ],
)
def test_dates_in_names(name: str, first: str | None, last: str | None) -> None:
    found = acquired(name, {})
    assert found == (
        None if first is None else (day(first), day(str(last)).replace(hour=23, minute=59, second=59))
    )


def day(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}T00:00:00+00:00")


def test_dates_as_people_write_them() -> None:
    assert [t.date().isoformat() for t in parse_date("2020-01/2020-03")] == ["2020-01-01", "2020-03-31"]
    assert [t.date().isoformat() for t in parse_date("2020-02-29")] == ["2020-02-29", "2020-02-29"]
    for text in ("20", "2020-00", "2021-02-29", "2020-03/2020-01", ""):
        with pytest.raises(ValueError, match="is no date: give a year, a month or a day"):
            parse_date(text)
