"""The artifact contract: written is read back; anything damaged or unsafe is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import ArtifactError, InputError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.runtime.artifact import Draft, check_target, load_artifact, model_names, write_artifact
from deeplight.engine.runtime.manifest import WEIGHTS, Manifest
from deeplight.engine.runtime.onnx_external import uses_external_data
from tests.engine.analytic import manifest, onnx_bytes, weights, write_analytic, write_model


@pytest.fixture(scope="module")
def model() -> bytes:
    return onnx_bytes()


def edit(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    d = json.loads(path.read_text())
    d.update(changes)
    path.write_text(json.dumps(d))


def test_round_trip(tmp_path: Path, model: bytes) -> None:
    m = manifest(training={"steps": 3}, producer={"torch": "x"})
    files = {"model.onnx": model, WEIGHTS: weights(), "CARD.md": b"text"}
    path = write_artifact(tmp_path / "m", m, files)
    artifact = load_artifact(path)
    assert artifact.manifest.to_json() == dataclasses.replace(m, files=artifact.manifest.files).to_json()
    assert set(artifact.manifest.files) == set(files)
    assert artifact.read("fp32") == model
    assert artifact.file("fp32") == path / "model.onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_missing_precision_names_the_ones_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no ONNX file in precision fp16, it has fp32"):
        load_artifact(write_analytic(tmp_path / "m")).file("fp16")


def test_without_a_bfloat16_file_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    artifact = load_artifact(write_analytic(tmp_path / "m"))
    for kind in ("onnx", "openvino"):
        with pytest.raises(
            ArtifactError,
            match=r"no ONNX file in precision bf16, it has fp32; `backend=\"torch\"` runs its weights, and "
            r"deeplight-export .*m --out DIR --precision bf16 writes a file for `backend=\"openvino\"`$",
        ):
            artifact.file("bf16", kind)


def test_unknown_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="unknown model 'no-such'"):
        load_artifact("no-such")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "bytes, not"),
        (lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], "does not match its SHA-256"),
    ],
    ids=["truncated", "one bit"],
)
def test_damaged_file_is_refused(tmp_path: Path, damage, message: str) -> None:
    path = write_analytic(tmp_path / "m")
    (path / "model.onnx").write_bytes(damage((path / "model.onnx").read_bytes()))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(path)


def test_file_changed_after_loading_is_not_used(tmp_path: Path) -> None:
    artifact = load_artifact(write_analytic(tmp_path / "m"))
    data = (artifact.path / "model.onnx").read_bytes()
    (artifact.path / "model.onnx").write_bytes(data[::-1])
    with pytest.raises(ArtifactError, match="SHA-256"):
        artifact.read("fp32")


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/b.onnx", "..", ".hidden", "manifest.json"]
)
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    path = write_analytic(tmp_path / "m")
    info = json.loads((path / "manifest.json").read_text())["files"]["model.onnx"]
    edit(path, files={name: info, WEIGHTS: info}, precisions={"fp32": name})
    with pytest.raises(ArtifactError, match="not a plain file name"):
        load_artifact(path)


def test_symlink_out_is_refused(tmp_path: Path) -> None:
    path = write_analytic(tmp_path / "m")
    (path / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="links outside"):
        load_artifact(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": 1},
            "schema 1 and this version reads 3, whose models are told the blur",
        ),
        ({"schema": 2}, "train it again, with deeplight-train"),
        ({"scale": 4}, "refines 8×"),
        ({"halo_lr": 1}, "below the receptive field"),
        ({"receptive_field_lr": float("nan")}, "below the receptive field"),
        ({"dmo_slots": ["red"]}, "DMO slots"),
        ({"inputs": []}, "inputs"),
        ({"outputs": []}, "outputs"),
        ({"configuration": {}}, "preset"),
        ({"configuration": {"preset": "test"}}, "d_max"),
        ({"configuration": {"preset": "test", "d_max": 0}}, '"d_max" must be a number above 0'),
        ({"configuration": []}, '"configuration" must be an object'),
        ({"precisions": {"fp32": "other.onnx"}}, "not listed"),
        ({"name": 3}, '"name" must be a text'),
        ({"shape_rules": {"multiple_lr": 0, "min_lr": 1}}, "multiple_lr"),
        ({"files": []}, '"files" must be an object'),
    ],
)
def test_bad_manifest_is_one_sentence(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_analytic(tmp_path / "m")
    edit(path, **changes)
    with pytest.raises(ArtifactError, match=message) as e:
        load_artifact(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "[" * 100_000])
def test_malformed_manifest(text: str) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_json(text)


def external_model(place: str) -> bytes:
    """A model with one external tensor: an initializer, an attribute, or inside a function's subgraph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", 1, [4])])
    choose = helper.make_node("If", ["b"], ["c"], then_branch=branch, else_branch=branch)
    plain = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([plain], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [y])
    functions = []
    if place == "initializer":
        graph.initializer.append(tensor)
    elif place == "attribute":
        graph.node.append(constant)
    else:
        functions = [helper.make_function("d", "f", ["b"], ["c"], [choose], [helper.make_opsetid("", 20)])]
    return bytes(helper.make_model(graph, functions=functions).SerializeToString())


