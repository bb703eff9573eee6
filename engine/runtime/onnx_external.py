"""Finds ONNX external data in a serialised model without loading it: an artifact carries its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
    for number, value in fields(data):
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


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message: a view for length-delimited fields, else an integer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not used by ONNX")
        end = at + length
        if end > len(data):
            raise ValueError("a field is longer than its message")
        yield number, data[at:end] if wire == 2 else int.from_bytes(data[at:end], "little")
        at = end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The variable-length integer at `at` and the position behind it."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("an integer is cut off")
