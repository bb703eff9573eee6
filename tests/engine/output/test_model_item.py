"""The STAC item of a model: what the extension for machine-learning models requires, and that pystac reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
from pystac.extensions.mlm import MLMExtension

from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS
from deeplight.engine.output.model_item import model_item_name, write_model_item
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from tests.engine.analytic import write_analytic


def test_item_of_the_model_in_the_package(tmp_path: Path) -> None:
    artifact = load_artifact(DEFAULT_MODEL)
    path = write_model_item(tmp_path, artifact.manifest)
    text = path.read_text()
    assert str(artifact.path) not in text
    item = pystac.Item.from_file(str(path))
    mlm = MLMExtension.ext(item)
    assert mlm.mlm_name == DEFAULT_MODEL and mlm.architecture == "DeepLightSR"
    assert mlm.tasks[0] == "super-resolution"
    assert [i.name for i in mlm.input] == [spec.name for spec in INPUTS]
    assert [o.name for o in mlm.output] == [spec.name for spec in OUTPUTS]
    for tensor in (*mlm.input, *mlm.output):
        array = tensor.input if hasattr(tensor, "input") else tensor.result
        assert len(array.shape) == len(array.dim_order) in (2, 4) and array.data_type == "float32"
    bands = next(i.bands for i in mlm.input if i.name == "dmo")
    assert bands == list(DMO_SLOTS) == [band["name"] for band in item.properties["bands"]]
    listed = artifact.manifest.files
    for name, asset in item.assets.items():
        assert "mlm:model" in (asset.roles or ()) and asset.extra_fields["mlm:artifact_type"]
        assert asset.extra_fields["bands"] == item.properties["bands"]
        assert asset.extra_fields["file:checksum"] == f"1220{listed[name].sha256}"
    assert set(item.assets) == {"model.safetensors", "model.onnx", "model.bf16.onnx"}


def test_models_of_one_name_have_their_own_items(tmp_path: Path) -> None:
    one = load_artifact(write_analytic(tmp_path / "one")).manifest
    content = json.loads((tmp_path / "one" / "manifest.json").read_text())
    content["configuration"]["d_max"] = 1.5
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(content))
    other = load_artifact(tmp_path / "one").manifest
    assert one.name == other.name and model_item_name(one) != model_item_name(other)
    first = write_model_item(tmp_path, one).read_bytes()
    write_model_item(tmp_path, other)
    assert write_model_item(tmp_path, one).read_bytes() == first
