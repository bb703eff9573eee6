"""Backends behind one protocol: right numbers, checked inputs, one-sentence refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.runtime.artifact import Artifact, load_artifact
from deeplight.engine.runtime.backends import (
    backend_choices,
    cuda_index,
    device_choices,
    onnxruntime_backend,
    open_backend,
    parse_device,
)
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.backends.onnxruntime_backend import open_session
from deeplight.engine.runtime.onnx_alone import lights_alone
from deeplight.engine.runtime.onnx_outputs import with_outputs
from tests.engine.analytic import expected, onnx_bytes, write_analytic, write_model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return load_artifact(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def random_inputs(h: int, w: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(h * 1000 + w)
    inputs = {}
    for s in INPUTS:
        values = rng.normal(1, 2, input_shape(s, batch, h, w))
        binary = s.name.endswith(("_valid", "_bands"))
        inputs[s.name] = ((values > 0) if binary else values).astype(np.float32)
    return inputs


@pytest.mark.parametrize(("h", "w"), [(1, 1), (7, 13), (32, 5)])
def test_run_gives_the_known_result(artifact: Artifact, h: int, w: int) -> None:
    inputs = random_inputs(h, w)
    with open_backend("auto", artifact) as backend:
        out = backend.run(inputs)
    assert set(out) == {"ntl_hr"} and out["ntl_hr"].dtype == np.float32
    # 25-term float32 sums of values of order 10
    np.testing.assert_allclose(out["ntl_hr"][0, 0], expected(inputs), atol=2e-5)


def test_all_outputs_have_the_contract_shapes(artifact: Artifact) -> None:
    with open_backend("onnxruntime", artifact, threads=2) as backend:
        out = backend.run(random_inputs(5, 6, batch=2), [s.name for s in OUTPUTS])
        assert backend.versions()["onnxruntime"]
    assert {k: v.shape for k, v in out.items()} == {s.name: input_shape(s, 2, 5, 6) for s in OUTPUTS}


def test_outputs_that_nobody_asks_for_are_not_computed(tmp_path: Path) -> None:
    """A graph whose interval cannot be computed gives the other outputs all the same, once they alone are wanted."""
    import onnx
    from onnx import helper, numpy_helper

    broken = onnx.load_from_string(onnx_bytes())
    # Gather beyond the axis fails when it is computed, not when it is loaded
    broken.graph.initializer.append(numpy_helper.from_array(np.array([9], np.int64), "beyond"))
    last = next(i for i, node in enumerate(broken.graph.node) if "interval" in node.output)
    broken.graph.node[last].input[:] = ["none", "none"]
    broken.graph.node.insert(last, helper.make_node("Gather", ["ntl_hr", "beyond"], ["none"], axis=1))
    model = load_artifact(write_model(tmp_path / "m", broken.SerializeToString()))
    inputs = random_inputs(5, 6)
    with open_backend("onnxruntime", model) as backend:
        with pytest.raises(DeepLightError, match="ONNX Runtime failed"):
            backend.run(inputs, ["ntl_hr"])
        backend.split(1, 1, ["ntl_hr", "offset"])
        out = backend.run(inputs, ["ntl_hr", "offset"])
        np.testing.assert_allclose(out["ntl_hr"][0, 0], expected(inputs), atol=2e-5)


def test_lights_alone_run_their_own_graph_with_the_same_bits() -> None:
    """The shipped model: where no tile has daytime bands or elevation, the engine runs the smaller file."""
    model = load_artifact("deeplight-tiny")
    inputs = {name: np.abs(values) for name, values in random_inputs(13, 9).items()}
    for name in ("dmo", "dmo_valid", "dmo_bands", "dem", "dem_valid"):
        inputs[name][:] = 0
    outputs = ["ntl_hr", "isp", "interval"]
    with open_backend("onnxruntime", model) as backend:
        whole = backend.run(inputs, outputs)
        backend.split(1, 1, outputs, layers=False)
        alone = backend.run(inputs, outputs)
        for name in outputs:
            np.testing.assert_array_equal(alone[name], whole[name])
        assert set(used_by(backend)) == {"ntl", "ntl_valid", "psf", "limits"}
        assert lights_alone(onnx_bytes(), outputs) is None  # a graph that needs its layers
        backend.split(1, 1, [*outputs, "offset"], layers=False)  # which it does not have
        assert set(used_by(backend)) == {"aligned", "front_half", *(spec.name for spec in INPUTS)}


def used_by(backend: Backend) -> list[str]:
    """Names of what an open session takes."""
    assert isinstance(backend, onnxruntime_backend.OnnxRuntimeBackend)
    lane = backend._idle.get()
    backend._idle.put(lane)
    return [given.name for given in lane.session.get_inputs()]


def test_a_model_with_some_outputs_is_else_the_same() -> None:
    import onnx

    model = onnx.load_from_string(onnx_bytes("a text"))
    kept = onnx.load_from_string(with_outputs(onnx_bytes("a text"), {"ntl_hr", "isp"}))
    onnx.checker.check_model(kept)
    assert [o.name for o in kept.graph.output] == ["ntl_hr", "isp"]
    assert {n for node in model.graph.node for n in node.output} - {
        n for node in kept.graph.node for n in node.output
    } == {"offset", "interval", "low", "twice", "high", "told4", "told", "blur", "noise"}
    for graph in (model.graph, kept.graph):
        del graph.output[:], graph.node[:]
    assert kept == model
    with pytest.raises(ValueError, match="longer than its message"):
        with_outputs(onnx_bytes()[:-9], {"ntl_hr"})


def test_same_bits_for_any_thread_count(artifact: Artifact) -> None:
    inputs = random_inputs(33, 21)
    results = []
    for threads in (1, 2, 3):
        with open_backend("onnxruntime", artifact, threads=threads) as backend:
            results.append(backend.run(inputs)["ntl_hr"].tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("streams", [2, 3])
def test_streams_have_sessions_of_their_own_and_give_the_same_bits(
    artifact: Artifact, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = [random_inputs(33, 21 + n) for n in range(6)]
    opened: list[int] = []

    def counting(model: bytes, threads: int) -> Any:
        opened.append(threads)
        return open_session(model, threads)

    with open_backend("onnxruntime", artifact, threads=5) as backend:
        alone = [backend.run(tile)["ntl_hr"] for tile in tiles]
        monkeypatch.setattr(onnxruntime_backend, "open_session", counting)
        backend.split(streams, 5)
        assert backend.streams == len(opened) == streams and sum(opened) == 5
        with ThreadPoolExecutor(streams + 1) as pool:
            together = list(pool.map(lambda tile: backend.run(tile)["ntl_hr"], tiles))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_closed_backend_does_not_wait_for_a_session(artifact: Artifact) -> None:
    with open_backend("onnxruntime", artifact) as backend:
        pass
    with pytest.raises(ValueError, match="the backend is closed"):
        backend.run(random_inputs(3, 4))


def test_a_backend_without_streams_says_so(artifact: Artifact) -> None:
    class One(Backend):
        name = "one"

        @classmethod
        def open(cls, artifact: Artifact, precision: str, device: str, threads: int) -> One:
            return cls()

        def _run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
            raise NotImplementedError

        def versions(self) -> dict[str, str]:
            return {}

    backend = One()
    backend.split(1, 4)
    assert not One.splits and backend.streams == 1
    with pytest.raises(ValueError, match="backend one computes one tile at a time, not 2"):
        backend.split(2, 4)


@pytest.mark.parametrize("name", [s.name for s in INPUTS])
def test_wrong_tensor_is_named(artifact: Artifact, name: str) -> None:
    inputs = random_inputs(4, 5)
    with open_backend("onnxruntime", artifact) as backend:
        with pytest.raises(ValueError, match=rf"input {name} is float64 .*must be float32"):
            backend.run({**inputs, name: inputs[name].astype(np.float64)})
        with pytest.raises(ValueError, match=name):
            backend.run({**inputs, name: inputs[name][..., :-1]})
        with pytest.raises(ValueError, match="inputs are"):
            backend.run({k: v for k, v in inputs.items() if k != name})


def test_cancelled_backend_stops(artifact: Artifact) -> None:
    with open_backend("onnxruntime", artifact) as backend:
        backend.cancel()
        with pytest.raises(DeepLightError, match="4×5 LR pixels"):
            backend.run(random_inputs(4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "caffe"}, "unknown backend 'caffe': choose one of auto, openvino, onnxruntime"),
        ({"name": "onnxruntime", "device": "cuda"}, "device 'cuda' is not offered by backend onnxruntime"),
        ({"name": "auto", "device": "tpu"}, "device 'tpu' is not one of auto, cpu, cuda, cuda:0, cuda:1, …"),
        ({"name": "auto", "device": "cuda:"}, "device 'cuda:' is not one of"),
        ({"name": "auto", "device": "cpu:0"}, "device 'cpu:0' is not one of"),
        ({"name": "auto", "precision": "fp8"}, "has no ONNX file in precision fp8, it has fp32"),
    ],
)
def test_refusals(artifact: Artifact, arguments: dict[str, str], message: str) -> None:
    name = arguments.pop("name")
    with pytest.raises(InputError, match=re.escape(message)):
        open_backend(name, artifact, **arguments)


def test_a_gpu_is_named_with_or_without_its_number() -> None:
    assert [parse_device(d) for d in ("auto", "cpu", "cuda", "cuda:0", "cuda:03")] == [
        "auto", "cpu", "cuda", "cuda", "cuda:3",
    ]  # fmt: skip
    for text in ("cuda:-1", "cuda:x", "cuda:1.0", "cuda:²", "gpu", "", "CUDA"):
        with pytest.raises(ValueError, match="is not one of"):
            parse_device(text)
    assert cuda_index("cuda", 1, "X") == 0 and cuda_index("cuda:3", 4, "X") == 3
    with pytest.raises(InputError, match=r"X finds no device cuda:1: choose cuda:0$"):
        cuda_index("cuda:1", 1, "X")


def test_not_a_graph_and_another_graph(tmp_path: Path) -> None:
    from onnx import helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = write_model(tmp_path / "other", model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"takes .* it must take"):
        open_backend("auto", load_artifact(path))
    path = write_model(tmp_path / "none", b"")
    with pytest.raises(ArtifactError, match="cannot load"):
        open_backend("auto", load_artifact(path))


def test_registry_does_not_import_runtimes() -> None:
    assert "onnxruntime" in backend_choices() and "cpu" in device_choices()
    code = "import sys, deeplight.engine.runtime.backends.base as b; print('onnxruntime' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
