"""The backend openvino: numbers, bits, parts of a model, its cache, and what it refuses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.machine import cpu_has_bf16
from deeplight.engine.core.spec import OF_LIGHTS_ALONE, OUTPUTS, SUGGESTED
from deeplight.engine.runtime import backends
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import chosen, open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.compare import TOLERANCE
from tests.engine.analytic import onnx_bytes, write_analytic, write_model
from tests.engine.runtime.test_onnx_suggested import tile

pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")

from deeplight.engine.runtime.backends import openvino_graph, openvino_kept, openvino_programs

TINY = "deeplight-tiny"
ALL = [spec.name for spec in OUTPUTS]
SIDES = [(2, 3), (3, 40), (24, 20), (61, 37)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests of this file."""
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def opened(**more: Any) -> Backend:
    return open_backend("openvino", load_artifact(TINY), **more)


def bits(outputs: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in outputs.items()}


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(float) - want) / np.linalg.norm(want.astype(float)))


def test_numbers_are_those_of_onnx_runtime() -> None:
    with opened(threads=1) as backend, open_backend("onnxruntime", load_artifact(TINY)) as reference:
        for h, w in SIDES:
            inputs = tile(h, w)
            got, want = backend.run(inputs, ALL), reference.run(inputs, ALL)
            for name in ("ntl_hr", "isp", "interval"):
                assert got[name].dtype == np.float32 and got[name].shape == want[name].shape
                assert relative_l2(got[name], want[name]) <= TOLERANCE["fp32"], (name, h, w)
            # LR pixels: displacements below a ten-thousandth change nothing that anyone could see
            np.testing.assert_allclose(got["offset"], want["offset"], atol=1e-4)
        assert list(backend.versions()) == ["openvino"]


@pytest.mark.slow
def test_bits_do_not_depend_on_threads_streams_or_what_else_is_asked_for() -> None:
    tiles = [tile(24, 20), tile(20, 24), tile(61, 37)] * 2
    with opened(threads=1) as backend:
        alone = [bits(backend.run(inputs, ALL)) for inputs in tiles]
        backend.split(2, 2)
        assert backend.streams == 2
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda inputs: bits(backend.run(inputs, ALL)), tiles)) == alone
        backend.split(1, 2, ["ntl_hr"])
        assert bits(backend.run(tiles[0])) == {"ntl_hr": alone[0]["ntl_hr"]}
    with opened(threads=2) as backend:
        assert bits(backend.run(tiles[2], ALL)) == alone[2]


def test_arrays_that_cannot_be_written_to_or_have_gaps() -> None:
    inputs = tile(24, 20)
    with opened() as backend:
        want = bits(backend.run(inputs, ALL))
        gaps = {name: np.repeat(values, 2, axis=-1)[..., ::2] for name, values in inputs.items()}
        assert bits(backend.run(gaps, ALL)) == want
        for values in inputs.values():
            values.flags.writeable = False
        assert bits(backend.run(inputs, ALL)) == want


def test_lights_alone_and_given_offsets() -> None:
    """The parts of the model that ONNX Runtime runs in their place, too."""
    inputs = tile(24, 20)
    dark = {n: np.zeros_like(v) if n.startswith(("dmo", "dem")) else v for n, v in inputs.items()}
    with opened() as backend, open_backend("onnxruntime", load_artifact(TINY)) as reference:
        backend.split(1, 1, OF_LIGHTS_ALONE, layers=False)
        got, want = backend.run(dark, OF_LIGHTS_ALONE), reference.run(dark, OF_LIGHTS_ALONE)
        assert all(relative_l2(got[n], want[n]) <= TOLERANCE["fp32"] for n in OF_LIGHTS_ALONE)
        offset = reference.run(inputs, ["offset"])["offset"] + np.float32(0.25)
        with pytest.raises(DeepLightError, match="say before that it is given"):
            backend.run({**inputs, "offset": offset}, ["ntl_hr"])
        for model in (backend, reference):
            model.split(1, 1, ALL, offset=True)
        got, want = (model.run({**inputs, "offset": offset}, ALL) for model in (backend, reference))
        np.testing.assert_array_equal(got["offset"], offset)
        assert relative_l2(got["ntl_hr"], want["ntl_hr"]) <= TOLERANCE["fp32"]


