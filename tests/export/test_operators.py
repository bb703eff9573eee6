"""The ONNX bodies of the operators against their definitions, in the forms that the small test network lacks."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from deeplight.export.operators import OPSET, VERSION, apart, attach, function, translations
from deeplight.kernels import refine, upsample
from deeplight.kernels.align.reference import align as align_reference
from deeplight.kernels.dispatch import emit_operators
from deeplight.kernels.fuse.reference import fuse as fuse_reference
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.refine.reference import refine as refine_reference
from deeplight.kernels.upsample.reference import upsample as upsample_reference


def model_of_node(
    name: str, inputs: dict[str, np.ndarray], outputs: list[str], **attributes: float
) -> onnx.ModelProto:
    """A model of one node of the operator, with its body."""
    node = helper.make_node(
        name,
        list(inputs),
        outputs,
        name="n",
        domain="deeplight",
        plugin_namespace="deeplight",
        **attributes,
    )

    def described(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(inputs[n].dtype) if n in inputs else kind, None
            )
            for n in names
        ]

    kind = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    graph = helper.make_graph([node], "g", described(list(inputs)), described(outputs))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("deeplight", VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function(name)])


def run_body(
    name: str, inputs: dict[str, np.ndarray], outputs: list[str], **attributes: float
) -> list[np.ndarray]:
    """One node of the operator, its inputs fed, through ONNX Runtime."""
    proto = model_of_node(name, inputs, outputs, **attributes)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(outputs, inputs))


def test_align_clamps_at_the_borders_and_serves_every_batch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 5, 24, 40, generator=g)
    offset = 4.0 * torch.rand(3, 2, 3, 5, generator=g) - 2.0  # ±2 LR px = ±16 pixels: many taps outside
    (got,) = run_body("align", {"x": x.numpy(), "offset": offset.numpy()}, ["out"])
    want = align_reference(x, offset=offset)
    # the last bits of interpolated offsets of up to 16 pixels, times differences of values in [0, 1]
    assert np.abs(got - want.numpy()).max() <= 1e-5


def test_fuse_with_missing_modalities() -> None:
    g = torch.Generator().manual_seed(3)
    c, a = 6, 4
    shapes = {"main": (2, c, 5, 7), "aux0": (2, a, 5, 7), "aux1": (2, a, 5, 7)}
    weights = {
        "query_aux": (2, a),
        "query_main": (2, c),
        "query_bias": (2,),
        "film_weight": (2 * c, a),
        "film_bias": (2 * c,),
    }
    t = {name: torch.randn(*shape, generator=g) for name, shape in (shapes | weights).items()}
    masks = [
        torch.rand(2, 1, 5, 7, generator=g) * (torch.rand(2, 1, 5, 7, generator=g) > 0.5) for _ in range(2)
    ]
    feeds = {n: t[n].numpy() for n in shapes} | {f"mask{i}": m.numpy() for i, m in enumerate(masks)}
    (got,) = run_body("fuse", feeds | {n: t[n].numpy() for n in weights}, ["out"])
    want = fuse_reference(t["main"], [t["aux0"], t["aux1"]], masks, *(t[n] for n in weights))
    # float32 sums of a few terms of order 1
    assert np.abs(got - want.numpy()).max() <= 1e-5 * float(want.abs().max())


def test_fuse_in_half_precision_keeps_its_exponentials_in_float32() -> None:
    ops = [(n.op_type, n.output[0]) for n in function("fuse").node]
    cast = [i for i, (op, _) in enumerate(ops) if op == "Cast"]
    exponentials = [i for i, (op, _) in enumerate(ops) if op in ("Exp", "Tanh", "Reciprocal")]
    back = [i for i, (op, out) in enumerate(ops) if op == "CastLike" and out.startswith("share")]
    assert min(exponentials) > min(cast) and max(exponentials) < min(back)


RANGE = Radiance(2.0, 1.5, 3.0)


def refinement(c: int) -> dict[str, Tensor]:
    """What refine takes behind x, by name."""
    g = torch.Generator().manual_seed(4)
    shapes = {
        "level": (2, 1, 14, 18),
        "isp_weight": (1, c, 1, 1),
        "isp_bias": (1,),
        "embed": (c,),
        "weight": (c, c, 3, 3),
        "bias": (c,),
        "residual_weight": (1, c, 1, 1),
        "residual_bias": (1,),
    }
    return {name: 0.3 * torch.randn(*shape, generator=g) for name, shape in shapes.items()}


def check_refined(name: str, before: dict[str, Tensor], x: Tensor, c: int) -> None:
    """The operator of this name, given `before` and then what refine takes, against refine of x."""
    t = refinement(c)
    settings = {"unit": RANGE.unit, "gain": RANGE.gain, "top": RANGE.top}
    feeds = {n: v.numpy() for n, v in (before | t).items()}
    got = run_body(name, feeds, ["radiance", "isp"], **settings)
    level, *heads = list(t.values())[:4]
    want = refine_reference(
        x, level, *heads, [t["weight"]], [t["bias"]], t["residual_weight"], t["residual_bias"], RANGE
    )
    assert float(want[0].max()) > 2.9, "some of it reaches the ceiling"
    for a, b in zip(got, want, strict=True):
        # float32 sums of some tens of terms of order 1, then expm1
        assert np.abs(a - b.numpy()).max() <= 1e-5 * float(b.max())


def test_refine_adds_a_level_of_its_own_size() -> None:
    x = 0.3 * torch.randn(2, 5, 14, 18, generator=torch.Generator().manual_seed(5))
    check_refined("refine", {"x": x}, x, 5)


def upsampling(c: int) -> dict[str, Tensor]:
    """x (2,6,7,9) and what upsample takes beside it."""
    g = torch.Generator().manual_seed(6)
    shapes = {"x": (2, 6, 7, 9), "up_weight": (4 * c, 6, 3, 3), "up_bias": (4 * c,)}
    return {name: 0.3 * torch.randn(*shape, generator=g) for name, shape in shapes.items()}


@pytest.mark.parametrize("c", [5, 8])
def test_finest_is_the_refinement_of_the_upsampled(c: int) -> None:
    """5 channels fill no block of a runtime's convolution, 8 do."""
    given = upsampling(c)
    check_refined("finest", given, upsample_reference(*given.values()), c)


