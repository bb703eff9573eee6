"""ONNX file → network of TensorRT or TensorRT for RTX, which have the same builder, parser and profiles.

`trt` is the module tensorrt or tensorrt_rtx everywhere here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx
import onnx.inliner
import onnxscript.optimizer

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.runtime.tensorrt_log import log_of
from deeplight.export.operators import DOMAIN, apart
from deeplight.export.tensorrt_rules import problems

LARGEST_TILE = 512
"""LR pixels along a side of the dynamic profile's largest tile."""

_LARGEST_WEIGHT = 1 << 22
"""Numbers in a weight that is put into another order before the parser sees it; the optimiser's own limit is 8192."""

_KEPT = "deeplight_plugins"
"""Domain of the operators that become plugins, while the bodies of the others are inlined."""

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, best and largest shape of an input."""


def prepared(model: bytes, *, plugins: bool) -> bytes:
    """Return the ONNX file as TensorRT shall parse it: bodies of operators inlined, so that every node has a name of
    its own, and weights folded. With plugins, the operators that have one stay, with packed weights.

    Raises DeepLightError listing everything that TensorRT would refuse.
    """
    proto = onnx.load_from_string(model)
    apart(proto)
    names: frozenset[str] = frozenset()
    chosen: Collection[str] = ()
    if plugins:
        from deeplight.export.plugins import NAMES, pack

        names, chosen = frozenset(NAMES), pack(proto)
    proto = onnxscript.optimizer.optimize(_inlined(proto, chosen), input_size_limit=_LARGEST_WEIGHT)
    if found := problems(proto, names):
        raise DeepLightError("TensorRT would refuse this model: " + "; ".join(found))
    return bytes(proto.SerializeToString())


def _inlined(proto: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Without functions. kept: names of the nodes that stay as they are, without a body."""
    for node in proto.graph.node:
        if node.name in kept:
            node.domain = _KEPT
    if kept:
        proto.opset_import.append(onnx.helper.make_opsetid(_KEPT, 1))
    proto = onnx.inliner.inline_local_functions(proto)
    for node in proto.graph.node:
        if node.domain == _KEPT:
            node.domain = DOMAIN
    opsets = [entry for entry in proto.opset_import if entry.domain != _KEPT]
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    return proto


class ParsedNetwork:
    """A parsed network and its builder. Raises DeepLightError with every error of the parser."""

    def __init__(self, trt: Any, model: bytes, flags: Sequence[str] = ()) -> None:
        """flags: of NetworkDefinitionCreationFlag, besides strong typing (the only kind from TensorRT 11 on)."""
        self.trt, self.log = trt, log_of(trt)
        self.log.clear()
        self.builder = trt.Builder(self.log)
        every = trt.NetworkDefinitionCreationFlag
        names = [name for name in ("STRONGLY_TYPED", *flags) if hasattr(every, name)]
        self.network = self.builder.create_network(sum(1 << int(getattr(every, name)) for name in names))
        self.parser = trt.OnnxParser(self.network, self.log)
        if not self.parser.parse(model):
            errors = (self.parser.get_error(i) for i in range(self.parser.num_errors))
            found = "; ".join(
                f"{e.node_name() or 'model'} ({e.node_operator()}): {' '.join(e.desc().split())}"
                for e in errors
            )
            raise DeepLightError(f"{library(trt)} cannot parse the model: {found}")

    def configured(self, profiles: Sequence[Mapping[str, Range]]) -> Any:
        """Return a configuration with these optimisation profiles; float32 is computed in full, not in TF32."""
        config = self.builder.create_builder_config()
        for profile in profiles:
            added = self.builder.create_optimization_profile()
            for name, (low, best, high) in profile.items():
                added.set_shape(name, low, best, high)
            config.add_optimization_profile(added)
        # on unless cleared: products of float32 with 11 significant bits, beyond the limits of our float32 parity
        config.clear_flag(self.trt.BuilderFlag.TF32)
        return config

    def built(self, config: Any) -> bytes:
        """Return the serialised plan. Raises DeepLightError with what the builder logged."""
        plan = self.builder.build_serialized_network(self.network, config)
        if plan is None:
            raise DeepLightError(f"{library(self.trt)} cannot build the plan: " + "; ".join(self.log.errors))
        return bytes(plan)


def library(trt: Any) -> str:
    """Return the library's name and version, for messages."""
    name = "TensorRT for RTX" if trt.__name__ == "tensorrt_rtx" else "TensorRT"
    return f"{name} {trt.__version__}"


def exact_profile(tile: tuple[int, int, int]) -> dict[str, Range]:
    """Return the range of each input for tiles of one size only: batch and LR sides."""
    shapes = {s.name: input_shape(s, *tile) for s in INPUTS}
    return {name: (shape, shape, shape) for name, shape in shapes.items()}


def dynamic_profile(tile: tuple[int, int, int]) -> dict[str, Range]:
    """Return the range of each input for tiles of any size up to LARGEST_TILE. tile: batch and LR sides to be tuned
    for."""
    batch, h, w = tile
    large = (max(batch, 8), max(h, LARGEST_TILE), max(w, LARGEST_TILE))
    return {s.name: (input_shape(s, 1, 4, 4), input_shape(s, *tile), input_shape(s, *large)) for s in INPUTS}
