"""The bfloat16 file of the shipped model in OpenVINO: its accuracy, and that it keeps the types of the file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import OF_LIGHTS_ALONE
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, Artifact, load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.compare import TOLERANCE
from deeplight.export.parity import parity_cases

pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """The shipped model, with its bfloat16 file; `exported` has one that is made on the spot, and is compared too."""
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("bf16")))
        yield load_artifact(DEFAULT_MODEL)


def opened(artifact: Artifact, threads: int = 1) -> Backend:
    try:
        return open_backend("openvino", artifact, precision="bf16", threads=threads)
    except InputError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("case", ["town, all layers", "very bright lights", "very bright, NTL alone"])
def test_radiance_is_within_the_limit(shipped: Artifact, case: str) -> None:
    inputs, _ = parity_cases()[case]
    with open_backend("onnxruntime", shipped) as reference, opened(shipped) as backend:
        want = reference.run(inputs)["ntl_hr"]
        if "alone" in case:
            backend.split(1, 1, OF_LIGHTS_ALONE, layers=False)
        got = backend.run(inputs)["ntl_hr"]
    error = np.linalg.norm(got.astype(float) - want) / np.linalg.norm(want.astype(float))
    assert 1e-4 < error <= TOLERANCE["bf16"], "more than float32 differs, and no more than it may"


def test_bits_do_not_depend_on_threads(shipped: Artifact) -> None:
    inputs, _ = parity_cases()["odd, all layers"]
    maps = []
    for threads in (1, 2):
        with opened(shipped, threads) as backend:
            maps.append(backend.run(inputs)["ntl_hr"])
    assert np.array_equal(*maps)


def test_products_have_the_types_of_the_file(shipped: Artifact) -> None:
    from deeplight.engine.runtime.backends.openvino_graph import read, shaped
    from deeplight.engine.runtime.backends.openvino_library import library_core

    opened(shipped).close()
    core = library_core()
    graph = read(core, shipped.read("bf16", "openvino"))
    compiled = core.compile_model(shaped(graph, 1, 24, 20), "CPU", {"INFERENCE_PRECISION_HINT": "dynamic"})
    ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [str(i["runtimePrecision"].value) for i in ran if str(i["layerType"].value) == "Convolution"]
    assert products.count("bf16") >= 25 and products.count("f32") >= 25, "localisation and heads keep float32"
    assert len(products) == products.count("bf16") + products.count("f32")
