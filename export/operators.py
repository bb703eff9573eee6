"""The operators deeplight::… in ONNX: how a node is written, and the function body that defines it.

A body is polymorphic: it serves float32 and float16 features and any width. Names, order and layout of the inputs
are those of the kernels, so that a plugin can hand its pointers on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx.parser
import torch
from onnx import FunctionProto, OperatorSetIdProto, helper, numpy_helper
from onnxscript import opset20 as op
from onnxscript.values import Op, Opset

from deeplight import kernels
from deeplight.kernels.fuse.reference import LOGIT_BOUND, MASK_EPSILON
from deeplight.kernels.refine.reference import Radiance

DOMAIN, VERSION, OPSET = "deeplight", 2, 20
"""VERSION: of the operators' inputs. Plugins take nodes of this version alone; older graphs run from their bodies."""

NAMESPACE = "plugin_namespace"
"""Attribute by which TensorRT finds the plugin's creator; every node carries it."""

SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "align": (("x", "offset"), ("out",), ()),
    "fuse": (
        (
            "main",
            "aux0",
            "aux1",
            "mask0",
            "mask1",
            "query_aux",
            "query_main",
            "query_bias",
            "film_weight",
            "film_bias",
        ),
        ("out",),
        (),
    ),
    "upsample": (("x", "weight", "bias"), ("out",), ()),
    "refine": (
        (
            "x",
            "level",
            "isp_weight",
            "isp_bias",
            "embed",
            "weight",
            "bias",
            "residual_weight",
            "residual_bias",
        ),
        ("radiance", "isp"),
        ("unit", "gain", "top"),
    ),
    "refine_last": (
        ("y", "level", "weight", "bias", "residual_weight", "residual_bias"),
        ("radiance",),
        ("unit", "gain", "top"),
    ),
}
"""Operator → inputs, outputs, float attributes."""

_HEADER = '<domain: "deeplight", opset_import: ["" : 20]>'

_RADIANCE = """
    ypad = Conv <pads = [1, 1, 1, 1]> (y, weight, bias)
    yact = Relu (ypad)
    z = Add (y, yact)
    base = Cast <to = 1> (level)
    residual = Conv (z, residual_weight, residual_bias)
    residual32 = Cast <to = 1> (residual)
    value = Add (base, residual32)
    k = Constant <value_float: float = @gain> ()
    scaled = Mul (value, k)
    low = Constant <value_float = 0.0> ()
    high = Constant <value_float: float = @top> ()
    bounded = Clip (scaled, low, high)
    grown = Exp (bounded)
    unity = Constant <value_float = 1.0> ()
    shrunk = Sub (grown, unity)
    u = Constant <value_float: float = @unit> ()
    radiance = Mul (shrunk, u)
"""

