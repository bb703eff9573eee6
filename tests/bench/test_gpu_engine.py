"""The engine's stage of bench/gpu.sh: what is compared with what, in which order, on which strip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from bench.cases import ARC, NORTH, WEST, Case, ntl_grid, write_raster
from bench.gpu import __main__ as program
from bench.gpu import device_path, device_rates, engine, scenes
from bench.gpu.stage import Rows, StageSettings, TileCut
from bench.gpu.table import table
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.run import paths
from tests.bench.test_gpu import found, tiny
from tests.conftest import ROOT
from tests.engine.device.runs import OnDevice, analytic
from tests.engine.device.standin import StandIn


@pytest.mark.slow
def test_engine_over_both_scenes(tmp_path: Path) -> None:
    engine.measure(tiny(tmp_path))
    rows = found(tmp_path, "engine")
    runs = {(r["scene"], r["caches"]): r for r in rows if r["what"] == "deeplight-infer"}
    assert list(runs) == [
        ("incompressible", "filled caches"),
        ("realistic", "filled caches"),
        ("few tiles", "empty caches"),
    ]
    assert all(0 < r["first_tile_s"] <= r["seconds"] for r in runs.values()), runs
    assert all(r["exit"] == 0 and r["hr_mpix_per_s"] > 0 for r in runs.values()), runs
    assert all(r["seconds_by_part"]["stream"] > 0 and r["load"] for r in runs.values())
    others = [r["what"] for r in rows if r["what"] not in ("scene", "deeplight-infer", "decode", "ratio")]
    assert others == ["filling the caches", "network alone", "link", "further date"]
    network, _, further = rows[-4:-1]
    assert network["hr_mpix_per_s_with_halo"] > 0
    assert further["exit"] == 0 and len(further["date_s"]) == 2 and min(further["compute_s"]) > 0
    ratio = {r["scene"]: r["ratio"] for r in rows if r["what"] == "scene"}
    assert ratio["realistic"] > ratio["incompressible"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(tmp_path).splitlines()]
    for (scene, caches), run in runs.items():
        shares = ["", ""]
        if caches == "filled caches":
            (over,) = (r for r in rows if r["what"] == "ratio" and r["scene"] == scene)
            shares = [over[f"stream_over_decoding_of_{way}"] for way in ("all_threads", "each_block_once")]
        rates = [run[f"hr_mpix_per_s_of_{part}"] for part in ("stream", "process")]
        cells = [scene, caches, *rates, *shares, ""]
        assert list(map(str, cells)) in lines, lines


def engine_ratios() -> dict[str, float]:
    """Of a run that streamed 200 HR Mpix/s in tiles of which two thirds are cores, where the device alone does 400."""
    ran = {"hr_mpix_per_s_of_stream": 200.0, "core_share": 2 / 3, "device": {"alone_hr_mpix_per_s": 400.0}}
    decoded = {"hr_mpix_per_s_of_all_threads": 250.0, "hr_mpix_per_s_of_each_block_once": 320.0}
    return engine.ratios(ran, decoded)


def test_the_stream_is_compared_with_decoding_and_with_the_device() -> None:
    assert engine_ratios() == {
        "stream_over_decoding_of_all_threads": 0.8,
        "stream_over_decoding_of_each_block_once": 0.625,
        "stream_with_halo_over_alone": 0.75,
    }
    without = engine.ratios(
        {"hr_mpix_per_s_of_stream": 200.0, "device": None},
        {"hr_mpix_per_s_of_all_threads": 250.0, "hr_mpix_per_s_of_each_block_once": 320.0},
    )
    assert list(without) == list(engine_ratios())[:2], "no device, no ratio to it"


def run_report(**backend: object) -> dict[str, Any]:
    """What counts of a run.json."""
    return {
        "hr_mpix_per_s": 15.0,
        "load": {},
        "bottleneck": "decode",
        "backend": {"uncompiled": {}} | backend,
        "device": None,
        "tiles": {"core": 256, "halo": 20, "core_share": 0.7},
        "seconds": {"stream": 0.5, "total": 6.7},
    }


def wrote(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A process that left this report."""
    (folder / "run.json").write_text(json.dumps(report))
    (folder / "events.jsonl").write_text("")
    return {"seconds": 10.0, "exit": 0}


