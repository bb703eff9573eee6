"""`--split`: a run into a folder of regions, by one process, shards or workers, stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
from rio_cogeo import cog_validate

import deeplight as dl
from deeplight.engine import cli
from deeplight.engine.core.errors import InputError
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.regions import MapRegions, RegionsToMake, files_of
from deeplight.engine.output.shards import Shard
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.split import in_folder
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.run.workers.dispatch import Lost
from deeplight.engine.run.workers.relay import Relay
from tests.engine import processes
from tests.engine.analytic import write_analytic
from tests.engine.run.test_finishing import Sites, computed, led_to_its_end
from tests.engine.run.wholes import PACKS, Whole
from tests.scenes import write_raster


@pytest.fixture
def regions(whole: Whole, tmp_path: Path) -> RunOptions:
    """The run of `whole` into five regions in a row."""
    return dataclasses.replace(whole.request, out=tmp_path / "map", split=256)


@pytest.fixture(scope="module")
def expected(whole_once: Whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one undisturbed process writes."""
    folder = tmp_path_factory.mktemp("calm")
    infer(dataclasses.replace(whole_once.request, out=folder / "map", split=256))
    return files(folder / "map")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_regions_have_the_pixels_of_the_one_file(whole: Whole, regions: RunOptions, tmp_path: Path) -> None:
    more = {"bands": ("isp", "quality"), "tiles": TileRequest(60)}
    one = dataclasses.replace(whole.request, **more)  # type: ignore[arg-type]
    infer(one)
    report = infer(
        dataclasses.replace(regions, **more, report=tmp_path / "r.json", verify_seams=2, split=512)
    )  # type: ignore[arg-type]
    assert report is not None and report.seams is not None and report.seams["windows"] == 2
    assert report.regions == {"side": 512, "files": 3, "without_data": []}
    assert json.loads((tmp_path / "r.json").read_text())["regions"] == report.regions
    with rasterio.open(one.out) as a, rasterio.open(regions.out / "lights.vrt") as b:
        assert a.read().tobytes() == b.read().tobytes() and a.descriptions == b.descriptions
        extra = {"DEEPLIGHT_OPTION_SPLIT": "512"}
        assert {k: v for k, v in b.tags().items() if k.startswith("DEEPLIGHT_")} == {
            **{k: v for k, v in a.tags().items() if k.startswith("DEEPLIGHT_")}, **extra,
        }  # fmt: skip
    for path in files_of(regions.out / "lights.vrt"):
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])


def test_the_command_line_and_what_stands_beside(
    regions: RunOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [*processes.arguments(regions), "--split", "256", "--stac", "--dates", "2020-03", "--resume"]
    beside = ["--quicklook", str(tmp_path / "q.png"), "--page", str(tmp_path / "p.html")]
    assert command(*line, *beside) == 0
    told = capfd.readouterr()
    assert told.out.split()[0] == str(regions.out / "lights.vrt")
    assert "5 regions with a file\n" in told.err
    collection = json.loads((regions.out / "collection.json").read_text())
    assert "in 5 regions" in collection["description"]
    items = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert items == [f"./lights_r0000_c{col:04d}.stac.json" for col in range(PACKS)]
    item = json.loads((regions.out / items[-1]).read_text())
    assert item["properties"]["proj:shape"] == [32, 64] and item["collection"] == "map"
    assert item["assets"]["data"]["href"] == "./lights_r0000_c0004.tif"
    assert all((tmp_path / name).stat().st_size for name in ("q.png", "p.html"))
    (tmp_path / "q.png").unlink()
    assert command(*line, *beside) == 0  # complete: what is missing beside it is made again
    assert "is complete already" in capfd.readouterr().err and (tmp_path / "q.png").exists()


def command(*arguments: str) -> int:
    old, sys.argv = sys.argv, ["deeplight-infer", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_region_of_sea_has_no_file_and_tables_take_the_vrt(tmp_path: Path) -> None:
    """Through the Python API, with a rotated grid of odd size; a region without data in the middle."""
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (9, 531)).astype(np.float32)
    ntl[:, 256:512] = -1
    place = rasterio.Affine(500, 20, 5e5, 15, -500, 5.5e6)
    write_raster(tmp_path / "ntl_2020.tif", ntl, "EPSG:32633", place, nodata=-1)
    write_analytic(tmp_path / "model")
    said: list[str] = []
    with dl.open_scene(tmp_path / "ntl_2020.tif", ntl_unit="nW/cm²/sr") as scene:
        run = dl.refine(
            scene,
            tmp_path / "model",
            out=tmp_path / "map",
            split=256,
            progress=lambda _, text: said.append(text),
        )
        one = dl.refine(scene, tmp_path / "model", out=tmp_path / "o.tif")
    assert run.path == tmp_path / "map" / "lights.vrt" and run.report is not None
    assert run.report["regions"] == {"side": 256, "files": 2, "without_data": [[0, 1]]}
    assert "2 regions with a file; 1 region without data has none" in said
    with rasterio.open(one.path) as a, rasterio.open(run.path) as b:
        assert a.read().tobytes() == b.read().tobytes() and a.transform == b.transform
    shape = {"type": "Polygon", "coordinates": [[[15, 49], [15.6, 49], [15.6, 49.7], [15, 49.7], [15, 49]]]}
    (tmp_path / "place.geojson").write_text(json.dumps(shape))
    tables = [
        dl.zonal([path], tmp_path / "place.geojson").drop(columns="map") for path in (one.path, run.path)
    ]
    # pixels are added up in blocks, which are those of the first map's file
    pandas.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-12)


