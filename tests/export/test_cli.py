"""`deeplight-export` as a user meets it: what is written, one sentence for everything that is wrong, nothing left."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import installed
from deeplight.export import build, cli, parity
from deeplight.export.build import Exported
from deeplight.train.fit.checkpoint import save_checkpoint

Export = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Export:
    """Runs the command; returns the exit status, stdout and the lines of stderr."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["deeplight-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err.splitlines()

    return run


@pytest.fixture
def checkpoint(tmp_path: Path, model: DeepLightSR) -> Path:
    save_checkpoint(tmp_path / "run", model, {"step": 3})
    return tmp_path / "run"


@pytest.fixture
def quick(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """An export that is done already and compared in one case: the model's ONNX file, to be changed by a test."""
    proto = onnx.load(exported.path / "model.onnx")
    smallest = {"odd": parity.parity_cases()["odd, all layers"]}
    monkeypatch.setattr(parity, "parity_cases", lambda: smallest)
    monkeypatch.setattr(build, "trace", lambda *_: None)
    monkeypatch.setattr(build, "to_onnx", lambda *_: proto.SerializeToString())
    monkeypatch.setattr(build, "_bytes_per_lr_px", lambda _: 1)
    return proto


@pytest.mark.usefixtures("quick")
def test_nothing_is_said_twice_where_a_library_set_up_logging(
    export: Export, checkpoint: Path, tmp_path: Path
) -> None:
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        said = export(checkpoint, "--out", tmp_path / "m")[2]
    finally:
        logging.getLogger().removeHandler(handler)
    assert sum("exporting fp32" in line for line in said) == 1


@pytest.mark.usefixtures("quick")
def test_an_export_says_what_it_does_and_where_it_is(
    export: Export, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    code, printed, said = export(checkpoint, "--out", out, "--format", "onnx,triton-repo", "--name", "mine")
    assert code == 0 and printed.split() == [str(out), f"{out}-triton"]
    assert said[0] == "exporting fp32"
    assert "comparing fp32 on onnxruntime, cpu, with the float32 model" in said
    assert sum(" onnxruntime fp32 " in line for line in said) == 1, "the table of the comparison"
    assert load_artifact(out).manifest.name == "mine" and (tmp_path / "m-triton" / "mine").is_dir()
    assert json.loads((out / "parity.json").read_text())["passed"] is True
    code, _, said = export(checkpoint, "--out", out)
    assert code == 2 and said == [
        f"error: {out} exists: use --overwrite to replace it, or choose another --out"
    ]
    assert export(checkpoint, "--out", out, "--overwrite")[0] == 0
    assert export(out, "--out", tmp_path / "again")[0] == 0, "an exported model can be exported"
    assert (
        load_artifact(tmp_path / "again").digest
        == load_artifact(out).digest
        == load_artifact(checkpoint).digest
    )


def test_a_failed_comparison_ends_with_one_sentence_and_no_artifact(
    export: Export, checkpoint: Path, tmp_path: Path, quick: onnx.ModelProto
) -> None:
    first = next(t for t in quick.graph.initializer if t.name == "first.weight")
    first.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first) * 1.01, first.name))
    code, printed, said = export(checkpoint, "--out", tmp_path / "m", "--format", "onnx,triton-repo")
    assert code == 1 and printed == ""
    runtimes = 1 + installed("openvino", "cpu")  # that run the file
    rows = [line.endswith("FAILED") for line in said[-4 - runtimes :]]
    assert sum(rows) == runtimes and not rows[-1], "the table, then the sentence"
    sentence = (
        rf"error: the exported model does not match its weights, .* {runtimes} of {3 + runtimes} comparisons"
    )
    assert re.match(sentence, said[-1])
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp64"], "'fp64' is not one of fp32, fp16, bf16"),
        (["--precision", ""], "'' is not one of fp32, fp16, bf16"),
        (["--format", "onnx,coreml"], "'coreml' is not one of onnx, tensorrt, tensorrt-rtx, triton-repo"),
        (["--plugins", "maybe"], "'maybe' is not one of"),
        (["--hardware", "hopper"], "'hopper' is not one of"),
        (["--name", "../up"], "'../up' is not a plain name: use letters"),
        (["--out", "elsewhere"], "--out is given 2 times and takes one value: give it once"),
        (
            ["--format", "onnx,tensorrt-rtx", "--precision", "bf16"],
            "--precision bf16 makes a file for OpenVINO, of which TensorRT builds nothing: add fp32 or fp16",
        ),
        (["--precision", "int8"], "(int8 was slower and worse than fp32 on CPUs"),
        (
            ["--format", "onnx,torch"],
            "(torch needs no file: deeplight-infer --backend torch runs the weights",
        ),
        (["--data", "nowhere"], "nowhere has no ntl.tif: give a folder as deeplight-data synth writes it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    export: Export, checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, printed, said = export(checkpoint, "--out", tmp_path / "m", *arguments)
    assert (code, printed, len(said)) == (2, "", 1) and message in said[0] and said[0].startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_empty_name_is_no_folder(export: Export, checkpoint: Path) -> None:
    code, printed, said = export(checkpoint, "--out", "")
    assert (code, printed, len(said)) == (2, "", 1) and "the name of the folder is empty" in said[0]


@pytest.mark.parametrize("what", ["missing", "no manifest", "cut off", "not json", "other weights"])
def test_a_checkpoint_that_is_none_is_refused(
    export: Export, checkpoint: Path, tmp_path: Path, model: DeepLightSR, what: str
) -> None:
    weights, card = checkpoint / "model.safetensors", checkpoint / "manifest.json"
    if what == "cut off":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif what == "no manifest":
        card.unlink()
    elif what == "not json":
        card.write_text("{")
    elif what == "other weights":
        values = json.loads(card.read_text())
        values["configuration"]["localise_width"] *= 2
        card.write_text(json.dumps(values))
    where = tmp_path / "nowhere" if what == "missing" else checkpoint
    code, _, said = export(where, "--out", tmp_path / "m")
    sentence = {
        "missing": "nowhere': give a built-in name (deeplight-tiny), or a directory with manifest.json",
        "no manifest": "run': give a built-in name (deeplight-tiny), or a directory with manifest.json",
        "cut off": "copy or export the model again",
        "not json": "manifest.json is not JSON",
        "other weights": "do not fit its configuration: localise_width is 16 there, 8 in the weights",
    }[what]
    assert code == 2 and len(said) == 1 and sentence in said[0]
    assert not (tmp_path / "m").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    export: Export, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for place, message in (
        (tmp_path / "file" / "m", "cannot write .*: Not a directory; choose another place"),
        (tmp_path / ("m" * 300), "cannot write .*: File name too long; choose another place"),
        (tmp_path / "file", "exists: use --overwrite to replace it, or choose another --out"),
    ):
        code, _, said = export(checkpoint, "--out", place)
        assert code == 2 and len(said) == 1 and re.search(message, said[0])
    code, _, said = export(checkpoint, "--out", tmp_path / "folder", "--overwrite")
    assert code == 2 and said[0].endswith("folder is not a model folder, so it is not overwritten")
    assert (tmp_path / "file").read_text() == "mine"


def test_lists_keep_their_order_and_drop_repetitions() -> None:
    assert cli._list(cli.PRECISIONS, "fp16, fp32,fp16") == ("fp16", "fp32")
