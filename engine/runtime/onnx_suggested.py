"""An ONNX model in two graphs, for dates that share their layers: the lights that the layers suggest, and all else.

Where they are found is not a matter of names: they are the one tensor of layers alone that spares the most convolutions
where it is known. What else follows from layers alone is computed in both graphs or in the second: it is much larger.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from deeplight.engine.core.spec import LIGHTS_ALONE, SUGGESTED
from deeplight.engine.runtime.onnx_alone import LAYERS, OPERATOR, identity
from deeplight.engine.runtime.onnx_offset import INPUT
from deeplight.engine.runtime.onnx_outputs import (
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
from deeplight.engine.runtime.protobuf import fields_of, message_field


class Parts(NamedTuple):
    """Two serialised ModelProtos. suggest: makes SUGGESTED of the layers. rest: takes it beside all other inputs."""

    suggest: bytes
    rest: bytes


def in_parts(model: bytes, outputs: Collection[str]) -> Parts | None:
    """The serialised ModelProto in two parts; None where no tensor can divide it. outputs: all that it has.

    Whether that tensor has the shape of SUGGESTED is for the caller to see. Raises ValueError if `model` is not
    well-formed protobuf.
    """
    tensor = _dividing(graph_of(model), outputs)
    if tensor is None:
        return None
    first = with_graph(model, lambda graph: _making(graph, tensor))
    second = with_graph(model, lambda graph: _given(graph, tensor))
    return Parts(with_outputs(first, {SUGGESTED.name}), with_outputs(second, outputs))


@dataclass(frozen=True)
class _Node:
    operator: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def _dividing(graph: memoryview, outputs: Collection[str]) -> str | None:
    """The tensor of layers alone without which the most convolutions are left out; of several, the last."""
    texts_of = [
        value for number, value, _ in fields_of(graph) if number == NODE and isinstance(value, memoryview)
    ]
    nodes = [
        _Node(next(texts(n, OPERATOR), ""), tuple(texts(n, READS)), tuple(texts(n, MAKES))) for n in texts_of
    ]
    if any(has_subgraph(n) for n in texts_of):  # which may read anything
        return None
    if any(SUGGESTED.name in (*node.reads, *node.makes) for node in nodes):
        return None
    best, least = None, _convolutions(nodes, outputs, None)
    for tensor in _of_layers(nodes):
        left = _convolutions(nodes, outputs, tensor)
        if tensor not in outputs and (left < least or (best is not None and left == least)):
            best, least = tensor, left
    return best


def _of_layers(nodes: list[_Node]) -> list[str]:
    """What is computed of layers alone, in the order of the nodes."""
    layers, lights = set(LAYERS), set(LIGHTS_ALONE)
    found: list[str] = []
    for node in nodes:
        if not lights.isdisjoint(node.reads):
            lights.update(node.makes)
        elif not layers.isdisjoint(node.reads):
            layers.update(node.makes)
            found += node.makes
    return found


def _convolutions(nodes: list[_Node], outputs: Collection[str], given: str | None) -> int:
    """How many are computed for these outputs. given: a tensor that is known."""
    wanted, count = set(outputs) - {given}, 0
    for node in reversed(nodes):
        if given not in node.makes and not wanted.isdisjoint(node.makes):
            wanted.update(node.reads)
            wanted.discard(str(given))
            count += node.operator == "Conv"
    return count


def _making(graph: memoryview, tensor: str) -> bytes:
    """The graph with SUGGESTED, which is this tensor, as an output."""
    output = message_field(OUTPUT, _described(graph))
    return bytes(graph) + message_field(NODE, identity(tensor, SUGGESTED.name)) + output


def _given(graph: memoryview, tensor: str) -> bytes:
    """The graph that takes this tensor as the input SUGGESTED."""
    parts = []
    for number, value, whole in fields_of(graph):
        makes = number == NODE and isinstance(value, memoryview) and tensor in texts(value, MAKES)
        parts.append(message_field(NODE, identity(SUGGESTED.name, tensor)) if makes else bytes(whole))
    return b"".join([*parts, message_field(INPUT, _described(graph))])


def _described(graph: memoryview) -> bytes:
    """The ValueInfoProto of SUGGESTED: as that of the lights, with another name."""
    value = next(
        value
        for number, value, _ in fields_of(graph)
        if number == INPUT and isinstance(value, memoryview) and next(texts(value, NAME), "") == "ntl"
    )
    others = b"".join(bytes(whole) for number, _, whole in fields_of(value) if number != NAME)
    return message_field(NAME, SUGGESTED.name.encode()) + others