def test_a_run_has_the_rate_of_its_stream_beside_that_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run", lambda *_: wrote(tmp_path, run_report()))
    ran = engine.infer(tmp_path, tiny(tmp_path, strip=(1000, 1250)), 60.0)
    assert ran["hr_mpix_per_s_of_process"] == 8.0 and ran["hr_mpix_per_s_of_stream"] == 160.0
    assert (ran["core"], ran["halo"], ran["core_share"]) == (256, 20, 0.7)


def test_uncompiled_code_is_not_taken_for_the_engines_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run_report(uncompiled={"network": "no ptxas"})
    monkeypatch.setattr(engine, "run", lambda *_: wrote(tmp_path, said))
    ran = engine.infer(tmp_path, tiny(tmp_path), 60.0)
    assert ran["error"] == "uncompiled: {'network': 'no ptxas'}"
    assert not any("mpix" in key for key in ran), "no rate that others would publish"


def test_a_further_date_is_told_with_its_seconds_of_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dates = [
        {
            "run": {
                "seconds": {"total": t, "compute_busy": t / 2},
                "bytes_read": 1,
                "device": {"bytes_up": b},
                "backend": {"uncompiled": {}},
            }
        }
        for t, b in ((4.0, 9), (2.0, 3))
    ]
    (tmp_path / "ntl.tif").touch()
    (tmp_path / "lights").mkdir()
    (tmp_path / "lights" / "run.json").write_text(json.dumps({"dates": dates}))
    monkeypatch.setattr(engine, "run", lambda *_: {"seconds": 10.0, "exit": 0})
    told = engine.further_date(tmp_path, tiny(tmp_path))
    assert told["compute_s"] == [2.0, 1.0] and told["second_over_first"] == 0.5
    assert told["bytes_up"] == [9, 3]


def test_the_device_path_is_compared_with_the_network_and_with_a_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_rates, "network", lambda *_: {"hr_mpix_per_s_with_halo": 500.0})
    path = {"hr_mpix_per_s_with_halo": 450.0, "hr_mpix_per_s_of_a_tile_alone": 900.0}
    monkeypatch.setattr(device_path, "stream", lambda *_: path)
    settings = tiny(tmp_path, device="cuda")
    engine.EngineSteps(Rows(settings, "engine"), settings)._device("realistic")
    ratio = found(tmp_path, "engine")[-1]
    assert (ratio["device_path_over_network"], ratio["device_path_over_a_tile_alone"]) == (0.9, 0.5)