Refused = tuple[dict[str, object], str]
REFUSED: dict[str, Refused] = {
    "no multiple": ({"split": 300}, r"`split=300` is not a multiple of 256, .*: give one, such as 256$"),
    "large tiles": ({"split": 768, "tiles": TileRequest(300)}, r"not a multiple of 512, .* such as 1024$"),
    "a file": ({"out": Path("map.tif")}, r"map\.tif is the name of a file: give .* `out=.*map.`$"),
    "a group": ({"out": Path("map.zarr")}, r"map\.zarr is the name of a file"),
    "no folder": ({"out": Path("gone/map")}, r"gone is not there; create it first"),
    "a long name": ({"out": Path("x" * 300)}, r"cannot be made \(File name too long\): choose another one$"),
    "no UTF-8": (
        {"out": Path("map\udcff/map")},
        r"map\\udcff/map is not UTF-8, which GDAL needs: give another",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(regions: RunOptions, tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    out = tmp_path / str(changes.get("out", "map"))
    with pytest.raises(InputError, match=message):
        infer(dataclasses.replace(regions, **{**changes, "out": out}))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_several_dates_are_refused(
    regions: RunOptions, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = processes.arguments(regions)
    for name in ("2019.tif", "2020.tif"):
        (tmp_path / name).write_bytes(Path(regions.scene.ntl).read_bytes())
    more = ["--ntl", str(tmp_path / "2019.tif"), "--ntl", str(tmp_path / "2020.tif"), "--split", "256"]
    assert command(*line[2:], *more) == 2
    error = capsys.readouterr().err
    assert (
        "error: --split writes one map in regions and the lights are of 2 dates: run each date by itself"
        in error
    )
    assert not regions.out.exists()


def test_a_folder_that_holds_something_else_is_left_alone(
    regions: RunOptions, expected: dict[str, bytes]
) -> None:
    regions.out.mkdir()
    (regions.out / "mine.txt").write_text("mine")
    infer(regions)
    with pytest.raises(InputError, match=r"lights\.vrt exists: use `overwrite=True`"):
        infer(regions)
    assert files(regions.out) == {**expected, "mine.txt": b"mine"}
    (regions.out / "lights.vrt").write_text("<VRTDataset></VRTDataset>")
    with pytest.raises(InputError, match=r"lights\.vrt is not of a map in regions, .*: move it away"):
        infer(dataclasses.replace(regions, mode=Mode.OVERWRITE))
    (regions.out / "lights.vrt").unlink()
    (regions.out / "collection.json").write_text('{"links": [{"rel": "item", "href": "./2020.stac.json"}]}')
    with pytest.raises(InputError, match=r"collection\.json is not of a map in regions"):
        infer(dataclasses.replace(regions, mode=Mode.OVERWRITE, stac=True))
    infer(dataclasses.replace(regions, mode=Mode.OVERWRITE, split=512))
    assert set(files(regions.out)) == {
        "mine.txt", "collection.json", "lights.vrt", *(f"lights_r0000_c{col:04d}.tif" for col in range(3)),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["file", "link that leads nowhere"])
def test_a_name_that_is_taken_by_no_folder(regions: RunOptions, what: str) -> None:
    if what == "file":
        regions.out.write_text("mine")
    else:
        regions.out.symlink_to("nowhere")
    for mode in Mode:
        with pytest.raises(
            InputError, match=r"map is not a folder, and the output is one: choose another name$"
        ):
            infer(dataclasses.replace(regions, mode=mode))
    assert regions.out.is_symlink() or regions.out.read_text() == "mine"


def test_a_folder_without_split(regions: RunOptions) -> None:
    """As of who leaves `split` out when a run is to go on."""
    regions.out.mkdir()
    with pytest.raises(
        InputError, match=r"map is a folder: give the name of a file, or `split` and the side"
    ):
        infer(dataclasses.replace(regions, split=None, mode=Mode.RESUME))


def test_a_damaged_vrt_is_to_be_moved_away(regions: RunOptions) -> None:
    """In every mode the same advice, which helps."""
    regions.out.mkdir()
    (regions.out / "lights.vrt").write_text("<VRTData")
    for mode in Mode:
        with pytest.raises(InputError, match=r"lights\.vrt is not of a map in regions, .*: move it away"):
            infer(dataclasses.replace(regions, mode=mode))


def test_what_tells_of_old_regions_goes_with_them(regions: RunOptions) -> None:
    """An old collection would link to items that are gone, and items give a shape that their region has no more."""
    infer(dataclasses.replace(regions, stac=True))
    (regions.out / "mine.stac.json").write_text("mine")
    infer(dataclasses.replace(regions, mode=Mode.OVERWRITE, split=512))
    names = set(files(regions.out))
    assert "collection.json" not in names and not any(re.match(r"lights_.*json", name) for name in names)
    assert "mine.stac.json" in names


def test_another_split_does_not_go_on(regions: RunOptions) -> None:
    infer(regions)
    for changes in ({"split": 512}, {"dtype": "uint16"}):
        with pytest.raises(InputError, match=r"lights\.vrt is complete but of another run"):
            infer(dataclasses.replace(regions, mode=Mode.RESUME, **changes))  # type: ignore[arg-type]
    region = regions.out / "lights_r0000_c0002.tif"
    region.write_bytes(region.read_bytes()[:100])
    with pytest.raises(InputError, match=r"lights_r0000_c0002\.tif is damaged, .* or remove it and use"):
        infer(dataclasses.replace(regions, mode=Mode.RESUME))
    region.unlink()
    with pytest.raises(InputError, match=r"lights_r0000_c0002\.tif is missing"):
        infer(dataclasses.replace(regions, mode=Mode.RESUME))
    (regions.out / "lights.vrt").unlink()
    before = files(regions.out)
    with pytest.raises(
        InputError, match=r"c0000\.tif is of a map without lights\.vrt and there is no unfinished"
    ):
        infer(dataclasses.replace(regions, mode=Mode.RESUME, dtype="uint16"))
    assert files(regions.out) == before


def test_shards_compute_packs_and_the_last_run_makes_regions(
    regions: RunOptions, expected: dict[str, bytes]
) -> None:
    for index in (1, 0):
        assert infer(dataclasses.replace(regions, shard=Shard(index, 2))) is not None
    assert [path.name for path in regions.out.iterdir()] == ["lights.vrt.parts"]
    report = infer(dataclasses.replace(regions, mode=Mode.RESUME))
    assert report is not None and report.packs["kept_from_earlier_run"] == PACKS
    assert files(regions.out) == expected
    assert infer(dataclasses.replace(regions, shard=Shard(0, 2))) is None
    (regions.out / "lights.vrt").unlink()  # as shards advise where the old map is of another run
    infer(dataclasses.replace(regions, shard=Shard(0, 2), split=512))
    infer(dataclasses.replace(regions, mode=Mode.RESUME, split=512))
    assert set(files(regions.out)) == {"lights.vrt", *(f"lights_r0000_c{col:04d}.tif" for col in range(3))}


HELD = """
import os, time
from pathlib import Path
from deeplight.engine import cli
from deeplight.engine.output import regions
write, made = regions.{what}, []
def held(*a, **k):
    made.append(a)
    if len(made) == {number}:
        Path(os.environ["HELD"]).touch()
        time.sleep(600)
    return write(*a, **k)
regions.{what} = held
cli.main()
"""
"""deeplight-infer that stays before its third region, before that is noted, or before the VRT."""
STAYS = [("write_cog", 3, 2), ("write_file", 3, 3), ("regions_vrt", 1, 5)]


@pytest.mark.parametrize(("what", "number", "there"), STAYS, ids=["region", "note", "VRT"])
def test_killed_while_regions_are_made(
    regions: RunOptions, expected: dict[str, bytes], tmp_path: Path, what: str, number: int, there: int
) -> None:
    line = [sys.executable, "-c", HELD.format(what=what, number=number)]
    line += processes.arguments(regions, "--split", "256")
    process = subprocess.Popen(
        line, env={**os.environ, "HELD": str(tmp_path / "held")}, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "held").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamps = {path.name: path.stat().st_ino for path in regions.out.glob("*.tif")}
    assert len(stamps) == there and not (regions.out / "lights.vrt").exists()
    report = infer(dataclasses.replace(regions, mode=Mode.RESUME))
    assert report is not None and report.packs["kept_from_earlier_run"] == PACKS
    assert files(regions.out) == expected
    again = {name for name, number in stamps.items() if (regions.out / name).stat().st_ino != number}
    assert again == ({"lights_r0000_c0002.tif"} if what == "write_file" else set())


@pytest.fixture
def into(whole: Whole, regions: RunOptions, monkeypatch: pytest.MonkeyPatch) -> Whole:
    """The run as its workers see it."""
    monkeypatch.setattr(Relay, "listen", lambda self: None)
    monkeypatch.chdir(Path.cwd())
    with in_folder(regions) as options:
        options.out.with_name("keeps it").touch()
        found = dataclasses.replace(whole, request=options)
    (regions.out / "keeps it").unlink()
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_all_workers_make_regions(into: Whole, expected: dict[str, bytes], count: int) -> None:
    sites, done, spare = computed(into, count)
    pool = Sites(sites, spare)
    progress = led_to_its_end(into, pool, done)
    assert [type(job) for job in pool.jobs] == [RegionsToMake] and sorted(pool.done) == list(range(count))
    made = [piece for pieces in pool.done.values() for piece in pieces]
    assert sorted(made) == [(0, col) for col in range(PACKS)] and progress.done == PACKS
    assert files(into.request.out.parent) == expected


def lost_at(where: str) -> Callable[..., Lost | None]:
    """A worker that makes its region and is lost before it says so."""
    held = [1]

    def fault(pool: Sites, worker: int, pieces: list[tuple[int, int]]) -> Lost | None:
        if worker not in held:
            return None
        held.clear()
        job = pool.jobs[-1].job(pool.sites[worker]._packs.store)  # type: ignore[union-attr]
        assert isinstance(job, MapRegions)
        if where == "after":
            job.do(pieces[0])
        return Lost(worker, f"worker {worker} was lost")

    return fault


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_region_of_a_lost_worker_another_makes(
    into: Whole, expected: dict[str, bytes], where: str
) -> None:
    sites, done, spare = computed(into, 2)
    pool = Sites(sites, spare, lost_at(where))
    progress = led_to_its_end(into, pool, done)
    assert progress.lines == ["warning: worker 1 was lost"]
    assert files(into.request.out.parent) == expected and not parts_folder(into.request.out).exists()
