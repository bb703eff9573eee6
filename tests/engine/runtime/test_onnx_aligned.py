"""A model in two halves with the alignment between them gives what the whole model gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from deeplight.engine.core.spec import ALIGNED, FEATURES, INPUTS, OUTPUTS
from deeplight.engine.raster.align import align
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.onnxruntime_backend import open_session
from deeplight.engine.runtime.onnx_aligned import FRONT, in_halves, joined
from deeplight.engine.runtime.onnx_asked import asked
from deeplight.engine.runtime.onnx_outputs import output_names
from tests.engine.analytic import onnx_bytes
from tests.engine.runtime.test_onnx_suggested import tile

ALL = [spec.name for spec in OUTPUTS]


@pytest.fixture(scope="module")
def model() -> bytes:
    return load_artifact("deeplight-tiny").read("fp32")


@pytest.mark.parametrize(("h", "w", "batch"), [(2, 3, 1), (13, 9, 2), (31, 40, 1)])
def test_both_halves_make_what_the_whole_makes(model: bytes, h: int, w: int, batch: int) -> None:
    inputs = tile(h, w, batch=batch)
    want = dict(zip(ALL, open_session(model, 1).run(ALL, inputs), strict=True))
    with open_backend("onnxruntime", load_artifact("deeplight-tiny"), threads=2) as backend:
        got = backend.run(inputs, ALL)
    # the same estimate of the offset; else sums of the alignment in another order
    np.testing.assert_array_equal(got["offset"], want["offset"])
    for name in ("ntl_hr", "isp", "interval"):
        assert np.linalg.norm(got[name] - want[name]) <= 2e-6 * np.linalg.norm(want[name]), name


@pytest.mark.parametrize("outputs", [["ntl_hr"], ["ntl_hr", "offset"], ALL])
@pytest.mark.parametrize("offset", [False, True])
def test_the_joined_halves_have_the_bits_of_each(model: bytes, outputs: list[str], offset: bool) -> None:
    inputs = tile(13, 9)
    made = [name for name in outputs if not (offset and name == "offset")]
    if offset:
        inputs["offset"] = np.full((1, 2, 13, 9), 0.3, np.float32)
    halves = in_halves(asked(model, made, layers=True, offset=offset), made)
    assert halves is not None
    for content in halves:  # the joined ones have outputs of two shapes, which the checker does not allow for
        onnx.checker.check_model(onnx.load_from_string(content))
    front, back, both = (open_session(content, 1) for content in (*halves, joined(halves)))

    def run(session, asked_for: list[str], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {**inputs, **more}
        taken = {i.name: given[i.name] for i in session.get_inputs()}
        return dict(zip(asked_for, session.run(asked_for, taken), strict=True))

    first = output_names(halves.front)
    assert sorted(first) == (["features"] if offset else ["features", "offset"])
    nothing = np.zeros((1, 10, 8, 8), np.float32)
    features = run(front, first, {})
    again = run(both, first, {FRONT: np.array(True), ALIGNED.name: nothing})
    assert all(features[name].tobytes() == again[name].tobytes() for name in first)
    aligned = np.empty_like(features[FEATURES.name])
    align(features[FEATURES.name], features.get("offset", inputs.get("offset")), aligned)
    rest = [name for name in made if name != "offset"]
    wanted = run(back, rest, {ALIGNED.name: aligned})
    found = run(both, rest, {FRONT: np.array(False), ALIGNED.name: aligned})
    assert all(wanted[name].tobytes() == found[name].tobytes() for name in rest)


def test_each_half_has_nodes_of_its_own(model: bytes) -> None:
    """What is in front of the alignment is not computed again behind it, but for what the lights alone need."""
    halves = in_halves(model, ALL)
    assert halves is not None
    whole, front, back = (onnx.load_from_string(content).graph for content in (model, *halves))
    convolutions = [sum(node.op_type == "Conv" for node in graph.node) for graph in (whole, front, back)]
    assert convolutions[1] > 5 and convolutions[2] > 10 and sum(convolutions[1:]) <= convolutions[0]
    assert not any(node.op_type == "align" for graph in (front, back) for node in graph.node)
    read = [node.op_type for node in back.node if {"dmo", "dmo_valid", "dem", "dem_valid"} & set(node.input)]
    assert set(read) <= {"Shape"}, "they come aligned"
    assert {i.name for i in back.input} == {ALIGNED.name, *(spec.name for spec in INPUTS)}


def test_models_without_an_alignment_run_whole(model: bytes) -> None:
    assert in_halves(onnx_bytes(), ALL) is None
    assert in_halves(asked(model, ["offset"], layers=True, offset=False), ["offset"]) is None
    alone = asked(model, ["ntl_hr"], layers=False, offset=False)
    assert in_halves(alone, ["ntl_hr"]) is None
    twice = onnx.load_from_string(model)
    node = next(n for n in twice.graph.node if n.op_type == "align")
    second = onnx.NodeProto()
    second.CopyFrom(node)
    second.name, second.output[0] = "second", "second"
    twice.graph.node.append(second)
    assert in_halves(twice.SerializeToString(), ALL) is None
    with pytest.raises(ValueError, match="longer than its message"):
        in_halves(model[:-9], ALL)
