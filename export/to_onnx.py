"""DeepLightSR → one ONNX file with dynamic batch, height and width."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx
import torch
from onnx import helper
from onnxscript import ir
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch.export import ExportedProgram

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import INPUTS, OUTPUTS
from deeplight.engine.runtime.manifest import CONFIGURATION_NOTE, HALO_NOTE, WEIGHTS_NOTE, Manifest
from deeplight.export.operators import DOMAIN, NAMESPACE, OPSET, attach, opset_of, translations

FORBIDDEN = (
    "Resize",
    "Upsample",
    "GridSample",
    "AffineGrid",
    "DeformConv",
    "InstanceNormalization",
    "GlobalAveragePool",
)
"""Operators that are slow in ONNX Runtime, refused by TensorRT, or make a pixel depend on its tile."""


def to_onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return the program as serialised ONNX, with `metadata` in it. Raises DeepLightError where the file is not as
    promised.

    Two steps on purpose: torch.export raises where a dimension specialises; the ONNX exporter alone would write a
    static model without a word.
    """
    with torch.no_grad(), quietly():
        exported = torch.onnx.export(
            program,
            input_names=[s.name for s in INPUTS],
            output_names=[s.name for s in OUTPUTS],
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert exported is not None
    with quietly():
        fold_weights(exported.model)
    spread_by_convolution(exported.model)
    proto = exported.model_proto
    _strip_traces(proto)
    attach(proto)
    helper.set_model_props(proto, dict(metadata))
    check_onnx(proto)
    return bytes(proto.SerializeToString())


def fold_weights(model: ir.Model) -> None:
    """Compute, in place, what follows from weights alone, such as a kernel made of learnt taps.

    TensorRT takes a convolution's weights from an initializer only. The exporter folds constants too, but stops at a
    ConstantOfShape.
    """
    fold_constants(model, should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None)
    remove_unused_nodes(model)


def spread_by_convolution(model: ir.Model) -> None:
    """Write, in place, every product of a sigmoid (B,1,H,W) with weights (1,C,1,1) as a pointwise convolution.

    Every number stays what it is. ONNX Runtime takes less time for it, since the result comes in the blocks of channels
    in which the convolution behind it wants it.
    """
    for node in model.graph:
        if node.op_type != "Mul":
            continue
        source, weights = node.inputs[0], node.inputs[1]
        before = None if source is None else source.producer()
        value = None if weights is None else weights.const_value
        if before is None or before.op_type != "Sigmoid" or value is None:
            continue
        if len(value.shape) == 4 and value.size == value.shape[1]:
            name = f"{node.outputs[0].name}_kernel"
            tensor = ir.tensor(value.numpy().reshape(-1, 1, 1, 1), name=name)
            kernel = ir.Value(name=name, const_value=tensor)
            kernel.shape, kernel.dtype = ir.Shape(tensor.numpy().shape), value.dtype
            model.graph.register_initializer(kernel)
            node.replace_input_with(1, kernel)
            node.op_type = "Conv"
    remove_unused_nodes(model)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence warnings of exporters and quantisers, such as those about packages that are not needed."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def metadata(manifest: Manifest, precision: str, weights_sha256: str) -> dict[str, str]:
    """Return what the file says about itself: receptive field, halo, scale, modalities with units, what it was made
    from."""
    tensors = [*manifest.inputs, *manifest.outputs]
    return {
        "deeplight.name": manifest.name,
        "deeplight.preset": manifest.preset,
        "deeplight.precision": precision,
        "deeplight.scale": str(manifest.scale),
        "deeplight.receptive_field_lr": str(manifest.receptive_field_lr),
        HALO_NOTE: str(manifest.halo_lr),
        "deeplight.modalities": json.dumps(
            {"ntl": ["radiance"], "dmo": manifest.dmo_slots, "dem": ["elevation"]}
        ),
        "deeplight.units": json.dumps({t.name: t.unit for t in tensors}, ensure_ascii=False),
        WEIGHTS_NOTE: weights_sha256,
        CONFIGURATION_NOTE: manifest.configuration_digest,
    }


METADATA = frozenset(
    f"deeplight.{key}"
    for key in (
        "name",
        "preset",
        "precision",
        "scale",
        "receptive_field_lr",
        "modalities",
        "units",
    )
) | {HALO_NOTE, WEIGHTS_NOTE, CONFIGURATION_NOTE}


def check_onnx(proto: onnx.ModelProto) -> None:
    """Assert what every runtime relies on. Raises DeepLightError naming what is wrong.

    Every axis that must vary does, operators are of the opset that the types need and none is forbidden, every node of
    the graph has a name of its own, each operator deeplight::… has its body and its plugin namespace, the metadata is
    complete, weights are inside.
    """
    _check_axes(proto)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if versions.get("") != opset_of(proto):
        raise DeepLightError(f"the ONNX export has opset {versions.get('')}, not {opset_of(proto)}")
    names = {node.name for node in proto.graph.node}
    if len(names) < len(proto.graph.node) or "" in names:
        raise DeepLightError("the ONNX export repeats the name of a node, or has a node without one")
    bodies = {f.name for f in proto.functions if f.domain == DOMAIN}
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    for node in nodes:
        if node.op_type in FORBIDDEN:
            raise DeepLightError(
                f"the ONNX export holds the operator {node.op_type}, which must not be there"
            )
        if node.domain == DOMAIN:
            space = [a.s for a in node.attribute if a.name == NAMESPACE]
            if node.op_type not in bodies or space != [DOMAIN.encode()]:
                raise DeepLightError(f"the ONNX node {node.op_type} lacks its body or its {NAMESPACE}")
        elif node.domain:
            raise DeepLightError(f"the ONNX export holds an operator of the domain {node.domain}")
    missing = METADATA - {p.key for p in proto.metadata_props if p.value}
    if missing:
        raise DeepLightError(f"the ONNX export lacks the metadata {', '.join(sorted(missing))}")
    onnx.checker.check_model(proto, full_check=True)


def _check_axes(proto: onnx.ModelProto) -> None:
    """A static file would fail on the second tile shape."""
    for value, spec in zip([*proto.graph.input, *proto.graph.output], [*INPUTS, *OUTPUTS], strict=True):
        dims = value.type.tensor_type.shape.dim
        moving = [0] if spec.hr is None else [0, 2, 3]
        static = [axis for axis in moving if not dims[axis].dim_param]
        if static or value.name != spec.name:
            raise DeepLightError(
                f"the ONNX export fixed axes {static} of {spec.name!r}; the model must be dynamic"
            )


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's per-node metadata: source paths and stack traces do not belong into a shipped file."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.functions[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