def test_the_device_path_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in, which checks the order of what is done."""
    scenes.make("realistic", (30, 26), tmp_path)
    stand_in, there = StandIn(3), set(tmp_path.iterdir())
    monkeypatch.setattr(paths, "open_model", lambda *_: OnDevice(analytic, stand_in))
    got = device_path.stream(tmp_path, tiny(tmp_path), core=4, count=100)
    assert got["tiles"] == 100 and 3 <= got["slots"] < 100, "slots are used again"
    assert got["hr_mpix_per_s_with_halo"] > got["hr_mpix_per_s"] > 0 < got["hr_mpix_per_s_of_a_tile_alone"]
    assert set(tmp_path.iterdir()) == there, "nothing is written"
    monkeypatch.setattr(paths, "open_model", lambda *_: OnDevice(analytic, None))
    with pytest.raises(RuntimeError, match="has no device path"):
        device_path.stream(tmp_path, tiny(tmp_path), core=4, count=1)


def late(out: Path, after: int) -> StageSettings:
    """Settings whose time is over when it has been asked for that often."""
    asked = iter([False] * after)

    class Late(StageSettings):
        @property
        def late(self) -> bool:
            return next(asked, True)

    return Late(**vars(tiny(out)))


STEPS = [
    ["make", "infer"],
    *(["make"], ["infer"], ["decode"]) * 2,
    *(["network"], ["link"], ["further"], ["infer"]),
]
NAMES = [
    "filling the caches",
    "scene incompressible",
    "incompressible with filled caches",
    "decoding incompressible",
    "scene realistic",
    "realistic with filled caches",
    "decoding realistic",
    "device",
    "link",
    "further date",
    "empty caches",
]


@pytest.mark.parametrize("after", range(len(STEPS) + 1))
def test_the_engines_stage_begins_nothing_when_its_time_is_over(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(name: str, what: Any) -> Any:
        return lambda *_: done.append(name) or what

    monkeypatch.setattr(scenes, "make", note("make", 1.0))
    monkeypatch.setattr(engine, "infer", note("infer", {}))
    monkeypatch.setattr(engine, "further_date", note("further", {}))
    for name in ("decode", "link", "network"):
        monkeypatch.setattr(device_rates, name, note(name, {}))
    engine.measure(late(tmp_path, after))
    assert done == [name for step in STEPS[:after] for name in step]
    last = found(tmp_path, "engine")[-1]
    assert last.get("left_out") == (
        f"no time for {NAMES[after]} and what follows" if after < len(NAMES) else None
    )


def test_first_processes_leave_time_for_those_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[float, bool]] = []

    def infer(
        folder: Path, settings: StageSettings, seconds: float, environment: object = None
    ) -> dict[str, Any]:
        given.append((seconds / settings.left, environment is None))
        return {"hr_mpix_per_s_of_stream": 1.0, "core": 16, "halo": 4, "core_share": 0.5}

    cuts: list[TileCut] = []
    monkeypatch.setattr(scenes, "make", lambda *_: 1.0)
    monkeypatch.setattr(engine, "infer", infer)
    monkeypatch.setattr(engine, "further_date", lambda *_: {})
    decoded = {"hr_mpix_per_s_of_all_threads": 2.0, "hr_mpix_per_s_of_each_block_once": 4.0}
    monkeypatch.setattr(device_rates, "decode", lambda _, cut: cuts.append(cut) or decoded)
    monkeypatch.setattr(device_rates, "network", lambda _, cut: cuts.append(cut) or {})
    monkeypatch.setattr(device_rates, "link", lambda *_: {})
    engine.measure(tiny(tmp_path))
    *first, (share, same) = given
    assert all(share == pytest.approx(0.6, abs=0.01) and same for share, same in first), given
    assert share == pytest.approx(1, abs=0.01) and not same, (
        "the last finds caches of its own, which are empty"
    )
    assert cuts == [TileCut(16, 4)] * 3, "decoding and the device are measured in the run's tiles"
    over = [
        r["stream_over_decoding_of_all_threads"] for r in found(tmp_path, "engine") if r["what"] == "ratio"
    ]
    assert over == [0.5, 0.5]


def test_a_broken_rasterio_is_told_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bench.gpu.scenes", None)
    engine.measure(tiny(tmp_path))
    (row,) = found(tmp_path, "engine")
    assert "bench.gpu.scenes" in row["left_out"] and "give their wheels with --wheels DIR" in row["left_out"]
    assert program.lacking(tmp_path, "engine")


WITHOUT_OTHERS = """
import runpy, sys
from importlib.machinery import PathFinder
from pathlib import Path

