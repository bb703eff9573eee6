"""Engines of TensorRT for RTX, by its real parser and builder: they need no GPU. Nothing here runs an engine."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.engines import TARGETS
from deeplight.export import to_tensorrt_rtx
from deeplight.export.build import Exported
from deeplight.export.parity import parity_cases
from deeplight.export.tensorrt_network import ParsedNetwork, dynamic_profile, prepared
from deeplight.export.turing import without_products
from tests.engine.analytic import onnx_bytes
from tests.export.restrictions import REFUSED, TAKEN
from tests.export.rtx import write_with_engines

trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX is not installed: nothing of it is tested (x86-64 Linux only)"
)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_parser_takes_an_export_without_a_warning(request: pytest.FixtureRequest, precision: str) -> None:
    """So no node's name is repeated, of which it would warn."""
    exported = request.getfixturevalue("exported" if precision == "fp32" else "exported_all")
    graph = prepared(load_artifact(exported.path).read(precision), plugins=False)
    network = ParsedNetwork(trt, graph)
    assert network.log.warnings == [] and network.log.errors == []
    assert network.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert {network.network.get_input(i).name for i in range(len(INPUTS))} == {s.name for s in INPUTS}
    config = network.configured([dynamic_profile((1, 96, 96))])
    assert config.num_optimization_profiles == 1 and not config.get_flag(trt.BuilderFlag.TF32)


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_rules_refuse_the_parser_refuses(case: str) -> None:
    model, _ = REFUSED[case]
    with pytest.raises(DeepLightError, match=r"TensorRT for RTX 1\.\d.* cannot parse the model: \w"):
        ParsedNetwork(trt, model)


@pytest.mark.parametrize("model", TAKEN.values(), ids=TAKEN)
def test_what_our_rules_take_the_parser_takes(model: bytes) -> None:
    assert ParsedNetwork(trt, model).network.num_layers > 0


def test_an_engine_for_each_generation_of_gpus(tmp_path: Path) -> None:
    artifact = load_artifact(write_with_engines(tmp_path / "m"))
    engines = artifact.manifest.engines
    assert list(engines) == ["model.rtx.engine", "model.rtx-turing.engine"]
    for (name, info), capabilities in zip(engines.items(), TARGETS.values(), strict=True):
        assert info.capabilities == capabilities and info.precision == "fp32"
        assert info.library == trt.__version__
        assert artifact.read_file(name).startswith(b"vtrt")
    assert artifact.offered("engines") == {"fp32": "model.rtx.engine"}


def test_a_file_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    folder = write_with_engines(tmp_path / "m")
    engine = folder / "model.rtx.engine"
    data = bytearray(engine.read_bytes())
    data[100] ^= 1
    engine.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.rtx\.engine does not match its SHA-256"):
        load_artifact(folder)
    from deeplight.engine.runtime.file_checks import check_file

    with pytest.raises(ArtifactError, match=r"model\.rtx\.engine is not an engine of TensorRT for RTX"):
        check_file("model.rtx.engine", b"ONNX")


def test_turing_needs_its_own_graph() -> None:
    """The reason for `turing`: with a float32 product the builder refuses, and older ones built zeros."""
    model = prepared(onnx_bytes(), plugins=False)
    with pytest.raises(DeepLightError, match="FP32 GEMM is not supported"):
        network = ParsedNetwork(trt, model)
        config = network.configured([dynamic_profile((1, 96, 96))])
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM75, 0)
        network.built(config)


@pytest.mark.slow
def test_without_products_the_values_stay(exported: Exported) -> None:
    """Sums of at most 16 terms in another order: a few roundings, 2e-7 to 3e-7 measured in radiance."""
    model = prepared(load_artifact(exported.path).read("fp32"), plugins=False)
    changed = without_products(model)
    kinds = {node.op_type for node in onnx.load_from_string(changed).graph.node}
    assert not kinds & {"MatMul", "Gemm"}
    names = [node.name for node in onnx.load_from_string(changed).graph.node]
    assert len(set(names)) == len(names)
    inputs, _ = parity_cases()["odd, all layers"]
    want, got = (ort.InferenceSession(m).run(["ntl_hr"], inputs)[0] for m in (model, changed))
    assert np.linalg.norm(got - want) <= 2e-6 * np.linalg.norm(want)


def test_an_unknown_form_of_a_product_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["a", "w", "c"], ["y"], name="odd", alpha=2.0)],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2])],
        [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("w", (3, 2)), ("c", (2,)))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(DeepLightError, match=r"node odd is a Gemm of a form .*'alpha': 2\.0"):
        without_products(model.SerializeToString())


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        InputError, match=r"needs TensorRT for RTX, but no GPU .* pip install .*tensorrt-rtx>="
    ):
        to_tensorrt_rtx.require_builder()
    old = types.ModuleType("tensorrt_rtx")
    old.__version__ = "1.6.1.120"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", old)
    with pytest.raises(InputError, match=r"TensorRT for RTX 1\.6\.1\.120 is too old: .* pip install"):
        to_tensorrt_rtx.require_builder()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_of_a_whole_network(exported_all: Exported, precision: str) -> None:
    graph = prepared(load_artifact(exported_all.path).read(precision), plugins=False)
    for capabilities in TARGETS.values():
        assert to_tensorrt_rtx.build(trt, graph, capabilities).startswith(b"vtrt")
