"""An ONNX model reduced to lights alone, for scenes in which no pixel has daytime bands or elevation.

Where all masks are 0, the gates of `deeplight::fuse` are exactly 0, so that it changes each channel of the features of
the lights by constants, film_bias (kernels/fuse/reference.py). The alignment, the encoders and what only they
need are not computed, and the result keeps every bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deeplight.engine.core.spec import INPUTS, LIGHTS_ALONE, OF_LIGHTS_ALONE, SCALE
from deeplight.engine.runtime.onnx_outputs import (
    ATTRIBUTE,
    MAKES,
    NAME,
    NODE,
    READS,
    texts,
    with_graph,
    with_outputs,
)
from deeplight.engine.runtime.protobuf import fields_of, float_field, integer_field, message_field

# Field numbers of GraphProto, NodeProto and AttributeProto: onnx.proto3.
_INPUT = 11
_NODE_NAME, OPERATOR, DOMAIN = 3, 4, 7
_INTEGER, _KIND = 3, 20
_FLOAT32 = 1
"""Of TensorProto.DataType."""

LAYERS = frozenset(spec.name for spec in INPUTS) - frozenset(LIGHTS_ALONE)
"""Inputs that belong to daytime bands and elevation."""


def lights_alone(model: bytes, outputs: Collection[str]) -> bytes | None:
    """Return the serialised ModelProto with these outputs and without the inputs of LAYERS; None if that is impossible.

    It is right where every `dmo_valid` and `dem_valid` is 0. Raises ValueError if `model` is not well-formed protobuf.
    """
    if not set(outputs) <= set(OF_LIGHTS_ALONE):
        return None
    try:
        return with_graph(with_outputs(with_graph(model, _freed), outputs), _without_layers)
    except _LayersNeeded:
        return None


class _LayersNeeded(Exception):
    """A node of the graph reads a layer."""


def _freed(graph: memoryview) -> bytes:
    """The graph with constants in place of every fusion, and with the sides of tiles taken from the lights."""
    return b"".join(
        _in_place_of(field, bytes(whole)) if kind == NODE and isinstance(field, memoryview) else bytes(whole)
        for kind, field, whole in fields_of(graph)
    )


def _in_place_of(node: memoryview, whole: bytes) -> bytes:
    """Fields of a graph that hold a node, or the nodes that replace it."""
    operator = next(texts(node, OPERATOR), "")
    if operator == "fuse" and next(texts(node, DOMAIN), "") == "deeplight":
        return _constants(node)
    side = _side(node) if operator == "Shape" else None
    if side is None:
        return whole
    (out,) = texts(node, MAKES)
    coarse, times = f"{out}/alone/lr", f"{out}/alone/scale"
    ends = message_field(ATTRIBUTE, _integer("start", side)) + message_field(
        ATTRIBUTE, _integer("end", side + 1)
    )
    nodes = (
        _node("Shape", ["ntl"], [coarse]) + ends,
        _node("Constant", [], [times], _integers("value_ints", [SCALE])),
        _node("Mul", [coarse, times], [out]),
    )
    return b"".join(message_field(NODE, text) for text in nodes)


def _side(node: memoryview) -> int | None:
    """The axis, 2 or 3, of a layer on the HR grid whose length alone this node computes; None for other nodes."""
    ends = {}
    for number, value, _ in fields_of(node):
        if number == ATTRIBUTE and isinstance(value, memoryview):
            held = {n: v for n, v, _ in fields_of(value) if isinstance(v, int)}
            ends[next(texts(value, NAME), "")] = held.get(_INTEGER, 0)
    start = ends.get("start", 0)
    asked = start in (2, 3) and ends.get("end") == start + 1
    return start if asked and next(texts(node, READS), "") in LAYERS else None


def _without_layers(graph: memoryview) -> bytes:
    """The graph without the inputs of LAYERS. Raises _LayersNeeded where a node reads one of them."""
    fields = list(fields_of(graph))
    read = {
        name
        for number, value, _ in fields
        if number == NODE and isinstance(value, memoryview)
        for name in texts(value, READS)
    }
    kept = [
        bytes(whole)
        for number, value, whole in fields
        if not (number == _INPUT and isinstance(value, memoryview) and next(texts(value, NAME), "") in LAYERS)
    ]
    if not read.isdisjoint(LAYERS):
        raise _LayersNeeded
    return b"".join(kept)


def _constants(node: memoryview) -> bytes:
    """Nodes that compute main · (1 + γ) + β in float32, with γ and β from film_bias, in place of a fusion."""
    reads, (out,) = list(texts(node, READS)), texts(node, MAKES)
    main, film_bias = reads[0], reads[-1]
    parts = ("wide", "bias", "gamma", "beta", "one", "gain", "plane", "factor", "shift", "modulated", "sum")
    wide, bias, gamma, beta, one, gain, plane, factor, shift, modulated, total = (
        f"{out}/alone/{part}" for part in parts
    )
    nodes = (
        _node("Cast", [main], [wide], _integer("to", _FLOAT32)),
        _node("Cast", [film_bias], [bias], _integer("to", _FLOAT32)),
        _node("Split", [bias], [gamma, beta], _integer("num_outputs", 2)),
        _node("Constant", [], [one], _float("value_float", 1.0)),
        _node("Add", [gamma, one], [gain]),
        _node("Constant", [], [plane], _integers("value_ints", [1, 2])),
        _node("Unsqueeze", [gain, plane], [factor]),
        _node("Unsqueeze", [beta, plane], [shift]),
        _node("Mul", [wide, factor], [modulated]),
        _node("Add", [modulated, shift], [total]),
        _node("CastLike", [total, main], [out]),
    )
    return b"".join(message_field(NODE, text) for text in nodes)


def _node(operator: str, reads: Sequence[str], makes: Sequence[str], attribute: bytes = b"") -> bytes:
    """A NodeProto with the name of its output."""
    fields = [*((READS, name) for name in reads), *((MAKES, name) for name in makes)]
    fields += [(_NODE_NAME, makes[0]), (OPERATOR, operator)]
    text = b"".join(message_field(number, name.encode()) for number, name in fields)
    return text + (message_field(ATTRIBUTE, attribute) if attribute else b"")


def identity(read: str, made: str) -> bytes:
    """A NodeProto that gives a tensor a second name."""
    return _node("Identity", [read], [made])


def nothing(made: str) -> bytes:
    """A NodeProto that makes the number 0."""
    return _node("Constant", [], [made], _float("value_float", 0.0))


def _integer(name: str, value: int) -> bytes:
    """An AttributeProto, as the two below."""
    return message_field(NAME, name.encode()) + integer_field(_INTEGER, value) + integer_field(_KIND, 2)


def _float(name: str, value: float) -> bytes:
    return message_field(NAME, name.encode()) + float_field(2, value) + integer_field(_KIND, 1)


def _integers(name: str, values: Sequence[int]) -> bytes:
    held = b"".join(integer_field(8, value) for value in values)
    return message_field(NAME, name.encode()) + held + integer_field(_KIND, 7)
