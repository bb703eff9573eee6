"""Finds ONNX external data in a serialised model without loading it: an artifact carries its weights."""

from __future__ import annotations

from collections.abc import Mapping

from deeplight.engine.runtime.protobuf import fields_of

# Fields that lead to a TensorProto, per message. Field numbers: ONNX IR specification, onnx.proto3.
_NESTED: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 100
"""Protobuf's own limit on nested messages."""


def uses_external_data(model: bytes) -> bool:
    """Whether any tensor of a serialised ONNX ModelProto points outside the file.

    Raises ValueError where `model` is not well-formed protobuf.
    """
    return _message_is_external(memoryview(model), "model", 0)


def _message_is_external(data: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("messages nested too deeply")
    for number, value, _ in fields_of(data):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                return True
            continue
        child = _NESTED[kind].get(number)
        if child is None:
            continue
        if not isinstance(value, memoryview):
            raise ValueError(f"field {number} of {kind} is not a message")
        if _message_is_external(value, child, depth + 1):
            return True
    return False