_BODIES = {
    "align": """
        eight = Constant <value_float = 8.0> ()
        scaled = Mul (offset, eight)
        border = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
        wide = Pad <mode = "edge"> (scaled, border)
        phases = Conv <group = 2> (wide, linear)
        dense = DepthToSpace <blocksize = 8, mode = "CRD"> (phases)
        floor = Floor (dense)
        fraction = Sub (dense, floor)
        whole = Cast <to = 7> (floor)
        across, down = Split <axis = 1, num_outputs = 2> (whole)
        fx4, fy4 = Split <axis = 1, num_outputs = 2> (fraction)
        channel = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [3]> ()
        dx = Squeeze (across, channel)
        dy = Squeeze (down, channel)
        fx3 = Squeeze (fx4, channel)
        fy3 = Squeeze (fy4, channel)
        fx32 = Unsqueeze (fx3, last)
        fy32 = Unsqueeze (fy3, last)
        fx = CastLike (fx32, x)
        fy = CastLike (fy32, x)
        nought = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        size = Shape (x)
        i1 = Constant <value_int = 1> ()
        i2 = Constant <value_int = 2> ()
        i3 = Constant <value_int = 3> ()
        b = Gather (size, nought)
        c = Gather (size, i1)
        h = Gather (size, i2)
        w = Gather (size, i3)
        columns = Range (nought, w, one)
        rows1 = Range (nought, h, one)
        second = Constant <value_ints = [1]> ()
        rows = Unsqueeze (rows1, second)
        col = Add (columns, dx)
        row = Add (rows, dy)
        right = Sub (w, one)
        bottom = Sub (h, one)
        colnext = Add (col, one)
        rownext = Add (row, one)
        col0 = Clip (col, nought, right)
        col1 = Clip (colnext, nought, right)
        rowa = Clip (row, nought, bottom)
        rowb = Clip (rownext, nought, bottom)
        images = Range (nought, b, one)
        area = Mul (h, w)
        starts = Mul (images, area)
        behind = Constant <value_ints = [1, 2]> ()
        first = Unsqueeze (starts, behind)
        linea = Mul (rowa, w)
        lineb = Mul (rowb, w)
        row0 = Add (first, linea)
        row1 = Add (first, lineb)
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        rest = Constant <value_ints = [-1]> ()
        cc = Unsqueeze (c, axis0)
        flat = Concat <axis = 0> (rest, cc)
        pixels = Reshape (nhwc, flat)
        p00 = Add (row0, col0)
        p01 = Add (row0, col1)
        p10 = Add (row1, col0)
        p11 = Add (row1, col1)
        t00 = Gather (pixels, p00)
        t01 = Gather (pixels, p01)
        t10 = Gather (pixels, p10)
        t11 = Gather (pixels, p11)
        d0 = Sub (t01, t00)
        d1 = Sub (t11, t10)
        m0 = Mul (d0, fx)
        m1 = Mul (d1, fx)
        upper = Add (t00, m0)
        lower = Add (t10, m1)
        d = Sub (lower, upper)
        m = Mul (d, fy)
        moved = Add (upper, m)
        out = Transpose <perm = [0, 3, 1, 2]> (moved)
    """,
    "fuse": f"""
        plane = Constant <value_ints = [2, 3]> ()
        query = Unsqueeze (query_main, plane)
        shared = Conv (main, query, query_bias)
        shared0, shared1 = Split <axis = 1, num_outputs = 2> (shared)
        queries = Unsqueeze (query_aux, plane)
        at0 = Constant <value_ints = [0]> ()
        at1 = Constant <value_ints = [1]> ()
        at2 = Constant <value_ints = [2]> ()
        query0 = Slice (queries, at0, at1, at0)
        query1 = Slice (queries, at1, at2, at0)
        own0 = Conv (aux0, query0)
        own1 = Conv (aux1, query1)
        low0 = Add (own0, shared0)
        low1 = Add (own1, shared1)
        logit0 = Cast <to = 1> (low0)
        logit1 = Cast <to = 1> (low1)
        narrow = Constant <value_float = {1 / LOGIT_BOUND}> ()
        wide = Constant <value_float = {LOGIT_BOUND}> ()
        s0 = Mul (logit0, narrow)
        s1 = Mul (logit1, narrow)
        h0 = Tanh (s0)
        h1 = Tanh (s1)
        b0 = Mul (h0, wide)
        b1 = Mul (h1, wide)
        e0 = Exp (b0)
        e1 = Exp (b1)
        k0 = Cast <to = 1> (mask0)
        k1 = Cast <to = 1> (mask1)
        gate0 = Mul (k0, e0)
        gate1 = Mul (k1, e1)
        both = Add (gate0, gate1)
        epsilon = Constant <value_float = {MASK_EPSILON}> ()
        total = Add (both, epsilon)
        scale = Reciprocal (total)
        w0 = Mul (gate0, scale)
        w1 = Mul (gate1, scale)
        share0 = CastLike (w0, main)
        share1 = CastLike (w1, main)
        part0 = Mul (share0, aux0)
        part1 = Mul (share1, aux1)
        mixed = Add (part0, part1)
        film = Unsqueeze (film_weight, plane)
        all = Shape (film_bias)
        half = Div (all, at2)
        gain_weight = Slice (film, at0, half, at0)
        beta_weight = Slice (film, half, all, at0)
        gamma_bias = Slice (film_bias, at0, half, at0)
        beta_bias = Slice (film_bias, half, all, at0)
        unity = Constant <value_float = 1.0> ()
        unity_like = CastLike (unity, film_bias)
        gain_bias = Add (gamma_bias, unity_like)
        factor = Conv (mixed, gain_weight, gain_bias)
        beta = Conv (mixed, beta_weight, beta_bias)
        modulated = Mul (main, factor)
        out = Add (modulated, beta)
    """,
    "upsample": """
        y = Conv <pads = [1, 1, 1, 1]> (x, weight, bias)
        r = Relu (y)
        out = DepthToSpace <blocksize = 2, mode = "CRD"> (r)
    """,
    "refine": """
        logits = Conv (x, isp_weight, isp_bias)
        p = Sigmoid (logits)
        isp = Cast <to = 1> (p)
        column = Constant <value_ints = [0, 2, 3]> ()
        direction = Unsqueeze (embed, column)
        push = Mul (p, direction)
        y = Add (x, push)
    """
    + _RADIANCE,
    "refine_last": _RADIANCE,
}

_TENSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "align": lambda: {
        "linear": kernels.interpolation_kernel(8, "linear").repeat(2, 1, 1, 1).numpy(),
        "axis0": torch.zeros(1, dtype=torch.int64).numpy(),
    },
}
"""Operator → constants of its body that are tensors."""


