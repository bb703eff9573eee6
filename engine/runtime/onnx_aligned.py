"""An ONNX model in two halves, between which the engine itself aligns the layers: graphs gather slowly.

The node deeplight::align of a model moves float32 features on the HR grid by the offset (kernels/align/reference.py).
In front of it a half makes these features and the offset, behind it another takes what `raster.align` made of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from deeplight.engine.core.spec import ALIGNED, FEATURES, OFFSET, InputSpec
from deeplight.engine.runtime.onnx_alone import DOMAIN, OPERATOR, identity, nothing
from deeplight.engine.runtime.onnx_offset import INPUT
from deeplight.engine.runtime.onnx_outputs import (
    ATTRIBUTE,
    MAKES,
    NAME,
    NODE,
    OUTPUT,
    READS,
    graph_of,
    has_subgraph,
    texts,
    with_graph,
    with_outputs,
)
from deeplight.engine.runtime.protobuf import fields_of, integer_field, message_field

_TYPE, _TENSOR, _ELEMENT, _SHAPE, _DIMENSION, _LENGTH = 2, 1, 1, 2, 1, 1
"""Fields of ValueInfoProto, TypeProto, TypeProto.Tensor, TensorShapeProto and its dimensions: onnx.proto3."""
_FLOAT, _BOOL = 1, 9
_GRAPH_NAME, _INITIALIZER = 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_KIND, _KIND_GRAPH = 6, 20, 5


FRONT = "front_half"
"""The input of `joined` that says which half to compute: bool, no dimensions."""


class Halves(NamedTuple):
    """Two serialised ModelProtos. front: makes FEATURES, and OFFSET where tiles do not come with it. back: takes
    ALIGNED beside the model's inputs and makes all other outputs."""

    front: bytes
    back: bytes


def joined(halves: Halves) -> bytes:
    """Both halves as the branches of one ModelProto, so that they share a session's memory. It takes FRONT and ALIGNED,
    of any size for the front half, beside the model's inputs, and makes what the half makes; all else is one number."""
    front, back = graph_of(halves.front), graph_of(halves.back)
    made = [*_names(OUTPUT, front), *_names(OUTPUT, back)]
    taken = {name: bytes(whole) for graph in (front, back) for name, whole in _fields(INPUT, graph)}
    branches = [
        _attribute(f"{name}_branch", _branch(name, graph, made))
        for name, graph in (("then", front), ("else", back))
    ]
    node = message_field(READS, FRONT.encode()) + b"".join(
        message_field(MAKES, name.encode()) for name in made
    )
    node += message_field(OPERATOR, b"If") + b"".join(message_field(ATTRIBUTE, branch) for branch in branches)
    fields = [message_field(NODE, node), message_field(_GRAPH_NAME, b"halves"), *taken.values()]
    fields += [_declared(INPUT, FRONT, _BOOL, ()), *(_declared(OUTPUT, name, _FLOAT, None) for name in made)]
    return with_graph(halves.back, lambda _: b"".join(fields))


def _branch(name: str, graph: memoryview, made: Sequence[str]) -> bytes:
    """The nodes and weights of a half as a graph without inputs that makes all of these."""
    own = set(_names(OUTPUT, graph))
    fields = [bytes(w) for n, _, w in fields_of(graph) if n in (NODE, _INITIALIZER)]
    fields.append(message_field(_GRAPH_NAME, name.encode()))
    for output in made:
        place = f"{name}/{output}"  # names of a branch must not be those around it
        fields.append(message_field(NODE, identity(output, place) if output in own else nothing(place)))
        fields.append(_declared(OUTPUT, place, _FLOAT, None))
    return b"".join(fields)


def _fields(number: int, graph: memoryview) -> list[tuple[str, memoryview]]:
    """Name and bytes of the fields that describe the graph's inputs or outputs."""
    return [
        (next(texts(value, NAME), ""), whole)
        for n, value, whole in fields_of(graph)
        if n == number and isinstance(value, memoryview)
    ]


