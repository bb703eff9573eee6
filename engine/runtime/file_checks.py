"""What must hold for the content of a model file before any runtime sees it. Standard library only."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.runtime.onnx_external import uses_external_data

MAX_HEADER = 1 << 22
"""Bytes of a safetensors header: ours has some thousands."""

_ELEMENT = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""safetensors' names of element types → bytes."""


def check_file(name: str, data: bytes) -> None:
    """Refuse content that could read other files, run code or claim memory that is not there.

    .onnx: no external data. .engine: of TensorRT for RTX by its first bytes. .safetensors: the header describes exactly
    the bytes behind it. Pickles and torch.export programs, which run what they carry, are refused by their endings.
    Others are not looked into. Raises ArtifactError in one sentence.
    """
    check = _CHECKS.get(PurePath(name).suffix.lower())
    if check is not None:
        check(name, data)


def _check_onnx(name: str, data: bytes) -> None:
    try:
        external = uses_external_data(data)
    except ValueError as e:
        raise ArtifactError(f"{name} is not an ONNX model: {e}") from None
    if external:
        raise ArtifactError(f"{name} keeps weights in other files: export it as one file")


def _check_engine(name: str, data: bytes) -> None:
    if not data.startswith(b"vtrt"):
        raise ArtifactError(f"{name} is not an engine of TensorRT for RTX: export the model again")


def _check_pickle(name: str, _: bytes) -> None:
    raise ArtifactError(
        f"{name} is a pickle or program by its name, which runs code when it is loaded: export the model again"
    )


def _check_safetensors(name: str, data: bytes) -> None:
    try:
        _check_tensors(data)
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as e:
        raise ArtifactError(f"{name} is not a whole safetensors file: {e}; export the model again") from None


def _check_tensors(data: bytes) -> None:
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes, more than {MAX_HEADER}")
    if length > len(data) - 8:
        raise ValueError("it is cut off in its header")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    end = 0
    for tensor in sorted(header, key=lambda n: header[n]["data_offsets"]):
        end = _check_tensor(tensor, header[tensor], end)
    if end != len(data) - 8 - length:
        raise ValueError(f"it holds {len(data) - 8 - length} bytes of tensors, its header describes {end}")


def _check_tensor(name: str, entry: Mapping[str, Any], start: int) -> int:
    """Where the tensor ends, if it begins at `start` and has the size of its shape."""
    begin, end = (int(x) for x in entry["data_offsets"])
    shape = [int(n) for n in entry["shape"]]
    if min(shape, default=0) < 0 or len(shape) > 8:
        raise ValueError(f"the tensor {name} has the shape {shape}")
    if begin != start or end - begin != math.prod(shape) * _ELEMENT[entry["dtype"]]:
        raise ValueError(f"the tensor {name} does not lie where its header says")
    return end


_CHECKS: Mapping[str, Callable[[str, bytes], None]] = {
    ".onnx": _check_onnx,
    ".engine": _check_engine,
    ".safetensors": _check_safetensors,
    **dict.fromkeys(
        (".pt", ".pt2", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".npy"), _check_pickle
    ),
}
