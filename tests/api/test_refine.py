"""refine: what deeplight-infer writes, interrupted and resumed, told as it goes, from any thread."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

import deeplight as dl
from tests.scenes import NTL, SceneFiles, north_up


def test_the_report_is_run_json(scene: dl.Scene, model: dl.Model, tmp_path: Path) -> None:
    run = dl.refine(scene, model, out=str(tmp_path / "o.tif"), tiles="9+2", report=tmp_path / "run.json")
    assert run.path == tmp_path / "o.tif"
    assert run.report is not None
    assert json.loads(json.dumps(run.report, default=str)) == json.loads((tmp_path / "run.json").read_text())
    assert run.report["tiles"]["plan"] == "9+2"
    assert repr(run).startswith(f"Run: {run.path}, 9 tiles in ")


def test_a_model_by_its_folder_and_all_products(files: SceneFiles, folder: Path, tmp_path: Path) -> None:
    with dl.open_scene(files.ntl) as scene:
        dl.refine(
            scene, folder, out=tmp_path / "o.tif", tiles=None, dtype="uint16", compression="deflate", stac=True,
            quicklook=tmp_path / "q.png", events=tmp_path / "e.jsonl",
        )  # fmt: skip
    (of_model,) = tmp_path.glob("analytic-*.stac.json")
    assert {p.name for p in tmp_path.iterdir()} == {"o.tif", "o.stac.json", of_model.name, "q.png", "e.jsonl"}


@pytest.mark.parametrize("thread", [False, True])
def test_no_signal_handlers_and_any_thread(
    scene: dl.Scene, model: dl.Model, tmp_path: Path, thread: bool
) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    during: list[object] = []

    def tell(share: float, text: str) -> None:
        during.append([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)])

    def work() -> None:
        dl.refine(scene, model, out=tmp_path / "o.tif", tiles=9, progress=tell)

    if thread:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    else:
        work()
    assert (tmp_path / "o.tif").is_file()
    assert during and all(handlers == before for handlers in during)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_progress_goes_from_nothing_to_all_in_lines_without_options(
    scene: dl.Scene, model: dl.Model, tmp_path: Path
) -> None:
    told: list[tuple[float, str]] = []
    dl.refine(scene, model, out=tmp_path / "o.tif", tiles=9, progress=lambda *a: told.append(a))
    assert 0 < told[0][0] < 1
    assert told[-1][0] == 1
    assert "bottleneck" in told[-1][1]
    assert any("conserve_radiance=True" in text for _, text in told)
    assert not any("--" in text or "\n" in text for _, text in told)


def test_progress_as_lines(
    scene: dl.Scene, model: dl.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dl.refine(scene, model, out=tmp_path / "o.tif", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert "assembling the output" in lines
    assert not any("--" in line for line in lines)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: programs started in the background ignore Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("layers", ["files", "arrays"])
def test_ctrl_c_leaves_parts_that_a_second_call_goes_on_from(
    layers: str, model: dl.Model, tmp_path: Path
) -> None:
    """A scene of four packs, of which at least one is done when the signal comes."""
    values = np.tile(NTL, (40, 30))
    lights: object = dl.Layer(values, crs="EPSG:4326", transform=north_up(), unit="nW/cm²/sr")
    if layers == "files":
        with rasterio.open(
            tmp_path / "ntl.tif", "w", driver="GTiff", count=1, dtype="float32", crs="EPSG:4326",
            height=values.shape[0], width=values.shape[1], transform=north_up(),
        ) as file:  # fmt: skip
            file.write(values, 1)
        lights = tmp_path / "ntl.tif"
    out = tmp_path / "o.tif"
    sent = []

    def interrupt(share: float, text: str) -> None:
        if share > 0.4 and not sent:
            until = time.monotonic() + 20.0
            while not any(tmp_path.glob("o.tif.parts/packs-*/*.pack")) and time.monotonic() < until:
                time.sleep(0.01)  # the writers store it meanwhile
            sent.append(share)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if sent:
            time.sleep(0.05)  # the run must not be over before the main thread has its turn

    with dl.open_scene(lights) as scene, pytest.raises(KeyboardInterrupt):
        dl.refine(scene, model, out=out, tiles=64, progress=interrupt)
    assert sent and not out.exists()
    with dl.open_scene(lights) as scene:
        with pytest.raises(dl.InputError) as error:
            dl.refine(scene, model, out=out, tiles=64)
        assert str(error.value).endswith("use resume=True to continue it or overwrite=True to start again")
        run = dl.refine(scene, model, out=out, tiles=64, resume=True)
        assert run.report is not None
        assert run.report["packs"]["kept_from_earlier_run"] >= 1
        again = dl.refine(scene, model, out=out, tiles=64, resume=True)
        assert again.report is None
        assert repr(again) == f"Run: {out} was complete already"


def test_an_array_that_has_changed_is_not_resumed(model: dl.Model, tmp_path: Path) -> None:
    out = tmp_path / "o.tif"
    values = np.tile(NTL, (40, 30))

    def stop(share: float, text: str) -> None:
        if share > 0.4:
            raise RuntimeError("enough")

    place = {"crs": "EPSG:4326", "transform": north_up(), "unit": "nW/cm²/sr"}
    with dl.open_scene(dl.Layer(values, **place)) as scene, pytest.raises(RuntimeError, match="enough"):
        dl.refine(scene, model, out=out, tiles=64, progress=stop)
    values[300, 200] += 1
    with dl.open_scene(dl.Layer(values, **place)) as scene, pytest.raises(dl.InputError) as error:
        dl.refine(scene, model, out=out, tiles=64, resume=True)
    assert "the file of ntl" in str(error.value)
    assert "--" not in str(error.value)


def test_shards_and_a_last_call_write_the_same_file(scene: dl.Scene, model: dl.Model, tmp_path: Path) -> None:
    whole = dl.refine(scene, model, out=tmp_path / "whole.tif", tiles=9)
    for index in (1, 0):
        part = dl.refine(scene, model, out=tmp_path / "o.tif", tiles=9, shard=(index, 2))
        assert part.report is not None and not part.path.exists()
    run = dl.refine(scene, model, out=tmp_path / "o.tif", tiles=9, resume=True)
    assert run.path.read_bytes() == whole.path.read_bytes()
    for wrong in ((2, 2), (0,), 1, "a", (0.5, 2), (-1, 2)):
        with pytest.raises(
            dl.InputError, match=r"shard=.* is not \(I, N\) with I from 0 to N - 1; an example is"
        ):
            dl.refine(scene, model, out=tmp_path / "p.tif", shard=wrong)  # type: ignore[arg-type]


def test_workers_are_named_in_a_text(scene: dl.Scene, model: dl.Model, tmp_path: Path) -> None:
    for wrong in ("local", 2, "dask:2"):
        with pytest.raises(
            dl.InputError, match=r'workers=.* is not "local:N", "ray" or "ray:HOST:PORT,N"; an example'
        ):
            dl.refine(scene, model, out=tmp_path / "o.tif", workers=wrong)  # type: ignore[arg-type]
    with pytest.raises(
        dl.InputError, match="tiles=None computes the scene in one piece, which workers cannot share"
    ):
        dl.refine(scene, model, out=tmp_path / "o.tif", tiles=None, workers="local:2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_write_the_same_file(scene: dl.Scene, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with dl.load_model(folder, threads=1) as model:
        whole = dl.refine(scene, model, out=tmp_path / "whole.tif", tiles=9)
        run = dl.refine(scene, model, out=tmp_path / "o.tif", tiles=9, workers="local:2")
    assert run.path.read_bytes() == whole.path.read_bytes()
    assert run.report is not None and len(run.report["workers"]) >= 1