def _names(number: int, graph: memoryview) -> list[str]:
    return [name for name, _ in _fields(number, graph)]


def _attribute(name: str, graph: bytes) -> bytes:
    return (
        message_field(NAME, name.encode())
        + message_field(_ATTRIBUTE_GRAPH, graph)
        + integer_field(_ATTRIBUTE_KIND, _KIND_GRAPH)
    )


def in_halves(model: bytes, outputs: Collection[str]) -> Halves | None:
    """The serialised ModelProto in two halves; None where it does not align layers, once and as its operator does.

    outputs: all that it has. Raises ValueError if `model` is not well-formed protobuf.
    """
    node = _alignment(graph_of(model))
    if node is None:
        return None
    (features, offset), (aligned,) = texts(node, READS), texts(node, MAKES)
    if FEATURES.name == features or ALIGNED.name == aligned:
        return None
    front = with_graph(model, lambda graph: _front(graph, features, offset))
    back = with_graph(model, lambda graph: _back(graph, aligned))
    return Halves(
        with_outputs(front, {FEATURES.name, OFFSET.name}), with_outputs(back, set(outputs) - {OFFSET.name})
    )


def _alignment(graph: memoryview) -> memoryview | None:
    nodes = [
        value for number, value, _ in fields_of(graph) if number == NODE and isinstance(value, memoryview)
    ]
    if any(has_subgraph(node) for node in nodes):  # which may read anything
        return None
    found = [n for n in nodes if next(texts(n, OPERATOR), "") == "align" and "deeplight" in texts(n, DOMAIN)]
    return found[0] if len(found) == 1 else None


def _front(graph: memoryview, features: str, offset: str) -> bytes:
    """The graph with FEATURES as an output, and OFFSET, unless it has one or is given it."""
    made = [
        bytes(graph),
        message_field(NODE, identity(features, FEATURES.name)),
        _described(OUTPUT, FEATURES),
    ]
    if offset != OFFSET.name:
        made += [message_field(NODE, identity(offset, OFFSET.name)), _described(OUTPUT, OFFSET)]
    elif not any(_named(OFFSET.name, number, value) for number, value, _ in fields_of(graph)):
        made.append(_described(OUTPUT, OFFSET))
    return b"".join(made)


def _named(name: str, number: int, value: int | memoryview) -> bool:
    """Whether a field of a graph describes an input or output of this name."""
    return (
        number in (INPUT, OUTPUT) and isinstance(value, memoryview) and next(texts(value, NAME), "") == name
    )


def _back(graph: memoryview, aligned: str) -> bytes:
    """The graph that takes this tensor as the input ALIGNED."""
    parts = []
    for number, value, whole in fields_of(graph):
        makes = number == NODE and isinstance(value, memoryview) and aligned in texts(value, MAKES)
        parts.append(message_field(NODE, identity(ALIGNED.name, aligned)) if makes else bytes(whole))
    return b"".join([*parts, _described(INPUT, ALIGNED)])


def _described(field: int, spec: InputSpec) -> bytes:
    """A field of a graph that describes a float32 tensor of any batch and sides."""
    return _declared(field, spec.name, _FLOAT, (0, spec.channels, 0, 0))


def _declared(field: int, name: str, kind: int, lengths: Sequence[int] | None) -> bytes:
    """The same of any tensor. kind: of its elements. lengths: 0 for any; None: even its dimensions are not known."""
    tensor = integer_field(_ELEMENT, kind)
    if lengths is not None:
        sides = (integer_field(_LENGTH, length) if length else b"" for length in lengths)
        tensor += message_field(_SHAPE, b"".join(message_field(_DIMENSION, side) for side in sides))
    described = message_field(NAME, name.encode()) + message_field(_TYPE, message_field(_TENSOR, tensor))
    return message_field(field, described)
