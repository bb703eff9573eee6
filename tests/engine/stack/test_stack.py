"""Several dates in one run: maps equal to those of single runs, what is shared, resumed and said."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.parts import Mode
from deeplight.engine.output.shards import Shard
from deeplight.engine.raster.auxiliary import Daytime
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.source import Raster
from deeplight.engine.run import paths, preparation
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.stack.report import DateReport, StackReport
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import EMPTY, Months, name
from tests.scenes import write_raster


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def start(self, total: int, unit: str = "", what: str = "") -> None:
        self.lines.append(what)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bands": ("isp", "quality"), "conserve_radiance": True},
        {"dtype": "uint16", "compression": "deflate"},
        {"tiles": None},
    ],
    ids=["plain", "bands", "uint16", "whole"],
)
def test_maps_have_the_bytes_of_single_runs(months: Months, tmp_path: Path, changes: dict[str, Any]) -> None:
    report = months.run(tmp_path / "out", **changes)
    assert isinstance(report, StackReport) and report.status == "complete"
    maps = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert maps == [*(f"{name(m)}.tif" for m in months.with_data), "lights.vrt", "run.json"]
    for month in months.with_data:
        single = months.single(
            tmp_path / "single.tif", months.folder / f"ntl-{name(month)}.tif", mode=Mode.OVERWRITE, **changes
        )
        assert (tmp_path / "out" / f"{name(month)}.tif").read_bytes() == single, month


def test_layers_and_model_are_opened_once(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    handles: list[int] = []
    init, rest, open_model = Raster.__init__, Raster.rest, paths.open_model

    def counting(self: Raster, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        opened[self.role] += 1

    def resting(self: Raster) -> None:
        handles.append(len(self._handles))
        rest(self)
        assert not self._handles

    def model(*args: Any) -> Any:
        opened["model"] += 1
        return open_model(*args)

    monkeypatch.setattr(Raster, "__init__", counting)
    monkeypatch.setattr(Raster, "rest", resting)
    monkeypatch.setattr(paths, "open_model", model)
    months.run(tmp_path / "out")
    # each date's header to sort them, then each for its survey and its run
    assert opened == {"NTL": 2 * len(months.lights), "DMO": 1, "DEM": 1, "model": 1}
    # open files do not become more with the dates
    assert max(handles) <= 2 and handles


def test_layers_beside_the_lights_are_read_for_the_first_date_alone(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned: Counter[tuple[int, Any]] = Counter()
    for layer in (Daytime, AuxLayer):

        def counting(self: Any, window: Any, *into: Any, align: Any = layer.read_into) -> None:
            aligned[id(self), window] += 1
            align(self, window, *into)

        monkeypatch.setattr(layer, "read_into", counting)
    months.run(tmp_path / "out", tiles=TileRequest(9))
    # daytime bands, their file, and elevation
    assert set(aligned.values()) == {1} and len({layer for layer, _ in aligned}) == 3
    dates = json.loads((tmp_path / "out" / "run.json").read_text())["dates"]
    read = [d["run"]["inputs"] for d in dates if d["run"] is not None]
    assert [r["dmo"]["bytes_read"] > 0 for r in read] == [True, False, False]
    assert [r["dem"]["bytes_read"] > 0 for r in read] == [True, False, False]
    assert all(r["ntl"]["bytes_read"] > 0 for r in read)


def test_maps_are_the_same_where_nothing_can_be_kept(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    months.run(tmp_path / "kept", tiles=TileRequest(9))
    monkeypatch.setattr("deeplight.engine.stack.run._KEPT_SHARE", 0.0)
    months.run(tmp_path / "read", tiles=TileRequest(9))
    for month in months.with_data:
        kept, read = (tmp_path / folder / f"{name(month)}.tif" for folder in ("kept", "read"))
        assert kept.read_bytes() == read.read_bytes()


def test_what_is_told_names_the_date(months: Months, tmp_path: Path) -> None:
    told = Told()
    infer_dates(months.request(tmp_path / "out", events=tmp_path / "e.jsonl"), told)
    count = len(months.with_data)
    for number, month in enumerate(months.with_data, 1):
        assert f"{name(month)} ({number} of {count})" in told.lines
        assert f"{name(month)} ({number} of {count}): assembling the output" in told.lines
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    finished = [e["date"] for e in events if e["event"] == "finished"]
    assert finished == [name(m) for m in months.with_data] and all("date" in e for e in events)


def test_one_report_has_the_facts_of_every_date(
    months: Months, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    months.run(tmp_path / "out")
    assert f"{name(EMPTY)}: no pixel has data" in caplog.text
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [(d["date"], d["status"]) for d in content["dates"]] == [
        (name(m), "no data" if m == EMPTY else "complete") for m in range(1, len(months.lights) + 1)
    ]
    for date in content["dates"]:
        if date["status"] == "complete":
            single = date["run"]
            assert single["output"] == date["output"] == str(tmp_path / "out" / f"{date['date']}.tif")
            assert single["inputs"]["ntl"]["file"].endswith(f"ntl-{date['date']}.tif")
            assert single["lights"]["valid_lr_pixels"] > 0
    assert content["status"] == "complete" and content["seconds"]["total"] > 0


def test_the_vrt_has_a_band_a_date(months: Months, tmp_path: Path) -> None:
    months.run(tmp_path / "out", bands=("quality",))
    with rasterio.open(tmp_path / "out" / "lights.vrt") as d:
        assert d.descriptions == tuple(name(m) for m in months.with_data)
        assert d.crs.to_epsg() == 4326 and set(d.units) == {"nW/cm²/sr"} and np.isnan(d.nodata)
        assert d.tags(1)["time_coverage_start"] == "2020-01-01T00:00:00Z"
        assert d.tags(1)["time_coverage_end"] == "2020-01-31T23:59:59Z"
        for band, month in enumerate(months.with_data, 1):
            with rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as single:
                np.testing.assert_array_equal(d.read(band), single.read(1))
                assert (d.transform, d.shape) == (single.transform, single.shape)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    with rasterio.open(moved / "lights.vrt") as d:
        assert np.isfinite(d.read(1)).any()


def test_a_collection_of_items(months: Months, tmp_path: Path) -> None:
    """Read from the disk by pystac, links followed; no network, no schema fetched."""
    out = tmp_path / "lights-of-2020"
    months.run(out, stac=True)
    collection = pystac.Collection.from_file(str(out / "collection.json"))
    items = list(collection.get_items())
    assert collection.id == "lights-of-2020" and [i.id for i in items] == [name(m) for m in months.with_data]
    first, last = collection.extent.temporal.intervals[0]
    assert (str(first), str(last)) == ("2020-01-01 00:00:00+00:00", "2020-04-30 23:59:59+00:00")
    for item, month in zip(items, months.with_data, strict=True):
        assert item.collection_id == collection.id and item.get_collection() is collection
        assert item.properties["start_datetime"].startswith(f"{name(month)}-01")
        assert item.bbox == collection.extent.spatial.bboxes[0]
        assert {"proj:code", "processing:software", "processing:lineage"} <= item.properties.keys()
        (link,) = item.get_links("derived_from")
        model = pystac.Item.from_file(str(link.get_absolute_href()))
        assert model.properties["mlm:name"] == link.extra_fields["mlm:name"] == "analytic"
        asset = item.assets["data"]
        assert "raster:bands" in asset.extra_fields
        with rasterio.open(asset.get_absolute_href()) as d:
            assert list(d.shape) == item.properties["proj:shape"]
    texts = {path.name: path.read_bytes() for path in out.glob("*.json")}
    assert not any(str(tmp_path).encode() in text for file, text in texts.items() if file != "run.json")
    months.run(out, stac=True, mode=Mode.RESUME)
    for file in texts.keys() - {"run.json"}:
        assert (out / file).read_bytes() == texts[file]


def test_resuming_keeps_finished_dates(months: Months, tmp_path: Path) -> None:
    out = tmp_path / "out"
    months.run(out)
    first, second = months.with_data[:2]
    kept, wanted = out / f"{name(first)}.tif", out / f"{name(second)}.tif"
    stamp, content = kept.stat().st_mtime_ns, wanted.read_bytes()
    wanted.unlink()
    report = months.run(out, mode=Mode.RESUME)
    assert isinstance(report, StackReport) and report.computed == 1
    assert kept.stat().st_mtime_ns == stamp and wanted.read_bytes() == content
    dates = json.loads((out / "run.json").read_text())["dates"]
    assert all(d["run"] is not None for d in dates if d["status"] == "complete")
    with pytest.raises(InputError, match=r"2020-01\.tif exists: use `overwrite=True`"):
        months.run(out)
    with pytest.raises(InputError, match=r"2020-01: .* is complete but of another run"):
        months.run(out, mode=Mode.RESUME, conserve_radiance=True)


def test_a_date_that_comes_later_is_added(months: Months, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = [months.folder / f"ntl-{name(m)}.tif" for m in months.with_data]
    months.run(out, *files[:-1], stac=True)
    report = months.run(out, *files, stac=True, mode=Mode.RESUME)
    assert isinstance(report, StackReport) and report.computed == 1
    assert [(d.date, d.status, d.run is None) for d in report.dates] == [
        (name(m), "complete", False) for m in months.with_data
    ]
    with rasterio.open(out / "lights.vrt") as d:
        assert d.descriptions == tuple(name(m) for m in months.with_data)
    items = pystac.Collection.from_file(str(out / "collection.json")).get_items()
    assert [i.id for i in items] == [name(m) for m in months.with_data]


def test_a_stopped_run_that_replaces_maps_goes_on_replacing(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    months.run(out)
    last = out / f"{name(months.with_data[-1])}.tif"
    old = last.read_bytes()
    stopped = StackReport.finished

    def stop(self: StackReport, *args: Any) -> None:
        stopped(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(StackReport, "finished", stop)
    with pytest.raises(KeyboardInterrupt):
        months.run(out, mode=Mode.OVERWRITE, dtype="uint16")
    monkeypatch.undo()
    assert last.read_bytes() == old
    report = months.run(out, mode=Mode.RESUME, dtype="uint16")
    assert isinstance(report, StackReport) and report.computed == len(months.with_data)
    with rasterio.open(last) as d:
        assert d.dtypes == ("uint16",)


def test_a_folder_for_one_date_and_a_file_for_one(months: Months, tmp_path: Path) -> None:
    ntl = months.folder / "ntl-2020-02.tif"
    months.run(tmp_path / "out", ntl)
    single = months.single(tmp_path / "single.tif", ntl)
    assert (tmp_path / "out" / "2020-02.tif").read_bytes() == single
    months.run(tmp_path / "one.tif", ntl)
    assert (tmp_path / "one.tif").read_bytes() == single
    months.run(tmp_path / "dated.tif", ntl, dates="2019")
    with rasterio.open(tmp_path / "dated.tif") as d:
        assert d.tags()["time_coverage_start"] == "2019-01-01T00:00:00Z"


def test_nothing_is_left_of_what_is_refused(months: Months, tmp_path: Path) -> None:
    bad = write_raster(tmp_path / "ntl-2021-01.tif", np.full((21, 27), 4e9, np.float32))
    with pytest.raises(InputError, match="cannot be radiance"):
        months.run(tmp_path / "out", months.folder / "ntl-2020-01.tif", bad)
    with pytest.raises(InputError, match="no valid pixel"):
        months.run(tmp_path / "out", months.folder / f"ntl-{name(EMPTY)}.tif")
    with pytest.raises(InputError, match="is not there; create it first"):
        months.run(tmp_path / "no" / "out")
    with pytest.raises(InputError, match="is the name of one file"):
        months.run(tmp_path / "out.tif")
    with pytest.raises(InputError, match="`quicklook` is a picture of one map"):
        months.run(tmp_path / "out", quicklook=tmp_path / "q.png")
    with pytest.raises(InputError, match="`shard` is a part of one map and"):
        months.run(tmp_path / "out", shard=Shard(0, 2))
    with pytest.raises(InputError, match="`workers` compute one map and"):
        months.run(tmp_path / "out", workers=Workers(True, None, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["ntl-2021-01.tif"]


def test_a_page_has_all_dates(months: Months, tmp_path: Path) -> None:
    months.run(tmp_path / "out", page=tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert all(f'"name":"{name(m)}"' in text for m in months.with_data)
    months.run(tmp_path / "out", page=tmp_path / "p.html", mode=Mode.RESUME)
    assert all(f'"name":"{name(m)}"' in (tmp_path / "p.html").read_text() for m in months.with_data)


def test_the_report_is_one_plain_json_text(tmp_path: Path) -> None:
    """Though the reports of its dates are turned into text once."""
    tricky = {
        "a": [],
        "b": {},
        "text": 'a "run": null, "dates": []\n',
        "deep": [{"x": [1.5, None]}],
        "path": tmp_path,
    }
    dates = [DateReport("2020-01", "a.tif", "complete", tricky), DateReport("2020-02", 'b"run": null.tif')]
    report = StackReport(str(tmp_path / '"dates": []'), "new", dates, seconds={"total": 1.0})
    for _ in range(2):
        report.write(tmp_path / "run.json")
        want = json.dumps(asdict(report), indent=2, ensure_ascii=False, default=str) + "\n"
        assert (tmp_path / "run.json").read_text() == want
        report.of("2020-02").status = "complete"


@pytest.mark.parametrize("length", [1, 31, 32, 33, 87, 95, 255, 256, 257, 4000])
def test_windows_that_sample_a_scene_cover_a_small_one_once(length: int) -> None:
    begins = preparation._spread(length)
    ends = [min(length, begin + preparation._SAMPLE) for begin in begins]
    assert begins[0] == 0 and ends[-1] == length and len(begins) <= preparation._SAMPLES
    if length <= preparation._SAMPLES * preparation._SAMPLE:
        assert all(begin <= end for begin, end in zip(begins[1:], ends, strict=False))
        assert len(begins) == -(-length // preparation._SAMPLE)
