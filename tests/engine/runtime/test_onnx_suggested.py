"""A model in two parts: what the layers suggest, and the rest, which together give the bits of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.spec import INPUTS, OUTPUTS, SUGGESTED, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import onnxruntime_backend, open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.onnx_suggested import Parts, in_parts
from tests.engine.analytic import expected, onnx_bytes, write_analytic, write_model

TINY = "deeplight-tiny"
ALL = [spec.name for spec in OUTPUTS]


def tile(h: int, w: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Inputs with gaps in every layer and one daytime band that is missing."""
    random = np.random.default_rng(100 * h + w)
    inputs = {s.name: random.random(input_shape(s, batch, h, w), dtype=np.float32) for s in INPUTS}
    for name in ("ntl_valid", "dmo_valid", "dem_valid"):
        inputs[name] = (inputs[name] < 0.9).astype(np.float32)
    inputs["ntl"] *= 40 * inputs["ntl"] * inputs["ntl_valid"]
    inputs["dmo"] *= 0.4 * inputs["dmo_valid"]
    inputs["dem"] *= 500 * inputs["dem_valid"]
    inputs["dmo_bands"][:] = (0, 1, 1, 1, 1, 1, 1)
    inputs["psf"][:], inputs["limits"][:] = 1.8, (-1.0, 0.3)
    return inputs


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_two_parts_give_the_bits_of_the_whole(backend: str, threads: int) -> None:
    """The bits of sums and of vectors' ends could depend on how a graph is divided: so shapes are odd."""
    sides = [(1, 1), (1, 7), (5, 3), (13, 9)] + [(17, 31)] * (backend == "onnxruntime")
    tiles = [tile(*side) for side in sides] + [tile(3, 5, batch=2)]
    with open_backend(backend, load_artifact(TINY), threads=threads) as model:
        assert not model.suggests
        wholes = [model.run(inputs, ALL) for inputs in tiles]
        model.split(1, threads, ALL, suggested=True)
        assert model.suggests
        for inputs, whole in zip(tiles, wholes, strict=True):
            lights = model.suggest(inputs)
            assert (lights.shape == inputs["ntl"].shape and np.ptp(lights) > 0) or lights.size == 1
            same(model.run({**inputs, SUGGESTED.name: lights}, ALL), whole)
            model.rest()
            same(model.run(inputs, ALL), whole)
        model.split(1, threads, ALL)
        assert not model.suggests
        same(model.run(tiles[0], ALL), wholes[0])


def test_what_is_suggested_comes_from_the_layers_alone_and_is_used() -> None:
    first, other = tile(13, 9), tile(13, 9)
    for name in ("ntl", "ntl_valid", "psf", "limits"):
        other[name] = np.ones_like(other[name])
    with open_backend("onnxruntime", load_artifact(TINY), threads=1) as model:
        model.split(1, 1, ["offset"], suggested=True)
        lights = model.suggest(first)
        np.testing.assert_array_equal(model.suggest(other), lights)
        turned = {**first, SUGGESTED.name: lights[..., ::-1].copy()}
        assert (model.run(turned, ["offset"])["offset"] != model.run(first, ["offset"])["offset"]).any()


def asked(folder: Path, content: bytes) -> Backend:
    """A backend that runs a model file, asked to divide it."""
    model = open_backend("onnxruntime", load_artifact(write_model(folder, content)), threads=1)
    model.split(1, 1, ["ntl_hr"], suggested=True)
    return model


def test_models_that_cannot_be_divided_run_whole(tmp_path: Path) -> None:
    inputs = tile(7, 9)
    with asked(tmp_path / "m", onnx_bytes()) as model:
        assert not model.suggests
        np.testing.assert_allclose(model.run(inputs)["ntl_hr"][0, 0], expected(inputs), atol=2e-5)
        with pytest.raises(ValueError, match="was not asked for"):
            model.suggest(inputs)
        with pytest.raises(ValueError, match="computes what layers suggest by itself"):
            model.run({**inputs, SUGGESTED.name: inputs["ntl"]})


def with_convolution(shape: str) -> bytes:
    """The graph with a convolution of elevation in it. shape: "hr" leaves it on its grid; "clash" has its name."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(onnx_bytes())
    at = next(i for i, node in enumerate(model.graph.node) if "height" in node.output)
    model.graph.node[at].input[0] = "smooth"
    name = SUGGESTED.name if shape == "clash" else "seen"
    model.graph.node.insert(at, helper.make_node("Identity", [name], ["smooth"]))
    model.graph.node.insert(at, helper.make_node("Conv", ["dem", "box"], [name], pads=[2] * 4))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("shape", ["hr", "clash"])
def test_what_is_not_lights_on_their_grid_does_not_divide_a_model(tmp_path: Path, shape: str) -> None:
    assert (in_parts(with_convolution(shape), ["ntl_hr"]) is None) == (shape == "clash")
    with asked(tmp_path / "m", with_convolution(shape)) as model:
        assert not model.suggests and model.run(tile(7, 9))["ntl_hr"].shape == (1, 1, 56, 72)


def test_graphs_with_graphs_inside_are_not_divided() -> None:
    import onnx
    from onnx import helper

    model = onnx.load_from_string(with_convolution("hr"))
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["zero"], ["x"], then_branch=inner, else_branch=inner))
    assert in_parts(model.SerializeToString(), ["ntl_hr"]) is None


def test_parts_with_other_bits_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_off(model: bytes, outputs: list[str]) -> Parts:
        import onnx

        found = in_parts(model, outputs)
        assert found is not None
        changed = onnx.load_from_string(found.rest)
        bias = next(t for t in changed.graph.initializer if t.name == "first.bias")
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) * np.float32(1.0001)).tobytes()
        return found._replace(rest=changed.SerializeToString())

    inputs = tile(9, 8)
    with open_backend("onnxruntime", load_artifact(TINY), threads=1) as model:
        whole = model.run(inputs)
        monkeypatch.setattr(onnxruntime_backend, "in_parts", slightly_off)
        model.split(1, 1, ["ntl_hr"], suggested=True)
        assert not model.suggests
        same(model.run(inputs), whole)


def test_a_model_that_does_not_align_is_not_divided(tmp_path: Path) -> None:
    model = load_artifact(write_analytic(tmp_path / "analytic"))
    assert in_parts(model.read("fp32"), ["ntl_hr"]) is None