@pytest.mark.parametrize("place", ["initializer", "attribute", "function"])
def test_external_data_is_refused(tmp_path: Path, place: str) -> None:
    assert uses_external_data(external_model(place))
    with pytest.raises(ArtifactError, match="keeps weights in other files"):
        write_model(tmp_path / "m", external_model(place))
    assert list(tmp_path.iterdir()) == []


def test_self_contained_model_passes_the_scan(model: bytes) -> None:
    assert not uses_external_data(model)


@pytest.mark.parametrize("data", [b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x3a\x05ab", b"\x3b"])
def test_scan_refuses_what_is_not_protobuf(data: bytes) -> None:
    with pytest.raises(ValueError):
        uses_external_data(data)


def test_existing_directory(tmp_path: Path, model: bytes) -> None:
    path = write_analytic(tmp_path / "m")
    with pytest.raises(ArtifactError, match="exists"):
        write_model(path, model)
    files = {"model.onnx": model, WEIGHTS: weights()}
    other = manifest(configuration=ModelConfig(preset="other").to_dict())
    write_artifact(path, other, files, overwrite=True)
    assert load_artifact(path).manifest.preset == "other"
    (path / "state.safetensors").touch()
    with pytest.raises(ArtifactError, match="is a training run, whose state would be lost"):
        write_artifact(path, other, files, overwrite=True)
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="not a model folder"):
        write_artifact(folder, manifest(), files, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "precious"]


def test_every_built_in_model_loads() -> None:
    for name in model_names():
        assert load_artifact(name).manifest.name == name


def test_identity_is_that_of_configuration_and_weights(tmp_path: Path, model: bytes) -> None:
    plain = load_artifact(write_analytic(tmp_path / "m"))
    files = {"model.onnx": model, "model.fp16.onnx": model, WEIGHTS: weights()}
    more = manifest(
        precisions={"fp32": "model.onnx", "fp16": "model.fp16.onnx"}, name="other", training={"step": 1}
    )
    assert load_artifact(write_artifact(tmp_path / "more", more, files)).digest == plain.digest
    wider = manifest(configuration=ModelConfig(d_max=1.5, preset="test").to_dict())
    assert load_artifact(write_artifact(tmp_path / "wider", wider, files)).digest != plain.digest
    from safetensors.numpy import save

    heavier = {**files, WEIGHTS: save({"box": np.zeros(3, np.float32)})}
    assert load_artifact(write_artifact(tmp_path / "heavier", more, heavier)).digest != plain.digest


def test_a_folder_without_weights_is_no_model(tmp_path: Path, model: bytes) -> None:
    with pytest.raises(ArtifactError, match="not listed under files"):
        write_artifact(tmp_path / "m", manifest(), {"model.onnx": model})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_model(
    tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two renames of the swap."""
    path = write_analytic(tmp_path / "m")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    files = {"model.onnx": model, WEIGHTS: weights()}
    with pytest.raises(KeyboardInterrupt):
        write_artifact(path, manifest(name="other"), files, overwrite=True)
    assert load_artifact(path).manifest.name == "analytic"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_an_export_writes_is_refused_to_others(tmp_path: Path, model: bytes) -> None:
    files = {"model.onnx": model, WEIGHTS: weights()}
    words = r"another export is writing .*m: wait for it or stop it, or choose another place$"
    for overwrite in (False, True):
        with Draft(tmp_path / "m", overwrite=overwrite) as first:
            for name, data in files.items():
                first.put(name, data)
            with pytest.raises(InputError, match=words):
                write_artifact(tmp_path / "m", manifest(name="second"), files, overwrite=overwrite)
            with pytest.raises(InputError, match=words):
                check_target(tmp_path / "m", overwrite=overwrite)
            first.commit(manifest(name=f"first {overwrite}"))
        assert load_artifact(tmp_path / "m").manifest.name == f"first {overwrite}"
        assert [p.name for p in tmp_path.iterdir()] == ["m"]