@pytest.mark.slow
def test_two_parts_give_the_bits_of_the_whole() -> None:
    tiles = [tile(5, 3), tile(24, 20), tile(13, 9, batch=2)]
    with opened(threads=2) as backend:
        backend.split(1, 2, ALL)
        wholes = [bits(backend.run(inputs, ALL)) for inputs in tiles]
        backend.split(2, 2, ALL, suggested=True)
        if not backend.suggests:
            pytest.skip("on this CPU the parts give other bits, so that they are not used")
        for inputs, whole in zip(tiles, wholes, strict=True):
            lights = backend.suggest(inputs)
            assert bits(backend.run({**inputs, SUGGESTED.name: lights}, ALL)) == whole
            backend.rest()
            assert bits(backend.run(inputs, ALL)) == whole
        other = {**inputs, SUGGESTED.name: lights[..., ::-1].copy()}
        assert bits(backend.run(other, ALL)) != whole, "what is given is used"


def test_parts_that_give_other_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplight.engine.runtime.backends import openvino_backend

    def differing(*_: object) -> bool:
        return False

    monkeypatch.setattr(openvino_backend, "_same", differing)
    with opened() as backend:
        backend.split(1, 1, ALL, suggested=True)
        assert not backend.suggests
        with pytest.raises(ValueError, match="was not asked for what layers suggest"):
            backend.suggest(tile(3, 3))
        assert backend.run(tile(3, 3), ALL)["ntl_hr"].size


def test_products_are_in_float32() -> None:
    """By default OpenVINO would multiply in bfloat16 where the CPU can."""
    made: list[Any] = []

    class Watched(openvino_programs._Program):
        def __init__(self, compiled: Any, streams: int) -> None:
            made.append(compiled)
            super().__init__(compiled, streams)

    with pytest.MonkeyPatch.context() as change, opened() as backend:
        change.setattr(openvino_programs, "_Program", Watched)
        backend.run(tile(24, 20))
        assert len(made) == 2, "the halves of the model"
        ran = [node.get_rt_info() for c in made for node in c.get_runtime_model().get_ops()]
    products = [str(i["runtimePrecision"].value) for i in ran if str(i["layerType"].value) == "Convolution"]
    assert len(products) > 20 and set(products) == {"f32"}


@pytest.mark.slow
def test_programs_are_kept_for_the_next_process_and_damage_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged weights, too, which OpenVINO itself would compute with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = tile(24, 20)
    with opened() as backend:
        first = bits(backend.run(inputs, ALL))
    kept = {path: path.read_bytes() for path in tmp_path.glob("deeplight/openvino/*.blob")}
    assert len(kept) == 2, "the halves of the model"
    for damage in (
        lambda whole: whole[:1000],
        lambda _: b"",
        lambda _: b"\xff" * 4096,
        lambda whole: whole[: len(whole) // 4] + bytes(4096) + whole[len(whole) // 4 + 4096 :],
    ):
        for path, whole in kept.items():
            path.write_bytes(damage(whole))
        with opened() as backend:
            assert bits(backend.run(inputs, ALL)) == first
        assert all(path.read_bytes() != damage(whole) for path, whole in kept.items())
    monkeypatch.setattr(openvino_graph, "shaped", None)
    with opened() as backend:
        assert bits(backend.run(inputs, ALL)) == first, "it was read"


@pytest.mark.slow
def test_programs_used_the_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino_kept, "_MOST", 4)

    def use(h: int, w: int) -> set[Path]:
        with opened() as backend:
            backend.run(tile(h, w))
        return set(tmp_path.glob("deeplight/openvino/*"))

    first = use(4, 5)
    assert len(first) == 2, "the halves of the model"
    for path in first:
        os.utime(path, (1, 1))
    second = use(5, 4) - first
    for path in second:
        os.utime(path, (2, 2))
    assert use(4, 5) == first | second
    left = use(6, 6)
    assert len(left) == 4 and first < left and not left & second


def test_without_a_cache_folder_it_runs_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with opened() as backend:
        assert backend.run(tile(3, 3))["ntl_hr"].size


