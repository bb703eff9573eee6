"""The folder beside the output: what a resumed run accepts, refuses and repairs, and whom it keeps out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine import cli
from deeplight.engine.core.errors import InputError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.output.cog import assemble
from deeplight.engine.output.parts import Mode, Record, claimed_parts, parts_folder
from deeplight.engine.run import provenance
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.artifact import write_artifact
from deeplight.engine.runtime.manifest import WEIGHTS
from tests.engine.analytic import manifest, onnx_bytes, weights
from tests.engine.output.stopped import Stopped
from tests.scenes import write_raster


def times_kept(path: Path, change: Callable[[Path], object]) -> None:
    stat = path.stat()
    change(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip_a_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def declare_nodata(path: Path) -> None:
    with rasterio.open(path, "r+") as file:
        file.nodata = -7.0


INPUT_CHANGES: dict[str, Callable[[Path], object]] = {
    "size": lambda p: times_kept(p, lambda p: p.write_bytes(p.read_bytes() + b"\0")),
    "time": lambda p: os.utime(p, ns=(0, p.stat().st_mtime_ns + 1)),
    "header": lambda p: times_kept(p, declare_nodata),
    "one pixel": lambda p: times_kept(p, lambda p: flip_a_bit(p, p.stat().st_size // 2)),
}


@pytest.mark.parametrize("what", INPUT_CHANGES)
def test_changed_inputs_are_refused(stopped: Stopped, what: str) -> None:
    INPUT_CHANGES[what](stopped.ntl)
    with pytest.raises(
        InputError, match=r"cannot be resumed: the file of `ntl` was .* and is now .*; restore it, or use"
    ):
        infer(stopped.request)
    assert {p.name: p.read_bytes() for p in stopped.folder.glob("packs-*/*")} == stopped.packs


OPTION_CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "type": ({"dtype": "uint16"}, "the option dtype was float32 and is now uint16"),
    "bands": ({"bands": ("isp",)}, "the option bands was absent and is now isp"),
    "tiles": ({"tiles": TileRequest(32)}, "`tiles` was 64 and is now 32"),
    "no tiles": ({"tiles": None}, "`tiles` was 64 and is now absent"),
    "threads": ({"threads": 2}, "`threads` was 1 and is now 2"),
}


@pytest.mark.parametrize("what", OPTION_CHANGES)
def test_changed_options_are_refused(stopped: Stopped, what: str) -> None:
    changes, message = OPTION_CHANGES[what]
    with pytest.raises(InputError, match=f"cannot be resumed: {message}"):
        infer(dataclasses.replace(stopped.request, **changes))  # type: ignore[arg-type]


def test_another_layer_model_or_version_is_refused(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stopped.request
    with_dem = dataclasses.replace(request.scene, dem=request.scene.ntl)
    with pytest.raises(InputError, match=r"the file of `dem` was absent and is now \d+ bytes"):
        infer(dataclasses.replace(request, scene=with_dem))
    with pytest.raises(InputError, match="the option ntl_scale was absent and is now 2,1"):
        infer(dataclasses.replace(request, scene=dataclasses.replace(request.scene, ntl_scale=(2.0, 1.0))))
    files = {"model.onnx": onnx_bytes(), WEIGHTS: weights()}
    other = manifest(configuration=ModelConfig(d_max=1.0).to_dict())
    model = write_artifact(request.out.parent / "other", other, files)
    with pytest.raises(InputError, match=r"the model was analytic \w+ and is now analytic \w+"):
        infer(dataclasses.replace(request, model=str(model)))
    more = {**files, "model.fp16.onnx": onnx_bytes()}
    both = manifest(precisions={"fp32": "model.onnx", "fp16": "model.fp16.onnx"}, bytes_per_lr_px=20_001)
    again = write_artifact(request.out.parent / "again", both, {**more, "model.onnx": onnx_bytes(doc="anew")})
    with pytest.raises(InputError, match=r"the model's file was model\.onnx \w+ and is now model\.onnx \w+"):
        infer(dataclasses.replace(request, model=str(again)))
    versions = provenance.versions
    monkeypatch.setattr(provenance, "versions", lambda b: versions(b) | {"gdal": "4.0"})
    with pytest.raises(InputError, match=r"the version of gdal was [\d.]+ and is now 4\.0"):
        infer(request)
    monkeypatch.undo()
    grown = write_artifact(
        request.out.parent / "grown", both, more
    )  # another precision does not end a resume
    report = infer(dataclasses.replace(request, model=str(grown)))
    assert report is not None and report.packs["kept_from_earlier_run"] == 3
    assert request.out.read_bytes() == stopped.expected


def test_an_added_precision_and_plan_do_not_end_a_resume(stopped: Stopped) -> None:
    """Through deeplight-infer, into the very folder that the run was started with."""
    folder, out = Path(stopped.request.model), stopped.request.out
    files = {"model.onnx": onnx_bytes(), "model.fp16.onnx": onnx_bytes(doc="half"), WEIGHTS: weights()}
    both = manifest(
        precisions={"fp32": "model.onnx", "fp16": "model.fp16.onnx"}, training={"exported": "again"}
    )
    write_artifact(folder, both, files, overwrite=True)
    (folder / "plans").mkdir()
    (folder / "plans" / "some-gpu.plan").write_bytes(b"plan")
    command = ["--ntl", stopped.ntl, "--out", out, "--model", folder, "--tiles", "64", "--threads", "1"]
    report = out.with_name("run.json")
    cli.command.main([str(x) for x in (*command, "--resume", "--report", report)], standalone_mode=False)
    assert json.loads(report.read_text())["packs"]["kept_from_earlier_run"] == 3
    assert out.read_bytes() == stopped.expected


def test_damaged_packs_are_redone_and_no_others(stopped: Stopped) -> None:
    packs = sorted(stopped.folder.glob("packs-*/*"))
    flip_a_bit(packs[0], packs[0].stat().st_size // 2)
    packs[1].write_bytes(packs[1].read_bytes()[:-1])
    before = packs[2].stat().st_mtime_ns
    (packs[0].parent / f".{packs[0].name}.1-2.tmp").write_bytes(b"half")
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            "deeplight.engine.output.cog.assemble",
            lambda *a, **k: (seen.append(packs[2].stat().st_mtime_ns), assemble(*a, **k))[1],
        )
        report = infer(stopped.request)
    assert report is not None
    assert report.packs == {"written": 3, "all_nodata": 0, "kept_from_earlier_run": 1} and seen == [before]
    assert stopped.request.out.read_bytes() == stopped.expected


def test_a_finished_output_of_other_inputs_is_not_called_complete(stopped: Stopped) -> None:
    infer(stopped.request)
    assert infer(stopped.request) is None
    os.utime(stopped.ntl, ns=(0, 1))
    assert infer(stopped.request) is None
    flip_a_bit(stopped.ntl, stopped.ntl.stat().st_size // 2)
    with pytest.raises(InputError, match=r"o.tif is complete but of another run \(DEEPLIGHT_INPUT_NTL is"):
        infer(stopped.request)


@pytest.mark.parametrize(
    "more", [{"bands": ("quality",)}, {"conserve_radiance": True}, {"dtype": "uint16"}], ids=str
)
def test_a_finished_output_of_more_options_is_not_called_complete(
    stopped: Stopped, more: dict[str, Any]
) -> None:
    infer(dataclasses.replace(stopped.request, mode=Mode.OVERWRITE, **more))
    with pytest.raises(InputError, match=r"is complete but of another run \(DEEPLIGHT_"):
        infer(stopped.request)


def test_a_finished_output_in_a_folder_that_takes_no_files_is_complete(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to write, unless something beside it is asked for."""
    infer(stopped.request)
    monkeypatch.setattr(os, "access", lambda *_: False)
    events = stopped.request.out.with_name("e.jsonl")
    assert infer(stopped.request) is None
    for more in ({"stac": True}, {"events": events}, {"mode": Mode.OVERWRITE}):
        with pytest.raises(InputError, match="is not writable; choose another one"):
            infer(dataclasses.replace(stopped.request, **more))  # type: ignore[arg-type]
    monkeypatch.undo()
    assert infer(dataclasses.replace(stopped.request, events=events)) is None and not events.exists()