def test_upsample_puts_every_pixel_in_its_place() -> None:
    given = upsampling(5)
    feeds = dict(zip(("x", "weight", "bias"), (t.numpy() for t in given.values()), strict=True))
    (got,) = run_body("upsample", feeds, ["out"])
    want = upsample_reference(*given.values())
    # float32 sums of 54 terms of order 0.1
    assert np.abs(got - want.numpy()).max() <= 1e-5 * float(want.max())


def test_finest_comes_apart_for_the_kernels_of_a_gpu() -> None:
    given = upsampling(8)
    tensors = {n: v.numpy() for n, v in (given | refinement(8)).items()}
    whole = model_of_node("finest", tensors, ["radiance", "isp"], unit=2.0, gain=1.5, top=3.0)
    parts = onnx.ModelProto.FromString(whole.SerializeToString())
    apart(parts)
    assert [n.op_type for n in parts.graph.node] == ["upsample", "refine"]
    assert {f.name for f in parts.functions} == {"upsample", "refine"}
    results = [
        ort.InferenceSession(p.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, tensors)
        for p in (whole, parts)
    ]
    for a, b in zip(*results, strict=True):
        # the same sums in another order
        assert np.abs(a - b).max() <= 1e-5 * float(b.max())


class Tail(nn.Module):
    """An upsampling with a skip and a refinement of two blocks, as in the preset `base`."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.2 * torch.randn(*shape, generator=g))

        self.up, self.up_bias = weight(16, 6, 3, 3), weight(16)
        self.isp, self.isp_bias, self.embed = weight(1, 4, 1, 1), weight(1), weight(4)
        self.blocks = nn.ParameterList([weight(4, 4, 3, 3), weight(4, 4, 3, 3)])
        self.biases = nn.ParameterList([weight(4), weight(4)])
        self.last, self.last_bias = weight(1, 4, 1, 1), weight(1)

    def forward(self, x: Tensor, skip: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        y = upsample(x, self.up, self.up_bias, skip)
        heads = (self.isp, self.isp_bias, self.embed)
        last = (self.last, self.last_bias)
        return refine(
            y, level, *heads, list(self.blocks), list(self.biases), *last, range=Radiance(2.0, 1.5, 900.0)
        )


def test_deeper_refinements_and_skips_are_exported() -> None:
    tail = Tail().eval()
    g = torch.Generator().manual_seed(2)
    given = tuple(torch.rand(*s, generator=g) for s in ((2, 6, 8, 12), (2, 4, 16, 24), (2, 1, 16, 24)))
    with torch.no_grad(), emit_operators():
        program = torch.export.export(tail, given, strict=False)
    names = {str(n.target) for n in program.graph.nodes}
    assert {"deeplight.upsample.default", "deeplight.refine.default"} <= names
    with torch.no_grad():
        exported = torch.onnx.export(
            program, opset_version=OPSET, dynamo=True, verbose=False, custom_translation_table=translations()
        )
    assert exported is not None
    proto = exported.model_proto
    del proto.functions[:]
    attach(proto)
    assert {n.op_type for n in proto.graph.node if n.domain == "deeplight"} == {"upsample", "refine_last"}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip((i.name for i in session.get_inputs()), (t.numpy() for t in given), strict=True))
    got = session.run(None, feeds)
    with torch.no_grad():
        y = upsample_reference(given[0], tail.up, tail.up_bias, given[1])
        want = refine_reference(
            y, given[2], tail.isp, tail.isp_bias, tail.embed, list(tail.blocks), list(tail.biases), tail.last,
            tail.last_bias, Radiance(2.0, 1.5, 900.0),
        )  # fmt: skip
    for a, b in zip(got, want, strict=True):
        # float32 sums of some tens of terms of order 1, then expm1
        assert np.abs(a - b.numpy()).max() <= 1e-5 * max(1.0, float(b.abs().max()))
    assert numpy_helper.to_array(proto.graph.initializer[0]).size


def test_outside_an_export_context_the_reference_is_decomposed() -> None:
    tail = Tail().eval()
    given = (torch.rand(2, 6, 8, 12), torch.rand(2, 4, 16, 24), torch.rand(2, 1, 16, 24))
    with torch.no_grad():
        program = torch.export.export(tail, given, strict=False)
    assert not [n for n in program.graph.nodes if "deeplight" in str(n.target)]