def function(name: str) -> FunctionProto:
    """Return the ONNX function that defines an operator, by the same formula as the operator's reference.py."""
    inputs, outputs, attributes = SIGNATURES[name]
    text = f"{_HEADER} {name} <{', '.join((*attributes, NAMESPACE))}> ({', '.join(inputs)}) => "
    body = onnx.parser.parse_function(f"{text} ({', '.join(outputs)}) {{ {_BODIES[name]} }}")
    for constant, value in reversed(_TENSORS.get(name, dict)().items()):
        tensor = numpy_helper.from_array(value, constant)
        body.node.insert(0, helper.make_node("Constant", [], [constant], value=tensor))
    for node in body.node:
        node.name = f"{name}_{node.output[0]}"
    return body


def attach(proto: onnx.ModelProto) -> None:
    """Give every operator that the graph uses its body. After export: the exporter inlines any that it sees."""
    used = {node.op_type for node in proto.graph.node if node.domain == DOMAIN}
    proto.functions.extend(function(name) for name in sorted(used))
    if used and DOMAIN not in {entry.domain for entry in proto.opset_import}:
        proto.opset_import.append(OperatorSetIdProto(domain=DOMAIN, version=VERSION))


def _operator(name: str) -> Op:
    inputs, outputs, attributes = SIGNATURES[name]
    schema = onnx.defs.OpSchema
    floats = [f"tensor({t})" for t in ("float", "float16", "bfloat16")]
    described = schema(
        name,
        DOMAIN,
        VERSION,
        inputs=[schema.FormalParameter(n, f"T{i}") for i, n in enumerate(inputs)],
        outputs=[schema.FormalParameter(n, f"U{i}") for i, n in enumerate(outputs)],
        type_constraints=[(f"T{i}", floats, "") for i in range(len(inputs))]
        + [(f"U{i}", floats, "") for i in range(len(outputs))],
        attributes=[schema.Attribute(n, schema.AttrType.FLOAT, "") for n in attributes]
        + [schema.Attribute(NAMESPACE, schema.AttrType.STRING, "", required=False)],
    )
    return Op(Opset(DOMAIN, VERSION), name, described)


def _align(raw: Any, gain: Any, bias: Any, mask: Any, offset: Any, whole: Any, *_: Any) -> Any:
    if any(t is not None for t in (gain, bias, mask, whole)) or offset is None:
        raise NotImplementedError("only features on the HR grid are aligned in a network")
    return _operator("align")(raw, offset, plugin_namespace=DOMAIN)


def _fuse(main: Any, aux: Sequence[Any], masks: Sequence[Any], *weights: Any) -> Any:
    if len(aux) != 2:
        raise NotImplementedError(f"the ONNX operator fuses two modalities, not {len(aux)}")
    return _operator("fuse")(main, *aux, *masks, *weights, plugin_namespace=DOMAIN)


def _upsample(x: Any, weight: Any, bias: Any, skip: Any) -> Any:
    out = _operator("upsample")(x, weight, bias, plugin_namespace=DOMAIN)
    return out if skip is None else op.Add(out, skip)


def _refine(
    x: Any,
    level: Any,
    isp_weight: Any,
    isp_bias: Any,
    embed: Any,
    weights: Sequence[Any],
    biases: Sequence[Any],
    residual_weight: Any,
    residual_bias: Any,
    unit: float,
    gain: float,
    ceiling: float,
) -> Any:
    values = {
        "unit": unit,
        "gain": gain,
        "top": Radiance(unit, gain, ceiling).top,
        "plugin_namespace": DOMAIN,
    }
    if len(weights) == 1:
        heads = (isp_weight, isp_bias, embed, weights[0], biases[0])
        return _operator("refine")(x, level, *heads, residual_weight, residual_bias, **values)
    isp = op.Sigmoid(op.Conv(x, isp_weight, isp_bias))
    around: Any = op.Constant(value_ints=[0, 2, 3])
    y = op.Add(x, op.Mul(isp, op.Unsqueeze(embed, around)))
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        y = op.Add(y, op.Relu(op.Conv(y, weight, bias, pads=[1, 1, 1, 1])))
    last = (weights[-1], biases[-1], residual_weight, residual_bias)
    return _operator("refine_last")(y, level, *last, **values), op.Cast(isp, to=1)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return, for torch.onnx.export, the function that writes the ONNX node of each operator of torch."""
    ops = torch.ops.deeplight
    return {
        ops.align.default: _align,
        ops.fuse.default: _fuse,
        ops.upsample.default: _upsample,
        ops.refine.default: _refine,
    }
