"""Files of an artifact are looked into before any runtime gets them; each refusal is one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.runtime.artifact import load_artifact, write_artifact
from deeplight.engine.runtime.file_checks import MAX_HEADER, check_file
from deeplight.engine.runtime.manifest import WEIGHTS
from tests.engine.analytic import manifest, onnx_bytes, weights, write_analytic


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"\0" * 24, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {"__metadata__": {"k": "v"}, "a": tensor(0, 16, [2, 2]), "b": tensor(16, 24, [4], "BF16")}


def test_whole_safetensors_pass() -> None:
    check_file("weights.safetensors", safetensors(GOOD))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole safetensors"),
        (safetensors(GOOD)[:-1], "holds 23 bytes of tensors"),
        (safetensors(GOOD)[:40], "cut off in its header"),
        (safetensors(GOOD, length=1 << 60), f"more than {MAX_HEADER}"),
        (safetensors(b"[" * 50_000), "not a whole safetensors"),
        (safetensors({"a": tensor(0, 24, [10**9])}), "does not lie where"),
        (safetensors({"a": tensor(0, 24, [-1, 6])}), "the shape"),
        (safetensors({"a": tensor(8, 24, [4])}), "does not lie where"),
        (safetensors({"a": tensor(0, 24, [6], "F99")}), "not a whole safetensors"),
        (safetensors(GOOD, b"\0" * 25), "holds 25 bytes of tensors"),
    ],
)
def test_truncated_oversized_and_lying_headers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        check_file("weights.safetensors", data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model.pt", "a.pt2", "model.pth", "weights.pkl", "CKPT.CKPT", "pytorch_model.bin"]
)
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is a pickle or program by its name"):
        write_artifact(
            tmp_path / "m", manifest(), {"model.onnx": onnx_bytes(), WEIGHTS: weights(), name: b""}
        )


def test_a_file_that_is_not_listed_is_not_read(tmp_path: Path) -> None:
    artifact = load_artifact(write_analytic(tmp_path / "m"))
    (artifact.path / "more.safetensors").write_bytes(safetensors(GOOD))
    with pytest.raises(ArtifactError, match="has no file"):
        artifact.read_file("more.safetensors")