def test_a_file_that_is_no_raster_is_no_finished_output(stopped: Stopped) -> None:
    out = stopped.request.out.with_name("other.tif")
    out.write_text("mine")
    with pytest.raises(
        InputError, match=r"other.tif is there and is no raster that can be read: move it away"
    ):
        infer(dataclasses.replace(stopped.request, out=out))
    assert out.read_text() == "mine"


def test_datasets_in_one_file_are_told_apart(stopped: Stopped) -> None:
    two = stopped.ntl.with_name("two.tif")
    for value, append in ((1, "NO"), (2, "YES")):
        write_raster(two, np.full((4, 800), value, np.float32), APPEND_SUBDATASET=append)
    lines = set()
    for name in (str(two), f"GTIFF_DIR:1:{two}", f"GTIFF_DIR:2:{two}"):
        scene = dataclasses.replace(stopped.request.scene, ntl=name)
        with pytest.raises(InputError, match="the file of `ntl` was") as e:
            infer(dataclasses.replace(stopped.request, scene=scene))
        lines.add(str(e.value).partition("is now")[2])
    assert len(lines) == 3 and not any(str(two.parent) in line for line in lines)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another text", "a number changed"])
def test_a_damaged_record_is_refused_and_packs_are_kept(stopped: Stopped, damage: str) -> None:
    path = stopped.folder / "record.json"
    text = path.read_text()
    path.write_text(
        {
            "cut": text[:-20],
            "empty": "",
            "flipped": text.replace("`ntl`", "`mtl`"),
            "another text": '{"fields": 3}',
            "a number changed": text.replace('"core": 64', '"core": 65'),
        }[damage]
    )
    with pytest.raises(InputError, match=r"record.json is damaged \(.*: use `overwrite=True` to start again"):
        infer(stopped.request)
    assert len(list(stopped.folder.glob("packs-*/*"))) == 3
    infer(dataclasses.replace(stopped.request, mode=Mode.OVERWRITE))
    assert stopped.request.out.read_bytes() == stopped.expected and not stopped.folder.exists()