class OnlyThese(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        lies = str(spec and (spec.origin or spec.submodule_search_locations))
        return None if "." not in name and "site-packages" in lies and name not in allowed else spec

folder, allowed = Path(sys.argv[1]), sys.argv[2].split(",")
sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyThese
from bench.gpu import scenes
scenes.make("realistic", (16, 24), folder)
layers = [f"--{name}={folder / name}.tif" for name in ("ntl", "dmo", "dem")]
sys.argv = ["deeplight-infer", *layers, "--out", str(folder / "out.tif"), "--backend", "torch", "--device", "cpu"]
runpy.run_module("deeplight.engine.cli", run_name="__main__")
"""
WITH_TORCH = (
    "torch,torchgen,functorch,triton,numpy,sympy,mpmath,networkx,filelock,fsspec,jinja2,markupsafe,setuptools"
)


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["", *engine.NEEDED])
def test_the_engine_runs_with_the_packages_that_are_listed(lacking: str, tmp_path: Path) -> None:
    """attrs has two modules; PyTorch brings typing_extensions."""
    allowed = [*WITH_TORCH.split(","), "typing_extensions", *({*engine.NEEDED, "attrs"} - {lacking})]
    options = [str(tmp_path), ",".join([*allowed, "deeplight", "_editable_skbc_deeplight"])]
    command = [sys.executable, "-c", WITHOUT_OTHERS, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode == 0) == (not lacking), done.stderr
    assert lacking in done.stderr, "it ends for want of this package"


def test_a_strip_has_eight_tiles_for_each_reader_as_the_disk_allows() -> None:
    for cpus in (1, 2, 16):
        rows, cols = engine.usual_strip(cpus, 1e12)
        assert rows % 256 == cols % 256 == 0 and rows * cols == 8 * cpus * 256**2
    assert engine.usual_strip(16, 60e9) == (2048, 4096)
    assert engine.usual_strip(16, 5e9) == (2048, 512)
    assert engine.usual_strip(16, 0) == (2048, 256)
    assert engine.usual_strip(256, 1e12) == engine.usual_strip(32, 1e12)


def test_windows_of_tiles_are_moved_into_the_scene() -> None:
    assert device_rates._inside(Window(-20, 236, 296, 296), 1024, 512) == Window(0, 216, 296, 296)
    assert device_rates._inside(Window(-20, -20, 296, 296), 100, 512) == Window(0, 0, 100, 296)
    assert TileCut(256, 20).computed_share == pytest.approx((296 / 256) ** 2)


def test_decoding_reads_every_tile_of_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes.make("realistic", (16, 24), tmp_path)
    read: list[Window] = []

    def noted(folder: Path, waiting: Any) -> None:
        before = waiting.qsize()
        read.extend(waiting.get() for _ in range(before))

    rates = device_rates.decode(tmp_path, TileCut(8, 2))
    assert all(
        rates[f"hr_mpix_per_s_of_{way}"] > 0 for way in ("one_thread", "all_threads", "each_block_once")
    )
    monkeypatch.setattr(device_rates, "_read", noted)
    device_rates.decode(tmp_path, TileCut(8, 2))
    assert [window.shape for window in read] == [(12, 12)] * (3 + 6) + [(8, 8)] * 6


@pytest.mark.slow
def test_a_repeated_scene_is_what_gdal_would_write(tmp_path: Path) -> None:
    strip = 264, 72  # beyond the patch's 2048 HR pixels in one direction, less in the other
    scenes.make("incompressible", strip, tmp_path)
    fine = ARC / 8
    grid = Grid(
        ntl_grid(Case(*strip)).crs, Affine(fine, 0, WEST, 0, -fine, NORTH), 8 * strip[0], 8 * strip[1]
    )
    content = scenes._bands("incompressible")
    plain = write_raster(tmp_path / "plain.tif", grid, content, "zstd", names=DMO_SLOTS, scale=1e-4)
    assert not (tmp_path / "part.tif").exists()
    with rasterio.open(tmp_path / "dmo.tif") as made, rasterio.open(plain) as want:
        assert np.array_equal(made.read(), want.read())
        for name in (
            "crs",
            "transform",
            "descriptions",
            "scales",
            "dtypes",
            "block_shapes",
            "interleaving",
            "nodata",
        ):
            assert getattr(made, name) == getattr(want, name), name
    with rasterio.open(tmp_path / "dem.tif") as dem:
        assert dem.shape == made.shape and dem.count == 1 and dem.dtypes == ("int16",) and dem.crs == grid.crs
