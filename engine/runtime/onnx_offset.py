"""An ONNX model that is given the offset of its layers in place of estimating it, for dates that share an alignment."""

from __future__ import annotations

from deeplight.engine.core.spec import OFFSET
from deeplight.engine.runtime.onnx_outputs import MAKES, NAME, NODE, OUTPUT, READS, texts, with_graph
from deeplight.engine.runtime.protobuf import fields_of, message_field

INPUT = 11
"""Field number of GraphProto: onnx.proto3. Inputs and outputs are described by the same message."""


def with_offset(model: bytes) -> bytes:
    """The serialised ModelProto whose output `offset` is an input; all nodes that read it stay as they are.

    Raises ValueError where `model` is not well-formed protobuf, or where no node reads its offset.
    """
    return with_graph(model, _given)


def _given(graph: memoryview) -> bytes:
    fields = list(fields_of(graph))
    nodes = [value for number, value, _ in fields if number == NODE and isinstance(value, memoryview)]
    if not any(OFFSET.name in texts(node, READS) for node in nodes):
        raise ValueError("no node reads the offset")
    return b"".join(_changed(number, value, bytes(whole)) for number, value, whole in fields)


def _changed(number: int, value: int | memoryview, whole: bytes) -> bytes:
    if not isinstance(value, memoryview):
        return whole
    if number == NODE and OFFSET.name in texts(value, MAKES):
        return b""
    if number == OUTPUT and next(texts(value, NAME), "") == OFFSET.name:
        return message_field(INPUT, bytes(value))
    return whole
