"""What is compiled beside the network is one graph to Dynamo, and gives the same; the shipped network on both paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplight.engine.core.admitted import admitted
from deeplight.engine.core.forms import Conserving, LayerForm, Wanted, returned, sent
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.network import tile_program
from deeplight.engine.network.finished import Finished
from deeplight.engine.network.tile_program import Usable
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from deeplight.engine.runtime.backends.torch_backend import Computing
from deeplight.engine.runtime.models import load_network
from tests.engine.device.runs import pixels, run
from tests.engine.device.standin import StandIn
from tests.scenes import ARC, north_up, write_raster, write_scene

BANDS = ("isp", "offset", "quality", "interval")


@pytest.mark.parametrize(
    ("bands", "conserving"),
    [
        pytest.param(BANDS, None, marks=pytest.mark.slow, id="plain"),
        pytest.param(BANDS, Conserving((4.68, 1.01), 4, 1e-3), id="conserving"),
        pytest.param((), None, id="radiance alone"),
    ],
)
def test_what_follows_the_network_is_one_graph(bands: tuple[str, ...], conserving: Conserving | None) -> None:
    wanted = Wanted(
        bands, 7 if bands else 1, None, conserving, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (0.0, 1.0)
    )
    finished, draw = Finished(wanted).eval(), torch.Generator().manual_seed(0)
    inputs = [torch.rand(input_shape(spec, 1, 9, 11), generator=draw) for spec in INPUTS]
    outputs = [torch.rand(1, n, 9 * s, 11 * s, generator=draw) for n, s in ((1, 8), (1, 8), (2, 1), (2, 8))]
    own = (torch.rand(1, 1, 9, 11, generator=draw) > 0.3).float()
    traced = torch.compile(finished, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.inference_mode():
        for got, want in zip(traced(*outputs, *inputs, own), finished(*outputs, *inputs, own), strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize(
    "form",
    [
        LayerForm(
            "raw", (0, 1, 2), (16, 16), "uint16", (1e-4,) * 3, (-0.1,) * 3, (0.0, None, 5.0), (-0.2, 1.6)
        ),
        LayerForm(
            "raw", (0,), (16, 16), "float32", (1.0,), (0.0,), (-9999.0,), (-500.0, 9000.0), masked=False
        ),
        LayerForm("own", (0,), (16, 16)),
    ],
    ids=lambda form: f"{form.kind} {form.dtype}",
)
def test_which_pixels_are_usable_is_one_graph(form: LayerForm) -> None:
    usable, kind = Usable(form).eval(), torch.int16 if form.dtype == "uint16" else torch.float32
    values = torch.randint(0, 2000, (16, 16, form.stride), generator=torch.Generator().manual_seed(0)).to(
        kind
    )
    extent, mask = torch.tensor([9, 12], dtype=torch.int32), torch.ones(16, 16, dtype=torch.uint8)
    mask[3] = 0
    traced = torch.compile(usable, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.inference_mode():
        got, want = traced(values, extent, mask), usable(values, extent, mask)
    assert torch.equal(got, want)
    # nothing beyond the extent, nothing under a mask that counts, and something else
    assert not got[9:].any() and not got[:, 12:].any() and got.any()
    assert bool(got[3].any()) != form.masked


REFLECTANCES = (-0.4, 3.0)
"""Where raw · gain + bias lies at a limit for the second to fourth line below, it depends on whether it is rounded once
or twice."""
LINES = [
    (1e-4, 0.0),
    (1e-4, -0.1),
    (1e-4, 0.1),
    (1e-4, -0.4),
    (-2e-4, 1.3),
    (2.75e-5, -0.2),
    (0.0, 0.5),
    (0.0, 9.0),
]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("limits", [REFLECTANCES, (-math.inf, 1.6), None])
def test_usable_pixels_are_those_of_the_host(dtype: str, limits: tuple[float, float] | None) -> None:
    """All that 16 bits hold; of float32, what lies beside each limit, what is not finite, and what overflows."""
    for gain, bias in [*LINES, (3e30, -2e38)]:
        raw = np.arange(1 << 16).astype(np.uint16).view(dtype if dtype != "float32" else np.uint16)
        if dtype == "float32":
            ends = np.array([e for e in admitted(gain, bias, limits) if math.isfinite(e)] or [0], np.float32)
            with np.errstate(over="ignore"):
                near = [ends, *(np.nextafter(ends, np.float32(side)) for side in (np.inf, -np.inf))]
            odd = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, -0.0, 1e-45], np.float32)
            raw = np.concatenate([*near, odd, np.random.default_rng(0).normal(0, 1e4, 99).astype(np.float32)])
        form = LayerForm("raw", (0,), (1, raw.size), dtype, (gain,), (bias,), (None,), limits, masked=False)
        want = to_physical(raw[None, None], [gain], [bias], [None], limits=limits or (-np.inf, np.inf))[1]
        bits = torch.from_numpy(raw.view(np.int16) if dtype == "uint16" else raw)
        extent = torch.tensor([1, raw.size], dtype=torch.int32)
        got = Usable(form)(bits[None, :, None], extent, torch.ones(1, raw.size, dtype=torch.uint8))
        np.testing.assert_array_equal(got.numpy(), want, err_msg=f"{gain} {bias}")


def test_what_is_usable_does_not_depend_on_how_a_device_rounds() -> None:
    """Nothing is computed of the pixels but comparisons, so that there is nothing to round."""
    form = LayerForm("raw", (0,), (4, 4), "int16", (1e-4,), (-0.1,), (None,), REFLECTANCES)
    given = torch.zeros(4, 4, 1, dtype=torch.int16), torch.tensor([4, 4]), torch.ones(4, 4, dtype=torch.uint8)
    graph = torch.export.export(Usable(form), given).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any(name.startswith("aten.ge") for name in names)
    assert not {
        name
        for name in names
        if name.startswith(("aten.mul", "aten.add", "aten.sub", "aten.div", "aten.fma"))
    }


@pytest.mark.parametrize("compiling", [True, False])
def test_what_is_around_the_network_is_compiled_unless_it_must_not_be(
    compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tile_program, "compiled", lambda part, _: asked.append(type(part).__name__) or part)
    form = LayerForm("own", (0,), (16, 16))
    memory, result = (
        torch.empty(layout.size, dtype=torch.uint8)
        for layout in (sent({"dem": form}, 2, 2), returned(1, 2, 2))
    )
    wanted = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (0.0, 1.0))
    given = ({"dem": form}, wanted, (0,) * 7, (2, 2), memory, result)
    tile_program.TileProgram(lambda inputs: inputs, *given, compiling=compiling)
    assert sorted(asked) == (["Finished", "Usable"] if compiling else [])


def test_the_shipped_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_scene(tmp_path, 21, 27)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    network = Computing(load_network(load_artifact(DEFAULT_MODEL)), "fp32", torch.device("cpu"))
    for name, device in (("host", None), ("device", StandIn(3))):
        out = tmp_path / f"{name}.tif"
        run(
            monkeypatch,
            scene,
            DEFAULT_MODEL,
            out,
            device,
            core=16,
            compute=network,
            bands=("isp", "interval"),
        )
    got, want = pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif")
    assert np.array_equal(np.isnan(got), np.isnan(want))
    for a, b in zip(got, want, strict=True):
        # inputs differ by rounding (see test_layers), which the network's gains raise
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.nanmax(b))


@pytest.mark.parametrize("bands", [("isp", "interval"), ("offset",)], ids=["spared", "needed"])
def test_lights_alone_do_without_the_layers_part(
    bands: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both paths the network leaves out what belongs to layers, and gives the bits of the whole one. The offset
    needs it."""
    scene = SceneOptions(ntl=str(write_scene(tmp_path, 21, 27).ntl))
    network = Computing(load_network(load_artifact(DEFAULT_MODEL)), "fp32", torch.device("cpu"))
    whole: list[int] = []

    def counted(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        whole.append(1)
        return network(inputs)

    maps = {}
    for name, device, spared in (("whole", None, False), ("host", None, True), ("device", StandIn(3), True)):
        compute = counted
        if spared:
            compute = partial(counted)  # a function of its own, which may hold the other program
            compute.alone = network.alone  # type: ignore[attr-defined]
        whole.clear()
        run(
            monkeypatch,
            scene,
            DEFAULT_MODEL,
            tmp_path / f"{name}.tif",
            device,
            core=16,
            compute=compute,
            bands=bands,
        )
        assert bool(whole) == (not spared or bands == ("offset",))
        maps[name] = pixels(tmp_path / f"{name}.tif")
    np.testing.assert_array_equal(maps["host"], maps["whole"])
    np.testing.assert_array_equal(maps["device"], maps["whole"])


def test_blocks_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles overlap by their halos, to twenty times their cores, yet a file's bytes are read little more than once, and
    headers by each thread: threads share blocks."""
    ntl = np.random.default_rng(0).gamma(0.5, 8.0, (48, 64)).astype(np.float32)
    # random pixels, so that blocks are no smaller than what is counted beside them
    dem = np.random.default_rng(1).integers(0, 900, (48 * 8, 64 * 8)).astype(np.int16)
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    scene = SceneOptions(
        ntl=str(write_raster(tmp_path / "ntl.tif", ntl)),
        dem=str(write_raster(tmp_path / "dem.tif", dem, transform=north_up(ARC / 8), **tiled)),
    )
    report = run(monkeypatch, scene, DEFAULT_MODEL, tmp_path / "o.tif", StandIn(), core=12)
    assert report.tiles["computed"] == 4 * 6
    assert 0 < report.inputs["dem"]["bytes_read"] <= 1.3 * report.inputs["dem"]["bytes"]


def test_the_network_takes_channels_that_lie_beside_others_without_a_copy() -> None:
    """What `kernels.align` writes holds values and validity together; both go on as views."""
    both = torch.rand(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []
    network = load_network(load_artifact(DEFAULT_MODEL))
    computing = Computing(network, "fp32", torch.device("cpu"))
    given = [torch.rand(input_shape(spec, 1, 2, 2)) for spec in INPUTS]
    given[2], given[3] = both[:, :-1], (both[:, -1:] > 0.5).float()
    want = computing([x.clone(memory_format=torch.contiguous_format) for x in given])
    run = computing._run
    computing._run = lambda *inputs: (seen.extend(inputs), run(*inputs))[1]
    with torch.inference_mode():
        got = computing(given)
    assert seen[2].data_ptr() == both.data_ptr() and seen[2].stride(1) == 1
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
