"""An ONNX model as a graph of OpenVINO, and its tensors by the names of the contract."""

from __future__ import annotations

from typing import Any

from onnx import __version__ as onnx_version
from onnx import load_from_string
from onnx.inliner import inline_local_functions

from deeplight.engine.core.spec import ALIGNED, INPUTS, OFFSET, SUGGESTED, input_shape
from deeplight.engine.runtime.backends.openvino_library import ov

READERS = (str(ov.__version__), onnx_version)
"""Versions of the libraries that make the graph."""
_GIVEN = {spec.name: spec for spec in (*INPUTS, OFFSET, SUGGESTED, ALIGNED)}
"""All that a model, or a part of one, may be given."""


def read(core: Any, model: bytes) -> Any:
    """The openvino.Model of a serialised ONNX ModelProto. core: openvino.Core.

    Functions of a model's own end the process within OpenVINO 2026.4, so they are inlined. Raises what the readers
    raise.
    """
    return core.read_model(inline_local_functions(load_from_string(model)).SerializeToString())


def shaped(graph: Any, batch: int, h: int, w: int) -> Any:
    """A copy for tiles of one shape in LR pixels: programs for any shape took 1.4 times the CPU time."""
    copy = graph.clone()
    copy.reshape({name: list(input_shape(_GIVEN[name], batch, h, w)) for name in input_names(copy)})
    return copy


def input_names(graph: Any) -> list[str]:
    """What a graph or a compiled program takes. A tensor can have several names, of which one is the contract's."""
    found = []
    for port in graph.inputs:
        names = port.get_names()
        found.append(next((name for name in names if name in _GIVEN), min(names, default="")))
    return found