@pytest.mark.slow
def test_programs_used_the_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory they may have twice the pixels of the largest together."""
    compiled: list[tuple[int, ...]] = []
    shaped = openvino_graph.shaped

    def counting(graph: Any, *shape: int) -> Any:
        compiled.append(shape[1:])
        return shaped(graph, *shape)

    monkeypatch.setattr(openvino_graph, "shaped", counting)
    monkeypatch.setattr(openvino_kept.Kept, "_read", lambda *_: None)
    large, right, below, corner, other = (10, 10), (10, 4), (4, 10), (4, 4), (10, 9)
    with opened() as backend:
        for h, w in [large, right, below, corner, large, right]:
            backend.run(tile(h, w))
        assert compiled[::2] == compiled[1::2] == [large, right, below, corner], "both halves, once"
        for h, w in [other, right, large]:
            backend.run(tile(h, w))
    assert compiled[8::2] == [other, large], "`right` was used after those that went"


def test_a_cancelled_run_stops_and_a_closed_backend_says_so() -> None:
    inputs = tile(61, 37)
    backend = opened()
    backend.run(inputs)
    timer = threading.Timer(0.05, backend.cancel)
    timer.start()
    with pytest.raises(DeepLightError, match=r"failed on a tile of 61×37 LR pixels: .*(stopped|cancel)"):
        for _ in range(10_000):
            backend.run(inputs)
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run(inputs)


def test_files_that_are_not_the_models(tmp_path: Path) -> None:
    from onnx import helper

    path = write_model(tmp_path / "none", b"")
    with pytest.raises(ArtifactError, match=r"OpenVINO 20\d\d\.\d.* cannot load .*model\.onnx: "):
        open_backend("openvino", load_artifact(path))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = write_model(tmp_path / "other", other.SerializeToString())
    with pytest.raises(ArtifactError, match=r"takes .* it must take"):
        open_backend("openvino", load_artifact(path))
    with pytest.raises(InputError, match="device 'cuda' is not offered by backend openvino"):
        open_backend("openvino", load_artifact(TINY), device="cuda")
    with pytest.raises(InputError, match="no ONNX file in precision fp16"):
        open_backend("openvino", load_artifact(TINY), precision="fp16")
    both = load_artifact(TINY)
    both = replace(both, manifest=replace(both.manifest, precisions={"fp32": "a.onnx", "fp16": "b.onnx"}))
    with pytest.raises(
        InputError, match=r"no ONNX file that OpenVINO runs in precision fp16.*backend=.onnxruntime"
    ):
        open_backend("openvino", both, precision="fp16")
    with pytest.raises(InputError, match="no ONNX file in precision fp4, it has fp32, fp16"):
        open_backend("auto", both, precision="fp4", pixels=10**6)
    analytic = load_artifact(write_model(tmp_path / "analytic", onnx_bytes()))
    with (
        open_backend("openvino", analytic) as backend,
        pytest.raises(ArtifactError, match="cannot be given an offset"),
    ):
        backend.split(1, 1, ALL, offset=True)


def test_auto_takes_it_by_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, on x86, for large scenes in fp32; else ONNX Runtime, which is always there."""
    artifact = load_artifact(write_analytic(tmp_path / "m"))

    def auto(pixels: int = 10**6, device: str = "auto") -> str:
        return chosen("auto", artifact, "fp32", device, pixels)

    for machine in ("x86_64", "AMD64"):
        monkeypatch.setattr(backends, "machine", lambda machine=machine: machine)
        assert [auto(), auto(device="cpu"), auto(10**6 - 1), auto(0)] == [
            "openvino", "openvino", "onnxruntime", "onnxruntime",
        ]  # fmt: skip
    monkeypatch.setattr(backends, "machine", lambda: "aarch64")
    assert auto() == "onnxruntime"
    monkeypatch.setattr(backends, "machine", lambda: "x86_64")
    for other in ("2026.3.0", "2025.4.1-1"):
        with monkeypatch.context() as change:
            change.setattr(backends, "version", lambda _, other=other: other)
            assert auto() == "onnxruntime", "nobody compared it with that"
    with monkeypatch.context() as change:
        change.setattr(backends, "find_spec", lambda module: module != "onnx" or None)
        assert auto() == "onnxruntime", "somebody has OpenVINO, and not what reads the file for it"
    monkeypatch.setattr(backends, "installed", lambda name, device: name != "openvino")
    assert auto() == "onnxruntime"


def test_the_built_in_model_has_a_file_in_bfloat16() -> None:
    artifact = load_artifact(TINY)
    assert chosen("auto", artifact, "bf16", "auto") == "openvino", "for scenes of any size"
    with pytest.raises(InputError, match="in precision bf16"):
        open_backend("onnxruntime", artifact, precision="bf16")
    if not cpu_has_bf16():
        with pytest.raises(InputError, match="this CPU has no bfloat16 arithmetic"):
            opened(precision="bf16")
        return
    inputs = tile(24, 20)
    with opened(precision="bf16") as backend, opened() as reference:
        got, want = backend.run(inputs, ALL), reference.run(inputs, ALL)
    assert 1e-4 < relative_l2(got["ntl_hr"], want["ntl_hr"]) <= TOLERANCE["bf16"]
    np.testing.assert_allclose(got["offset"], want["offset"], atol=1e-4)