def test_packs_without_a_record_are_nobodys(stopped: Stopped) -> None:
    (stopped.folder / "record.json").unlink()
    report = infer(stopped.request)
    assert report is not None and report.packs["kept_from_earlier_run"] == 0
    assert stopped.request.out.read_bytes() == stopped.expected


@pytest.mark.parametrize("mode", [Mode.RESUME, Mode.OVERWRITE])
@pytest.mark.parametrize("kind", ["file", "link", "foreign"])
def test_a_folder_that_is_not_ours_is_left_alone(stopped: Stopped, mode: Mode, kind: str) -> None:
    (stopped.folder / "lock").unlink(missing_ok=True)
    if kind == "foreign":
        (stopped.folder / "thesis.doc").write_text("precious")
        message = r"o.tif.parts holds thesis.doc, which is not part of an unfinished run: move it away"
    else:
        stopped.folder.rename(elsewhere := stopped.folder.with_name("elsewhere"))
        stopped.folder.symlink_to(elsewhere) if kind == "link" else stopped.folder.write_text("x")
        message = r"o.tif.parts is not a folder, and its name is needed for one: move it away"
    before = sorted(stopped.request.out.parent.rglob("*"))
    with pytest.raises(InputError, match=message):
        infer(dataclasses.replace(stopped.request, mode=mode))
    assert sorted(stopped.request.out.parent.rglob("*")) == before


def test_what_killed_runs_left_goes_and_its_space_counts(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped.request.out.parent
    (folder / ".o.tif.parts.77.removed" / "packs").mkdir(parents=True)
    (folder / ".o.tif.parts.77.removed" / "packs" / "00000_00000.pack").write_bytes(bytes(10**7))
    (folder / ".o.tif.77-78.tmp").write_bytes(bytes(10**7))
    (folder / ".other.tif.77-78.tmp").write_bytes(b"of another output")
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("deeplight.engine.output.parts.shutil.disk_usage", lambda folder: usage)
    infer(stopped.request)
    assert stopped.request.out.read_bytes() == stopped.expected
    assert {p.name for p in folder.iterdir()} == {"analytic", "ntl.tif", "o.tif", ".other.tif.77-78.tmp"}
    (folder / ".o.tif.parts.77.removed").mkdir()
    assert infer(stopped.request) is None and not (folder / ".o.tif.parts.77.removed").exists()


def test_a_run_that_came_and_went_meanwhile_is_not_replaced(stopped: Stopped, tmp_path: Path) -> None:
    record = Record({}, 64, 2)
    with (
        pytest.raises(InputError, match="holds an unfinished run"),
        claimed_parts(stopped.request.out, record, Mode.NEW),
    ):
        pass
    assert {p.name: p.read_bytes() for p in stopped.folder.glob("packs-*/*")} == stopped.packs
    out = tmp_path / "o.tif"
    out.write_text("finished just now")
    with (
        pytest.raises(InputError, match="exists: use `overwrite=True`"),
        claimed_parts(out, record, Mode.NEW),
    ):
        pass
    assert out.read_text() == "finished just now" and not parts_folder(out).exists()
