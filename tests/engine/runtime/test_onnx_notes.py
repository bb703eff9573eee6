"""An ONNX file that lies in the folder of another model is refused, whatever would run it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.manifest import CONFIGURATION_NOTE, HALO_NOTE, WEIGHTS_NOTE
from deeplight.engine.runtime.onnx_notes import check_origin, notes_of
from tests.engine.analytic import BLUR, manifest, onnx_bytes, weights, write_model

OWN = {
    HALO_NOTE: str(BLUR),
    WEIGHTS_NOTE: hashlib.sha256(weights()).hexdigest(),
    CONFIGURATION_NOTE: manifest().configuration_digest,
}


def test_the_notes_are_read_without_a_runtime() -> None:
    assert notes_of(onnx_bytes(notes=OWN)) == OWN and notes_of(onnx_bytes()) == {}


@pytest.mark.parametrize("left_out", OWN)
def test_a_file_that_does_not_say_it_passes(tmp_path: Path, left_out: str) -> None:
    """Files of earlier versions lack the configuration's digest."""
    notes = {name: value for name, value in OWN.items() if name != left_out}
    with open_backend(
        "onnxruntime", load_artifact(write_model(tmp_path / "m", onnx_bytes(notes=notes)))
    ) as opened:
        assert opened.name == "onnxruntime"


WRONG = {
    HALO_NOTE: (str(BLUR + 1), "needs a halo of 3 LR pixels and the manifest claims 2"),
    WEIGHTS_NOTE: ("0" * 64, r"was made from other weights than model\.safetensors"),
    CONFIGURATION_NOTE: ("0" * 64, "was made from another configuration than the manifest's"),
}


@pytest.mark.parametrize("note", WRONG)
def test_a_file_of_another_model_is_refused(tmp_path: Path, note: str) -> None:
    value, words = WRONG[note]
    artifact = load_artifact(write_model(tmp_path / "m", onnx_bytes(notes={**OWN, note: value})))
    with pytest.raises(ArtifactError, match=f"{words}: export the model again$"):
        open_backend("onnxruntime", artifact)


def test_a_damaged_file_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"is damaged: .*; export the model again$"):
        check_origin(load_artifact("deeplight-tiny").manifest, onnx_bytes()[:-3])
