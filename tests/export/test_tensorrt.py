"""What is handed to TensorRT: restrictions, inlined bodies, packed weights, plugins in a dry run."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx import helper, numpy_helper

from deeplight.engine.core.errors import DeepLightError
from deeplight.export.operators import function
from deeplight.export.plugins import fits, pack, strip_scratch
from deeplight.export.tensorrt_network import prepared
from deeplight.export.tensorrt_rules import problems
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.upsample import entry as upsample_entry
from tests.conftest import ROOT
from tests.export.restrictions import REFUSED, RELU, TAKEN, model_of


@pytest.mark.parametrize("case", REFUSED)
def test_what_tensorrt_refuses_is_listed(case: str) -> None:
    model, named = REFUSED[case]
    found = problems(onnx.load_from_string(model))
    assert len(found) == 1 and re.search(named, found[0])


def test_a_model_that_tensorrt_would_refuse_is_not_handed_to_it() -> None:
    with pytest.raises(DeepLightError, match=r"TensorRT would refuse this model: Add \(sum\) mixes"):
        prepared(REFUSED["Add of two types"][0], plugins=False)


@pytest.mark.parametrize("case", TAKEN)
def test_what_tensorrt_takes_is_not_listed(case: str) -> None:
    assert problems(onnx.load_from_string(TAKEN[case])) == []


def test_an_operator_with_a_plugin_is_not_listed() -> None:
    fuse = model_of(helper.make_node("fuse", ["x"], ["y"], domain="deeplight"), inputs={"x": 1})
    assert problems(onnx.load_from_string(fuse), frozenset({"fuse"})) == []


@pytest.mark.parametrize("name", ["align", "fuse", "upsample", "refine", "refine_last", "finest"])
def test_the_bodies_of_our_operators_are_accepted(name: str) -> None:
    proto = onnx.load_from_string(RELU)
    proto.functions.append(function(name))
    assert problems(proto) == []


def test_without_plugins_the_bodies_are_inlined_and_their_weights_folded() -> None:
    rng = np.random.default_rng(0)
    shapes = {"qa": (2, 8), "qm": (2, 8), "qb": (2,), "fw": (16, 8), "fb": (16,)}
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    given = ["main", "a0", "a1", "m0", "m1"]
    node = helper.make_node(
        "fuse", [*given, *shapes], ["y"], domain="deeplight", plugin_namespace="deeplight"
    )
    proto = onnx.load_from_string(model_of(node, inputs=dict.fromkeys(given, 1), weights=weights))
    proto.functions.append(function("fuse"))
    unfolded = onnx.inliner.inline_local_functions(proto)
    assert [p for p in problems(unfolded) if "has weights that the graph computes" in p]
    ready = onnx.load_from_string(prepared(proto.SerializeToString(), plugins=False))
    assert not ready.functions and {n.domain for n in ready.graph.node} == {""}


def test_importing_the_modules_does_not_import_tensorrt() -> None:
    code = "import sys, deeplight.export.to_tensorrt, deeplight.engine.runtime.plans; print('tensorrt' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


UPSAMPLE = {
    "w": np.arange(64 * 16 * 9, dtype=np.float32).reshape(64, 16, 3, 3),
    "b": np.arange(64, dtype=np.float32),
}


def test_weights_are_packed_as_the_kernels_read_them() -> None:
    node = helper.make_node(
        "upsample", ["x", "w", "b"], ["y"], domain="deeplight", plugin_namespace="deeplight"
    )
    proto = onnx.load_from_string(model_of(node, inputs={"x": 1}, weights=UPSAMPLE))
    assert pack(proto) == ["y"]
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert list(proto.graph.node[0].input) == ["x", "w_packed", "b_packed"]
    assert np.array_equal(
        tensors["w_packed"], upsample_entry.gemm_weight(torch.from_numpy(UPSAMPLE["w"])).numpy()
    )
    assert np.array_equal(tensors["b_packed"], UPSAMPLE["b"].reshape(-1, 4).T.reshape(-1))
    weight = np.arange(8 * 8 * 9, dtype=np.float16).reshape(8, 8, 3, 3)
    vectors = {n: np.zeros(s, np.float16) for n, s in (("i", (1, 8, 1, 1)), ("j", (1,)), ("e", (8,)))}
    node = helper.make_node(
        "refine",
        ["x", "l", "i", "j", "e", "w", "e", "i", "j"],
        ["y", "p"],
        domain="deeplight",
        plugin_namespace="d",
    )
    proto = onnx.load_from_string(model_of(node, inputs={"x": 10, "l": 1}, weights={"w": weight, **vectors}))
    assert pack(proto) == ["y"] and proto.graph.node[0].input[5] == "w_packed"
    packed = numpy_helper.to_array(proto.graph.initializer[-1])
    assert np.array_equal(packed, refine_entry.gemm_weight(torch.from_numpy(weight)).numpy())


def test_operators_of_an_older_version_stay_with_their_bodies() -> None:
    """Their inputs may be others: version 1 of `refine` had a level of half the size."""
    node = helper.make_node(
        "upsample", ["x", "w", "b"], ["y"], domain="deeplight", plugin_namespace="deeplight"
    )
    proto = onnx.load_from_string(model_of(node, inputs={"x": 1}, weights=UPSAMPLE))
    for entry in proto.opset_import:
        entry.version -= entry.domain == "deeplight"
    assert pack(proto) == [] and list(proto.graph.node[0].input) == ["x", "w", "b"]
    assert list(proto.graph.node[0].attribute) == []


def test_operators_that_no_kernel_fits_stay_with_their_bodies() -> None:
    wide = {"w": np.zeros((512, 128, 3, 3), np.float32), "b": np.zeros(512, np.float32)}
    node = helper.make_node(
        "upsample", ["x", "w", "b"], ["y"], domain="deeplight", plugin_namespace="deeplight"
    )
    proto = onnx.load_from_string(model_of(node, inputs={"x": 1}, weights=wide))
    assert pack(proto) == [] and list(proto.graph.node[0].input) == ["x", "w", "b"]
    assert [a.name for a in proto.graph.node[0].attribute] == []
    fuse = helper.make_node("fuse", [*"abcde", "qa", "qm"], ["y"], domain="deeplight")
    assert fits(fuse, {"qa": (2, 4), "qm": (2, 8)}, half=False)
    assert not fits(fuse, {"qa": (2, 4), "qm": (2, 8)}, half=True), "HWC8 pads 4 channels to 8"


PTX = """
.visible .entry k(
	.param .u64 .ptr .global .align 16 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3
)
{ ld.param.u64 %rd1, [k_param_0]; BODY ret; }
"""


def test_hidden_scratch_parameters_are_stripped_unless_they_are_used() -> None:
    stripped = strip_scratch(PTX, 2)
    assert re.findall(r"k_param_\d", stripped) == ["k_param_0", "k_param_1", "k_param_0"]
    with pytest.raises(DeepLightError, match="uses its scratch parameter k_param_3"):
        strip_scratch(PTX.replace("BODY", "ld.param.u64 %rd2, [k_param_3];"), 2)
    with pytest.raises(DeepLightError, match="has 4 parameters, not 5"):
        strip_scratch(PTX, 5)
    with pytest.raises(DeepLightError, match="no entry"):
        strip_scratch("", 1)


@pytest.mark.slow
def test_plugin_functions_in_a_dry_run() -> None:
    """Registered under checked signatures, tuned, and compiled to PTX whose parameters are what TensorRT passes."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.plugin_report"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    report = {r["plugin"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(report) == {"fuse", "upsample", "refine"}
    # inputs, int32 scalars, outputs
    assert report["fuse"]["parameters"] == ["u64"] * 10 + ["u32"] * 3 + ["u64"]
    assert report["upsample"]["parameters"] == ["u64"] * 3 + ["u32"] * 2 + ["u64"]
    assert report["refine"]["parameters"] == ["u64"] * 9 + ["u32"] * 2 + ["u64"] * 2
    assert report["fuse"]["scalars"] == ["((main0*main2)*main3)", "1", "1"]
    assert report["upsample"]["output"] == ["x0", "(bias0//4)", "(x2*2)", "(x3*2)"]
    assert report["refine"]["output"] == ["x0", "1", "x2", "x3"]
    places = report["refine"]["places"]
    assert places["0"] == ["FP16", "HWC8"] and places["1"] == ["FP32", "LINEAR"]
    assert places["9"] == places["10"] == ["FP32", "LINEAR"] and places["2"] == ["FP16", "LINEAR"]
    for row in report.values():
        assert row["target"] == "sm_90a" and row["threads"] % 32 == 0 and row["grid"] > 0


def test_the_real_tensorrt_has_the_names_that_we_use() -> None:
    trt = pytest.importorskip("tensorrt")
    assert importlib.import_module("tensorrt.plugin").aot_impl
    assert trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED is not None
    assert trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME is not None
