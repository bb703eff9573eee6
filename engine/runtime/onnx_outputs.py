"""An ONNX model cut down to some of its outputs: ONNX Runtime computes every node of a graph, wanted or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from deeplight.engine.runtime.protobuf import fields_of, message_field

# Field numbers of ModelProto, GraphProto, ValueInfoProto, NodeProto and AttributeProto: onnx.proto3.
GRAPH = 7
NODE, OUTPUT = 1, 12
NAME = 1
READS, MAKES, ATTRIBUTE = 1, 2, 5
_SUBGRAPHS = (6, 11)


def with_outputs(model: bytes, names: Collection[str]) -> bytes:
    """The serialised ModelProto with only those outputs of its graph that are in `names`, and the nodes that lead to
    them; all else stays as it is.

    Raises ValueError where `model` is not well-formed protobuf.
    """
    return with_graph(model, lambda graph: _graph_with(graph, names))


def with_graph(model: bytes, change: Callable[[memoryview], bytes]) -> bytes:
    """The serialised ModelProto with what `change` makes of its graph; all else stays as it is.

    Raises ValueError where `model` is not well-formed protobuf.
    """
    parts = []
    for number, value, whole in fields_of(memoryview(model)):
        if number == GRAPH and isinstance(value, memoryview):
            parts.append(message_field(GRAPH, change(value)))
        else:
            parts.append(bytes(whole))
    return b"".join(parts)


def graph_of(model: bytes) -> memoryview:
    """The GraphProto of a serialised ModelProto, empty where it has none. Raises ValueError as `with_graph`."""
    graphs = [value for number, value, _ in fields_of(memoryview(model)) if number == GRAPH]
    return graphs[-1] if graphs and isinstance(graphs[-1], memoryview) else memoryview(b"")


def output_names(model: bytes) -> list[str]:
    """Names of the outputs of a serialised ModelProto's graph. Raises ValueError as `with_graph`."""
    fields = fields_of(graph_of(model))
    return [next(texts(v, NAME), "") for n, v, _ in fields if n == OUTPUT and isinstance(v, memoryview)]


def _graph_with(graph: memoryview, names: Collection[str]) -> bytes:
    fields = list(fields_of(graph))
    nodes = [value for number, value, _ in fields if number == NODE and isinstance(value, memoryview)]
    needed = iter(_needed(nodes, names))
    return b"".join(bytes(whole) for number, value, whole in fields if _stays(number, value, needed, names))


def _stays(number: int, value: int | memoryview, needed: Iterator[bool], names: Collection[str]) -> bool:
    if number == NODE:
        return next(needed)
    if number == OUTPUT and isinstance(value, memoryview):
        return next(texts(value, NAME), "") in names
    return True


def _needed(nodes: list[memoryview], names: Collection[str]) -> list[bool]:
    """Which of the nodes, each behind those that it reads from, lead to one of these names."""
    if any(has_subgraph(node) for node in nodes):  # which may read anything
        return [True] * len(nodes)
    wanted, found = set(names), []
    for node in reversed(nodes):
        leads = not wanted.isdisjoint(texts(node, MAKES))
        found.append(leads)
        if leads:
            wanted.update(texts(node, READS))
    return found[::-1]


def has_subgraph(node: memoryview) -> bool:
    """Whether a NodeProto holds graphs, which may read any tensor around them."""
    return any(
        number == ATTRIBUTE
        and isinstance(value, memoryview)
        and any(n in _SUBGRAPHS for n, _, _ in fields_of(value))
        for number, value, _ in fields_of(node)
    )


def texts(message: memoryview, field: int) -> Iterator[str]:
    """The values of a field of texts."""
    for number, value, _ in fields_of(message):
        if number == field and isinstance(value, memoryview):
            yield bytes(value).decode()
