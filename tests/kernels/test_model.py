"""The network with kernels against the network without, what torch.compile and the library see of it, and which
implementation is taken when."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from deeplight import kernels
from deeplight.engine.core.forms import LayerForm, sent
from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.network import model as network_model
from deeplight.engine.network.compiled import Compiled
from deeplight.engine.network.config import PRESETS as CONFIGS
from deeplight.engine.network.config import ModelConfig, Normalisation
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.normalise import Normalise
from deeplight.engine.network.precision import in_precision
from deeplight.engine.network.tile_layers import CHANNELS, Standard, TileFile, Usable, empty_layer
from deeplight.engine.network.tile_program import tensors
from deeplight.kernels import dispatch, launch
from deeplight.kernels.launch import Launch
from deeplight.kernels.variants import DTYPES, variants
from tests.engine.network.test_model import SMALL, inputs, make
from tests.kernels import fake_gpu, test_align, test_refine, test_upsample
from tests.kernels.test_fuse import case


@pytest.mark.parametrize("config", [SMALL, CONFIGS["tiny"]], ids=["small", "tiny"])
def test_the_network_is_the_same_with_kernels(
    device: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers are apart as on a GPU; without kernels, together as elsewhere."""
    model, values = make(config, wild=0.15 if config is SMALL else 0.05).to(device), inputs(1, 2, 3)
    values = {k: v.to(device) for k, v in values.items()}
    values["dem_valid"][..., :7] = 0
    values["dem"] *= values["dem_valid"]
    asked: list[str] = []

    def always(op: str, *_: Any, **__: Any) -> bool:
        asked.append(op)
        return True

    with torch.no_grad():
        monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: False)
        monkeypatch.setattr(network_model, "apart", lambda _: False)
        want = model(*values.values())
        monkeypatch.setattr(dispatch, "use_kernel", always)
        monkeypatch.setattr(network_model, "apart", lambda _: True)
        got = model(*values.values())
    assert asked.count("align") == 2
    assert set(asked) == {"align", "base", "suggest", "locate", "fuse", "upsample", "restore", "settle"}
    for name, g, w in zip(("ntl_hr", "isp", "offset", "interval"), got, want, strict=True):
        # float32 through some ten layers, then exp; offsets move the samples
        assert (g - w).abs().max() <= 1e-4 * max(1.0, float(w.abs().max())), name


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch, none of which computes: the results are 0. As on a GPU, where nothing is interpreted."""
    launches: list[Launch] = []

    def record(ready: Launch) -> None:
        launches.append(ready)
        for name in ("out", "radiance", "isp"):
            if name in ready.arguments:
                ready.arguments[name].zero_()  # type: ignore[union-attr]

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: True)
    monkeypatch.setattr(dispatch, "kernel_runs_on", lambda _: True)
    for folder in set(launch.MODULES.values()):
        monkeypatch.setattr(importlib.import_module(f"deeplight.kernels.{folder}.entry"), "run", record)
    return launches


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_launch_of_the_network_is_among_the_variants(
    recorded: list[Launch], name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_model, "apart", lambda _: True)
    config = CONFIGS[name]
    with torch.no_grad():
        in_precision(make(config), dtype)(*inputs(1, 1, 2).values())
    assert Counter(ready.kernel for ready in recorded).keys() >= {
        "align",
        "residuals",
        "posterior",
        "suggest",
        "observe",
        "start",
        "believe",
        "look",
        "decide",
        "settle",
        "fuse",
        "upsample_epilogue",
        "refine_narrow" if name == "tiny" else "refine",
    }
    assert len(recorded) == 2 + 1 + 2 + 3 + 3 + 3 + 1 + 4
    assert {ready.key for ready in recorded} <= {v.key for v in variants(config, DTYPES[dtype])}


@pytest.mark.parametrize("name", ["dmo", "dem"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_launches_from_pixels_as_sent_are_among_the_variants(
    recorded: list[Launch], dtype: str, name: str
) -> None:
    bands, size = CHANNELS[name], (2, 3)
    for kind in ("uint16", "int16", "float32") if name == "dmo" else ("int16", "float32"):
        line = (1.0,) * bands
        form = LayerForm("raw", tuple(range(bands)), (4, 8), kind, line, line, (None,) * bands)
        whole = tuple(SCALE * n for n in size)
        standard = Standard(Normalise(Normalisation()).lines(), DTYPES[dtype])
        layer = TileFile(name, form, whole, Usable(form), torch.device("cpu"), "triton", standard)  # type: ignore[arg-type]
        layout = sent({name: form}, *size)
        out = layer(tensors(layout, torch.zeros(layout.size, dtype=torch.uint8)))
        assert out.shape == (1, bands + 1, *whole) and out.dtype == DTYPES[dtype]
    keys = {v.key for v in variants(CONFIGS["tiny"], DTYPES[dtype])}
    assert len(recorded) == (3 if name == "dmo" else 2) and {ready.key for ready in recorded} <= keys


def compiled_whole(
    function: Callable[..., Any], backend: str = "eager"
) -> tuple[Callable[..., Any], list[str]]:
    """`function` in one graph, and the operators of ours in it, filled when it is called."""
    seen: list[str] = []

    def compiler(module: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        names = (str(node.target) for node in module.graph.nodes)
        seen.extend(name.split(".")[1] for name in names if name.startswith("deeplight."))
        return torch._dynamo.lookup_backend(backend)(module, example)

    torch.compiler.reset()
    return torch.compile(function, backend=compiler, fullgraph=True), seen


@pytest.mark.parametrize("op", ["align", "fuse", "upsample", "refine"])
def test_compile_sees_one_operator(device: str, op: str) -> None:
    arguments: dict[str, Any] = {
        "align": [test_align.moved(device, v) for v in list(test_align.case().values())[:6]],
        "fuse": case(1, 8, 8, 3, 5),
        "upsample": test_upsample.case(1, 8, 4, 3, 5),
        "refine": test_refine.case(w=8),
    }
    given = _on(device, arguments[op])
    more = {"size": (8, 16)} if op == "align" else {}

    def call(*args: Any) -> Any:
        return getattr(kernels, op)(*args, **more, implementation="triton")

    compiled, seen = compiled_whole(call, "aot_eager")
    got, want = compiled(*given), call(*given)
    assert seen == [op]
    assert torch.equal(got, want) if isinstance(got, torch.Tensor) else all(map(torch.equal, got, want))


def _on(device: str, value: Any) -> Any:
    if type(value) is list:
        return [_on(device, v) for v in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("precision", "folded"), [("fp32", False), ("fp16", True)])
def test_on_cuda_the_whole_network_is_traced_with_the_operators_opaque(
    precision: str, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "TRITON", True)
    if folded:  # under torch.compile, PyTorch 2.11 takes is_exporting() for True
        monkeypatch.setattr(dispatch, "is_exporting", lambda: True)
    model = in_precision(make(CONFIGS["tiny"]), precision)
    with fake_gpu.fake_cuda(), torch.no_grad():
        network = fake_gpu.moved(model)
        given = [torch.empty(input_shape(spec, 1, 3, 5), device=fake_gpu.DEVICE) for spec in INPUTS]
        if folded:  # and as on the device path: bands and their validity are views of one tensor
            both = torch.empty(1, 8, 24, 40, device=fake_gpu.DEVICE).to(memory_format=torch.channels_last)
            given[2:4] = both[:, :-1], both[:, -1:]
        compiled, seen = compiled_whole(network, "aot_eager")
        radiance, isp, offset, interval = compiled(*given)
    assert Counter(seen) == {
        "base": 1,
        "align": 2,
        "suggest": 1,
        "locate": 1,
        "fuse": 3,
        "upsample": 3,
        "restore": 1,
        "settle": 1,
    }
    assert radiance.shape == isp.shape == (1, 1, 24, 40) and offset.shape == (1, 2, 3, 5)
    assert interval.shape == (1, 2, 24, 40)
    assert {t.device.type for t in (radiance, isp, offset, interval)} == {"cuda"}


def test_on_cuda_the_layers_lie_as_kernels_and_convolutions_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both first copy what is not channels-last or is part of a larger map: once that was 120 bytes of an HR pixel."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "TRITON", True)
    read: dict[str, list[bool]] = {"suggest": [], "align": [], "conv2d": []}

    def compiler(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        for node in module.graph.nodes:
            op = str(getattr(node.target, "__name__", node.target)).split(".")[0]
            first = node.all_input_nodes[0] if node.all_input_nodes else node
            # other convolutions read what convolutions wrote, which lies otherwise in a build for CPUs
            if op in ("suggest", "align") or (op == "conv2d" and "align" in str(first.target)):
                x = first.meta["example_value"]
                read[op].append(x.is_contiguous(memory_format=torch.channels_last))
        return module

    model = in_precision(make(CONFIGS["tiny"]), "fp16").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with fake_gpu.fake_cuda(), torch.no_grad():
        given = [torch.empty(input_shape(spec, 1, 3, 5), device=fake_gpu.DEVICE) for spec in INPUTS]
        for k, bands in ((2, 8), (5, 2)):  # values and validity as `align` writes them from raw pixels
            both = torch.empty(1, bands, 24, 40, device=fake_gpu.DEVICE).to(memory_format=torch.channels_last)
            given[k], given[k + 1] = both[:, :-1], both[:, -1:]
        torch.compiler.reset()
        torch.compile(fake_gpu.moved(model), backend=compiler, fullgraph=True)(*given)
    assert read == {"suggest": [True], "align": [True, True], "conv2d": [True, True]}


@pytest.mark.parametrize("layers", [pytest.param("physical", marks=pytest.mark.slow), "raw"])
def test_on_cuda_each_part_of_the_network_is_traced_by_itself(
    layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of raw layers `align` makes what the first part makes of physical ones, so it is spared."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch, "TRITON", True)
    model, seen, calls = in_precision(make(CONFIGS["tiny"]), "fp16"), {}, Counter[str]()

    def fuse(part: torch.nn.Module) -> Callable[..., Any]:
        name = type(part).__name__
        compiled, seen[name] = compiled_whole(part, "aot_eager")

        def counted(*given: Any) -> Any:
            calls[name] += 1
            return compiled(*given)

        return counted

    with fake_gpu.fake_cuda(), torch.inference_mode():
        divided = Divided(fake_gpu.moved(model), fuse)
        given = [torch.empty(input_shape(spec, 1, 3, 5), device=fake_gpu.DEVICE) for spec in INPUTS]
        lights = torch.empty(1, 1, 3, 5, device=fake_gpu.DEVICE)
        aux = None
        if layers == "raw":
            aux = tuple(empty_layer(name, (24, 40), fake_gpu.DEVICE, divided.dtype) for name in CHANNELS)
        shapes = [[t.shape for t in divided(given, lights, known=known, aux=aux)] for known in (True, False)]
    assert shapes[0] == shapes[1] == [(1, n, 3 * s, 5 * s) for n, s in ((1, 8), (1, 8), (2, 1), (2, 8))]
    once = dict.fromkeys(("base", "locate", "restore", "settle"), 1)
    assert Counter(seen["AfterSuggestion"]) == {**once, "align": 2, "fuse": 3, "upsample": 3}
    assert seen["Suggestion"] == ["suggest"] and seen["Layers"] == []
    known_once = {"AfterSuggestion": 2, "Suggestion": 1}
    assert calls == (known_once if layers == "raw" else known_once | {"Layers": 2})


@pytest.mark.parametrize(
    ("apart", "precision"),
    [
        (True, "fp16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((True, "fp32"), (False, "fp32"), (False, "fp16"))
        ),
    ],
)
def test_the_parts_give_the_bits_of_the_whole(
    precision: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the lights are suggested by the same layers or were before, for other lights. Through what compiles the
    parts on a GPU, with a compiler that changes nothing."""
    monkeypatch.setattr(network_model, "apart", lambda _: apart)
    torch.compiler.reset()
    model = in_precision(make(wild=0.15), precision)
    divided, lights = Divided(model, partial(Compiled, backend="eager")), torch.empty(1, 1, 2, 3)
    values = inputs(1, 2, 3)
    with torch.no_grad():
        for known, ntl in ((False, values["ntl"]), (True, values["ntl"].flip(2))):
            given = list((values | {"ntl": ntl}).values())
            assert all(map(torch.equal, divided(given, lights, known=known), model(*given)))
            assert torch.equal(lights, divided.suggest(given))
    assert not divided.fallbacks


@pytest.mark.parametrize(
    "with_kernels",
    [pytest.param(False, marks=pytest.mark.slow, id="reference"), pytest.param(True, id="kernels")],
)
def test_compile_takes_the_whole_network(with_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = make(wild=0.15), list(inputs(1, 2, 3).values())
    monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: with_kernels)
    # the operators' bodies are the reference here
    monkeypatch.setattr(dispatch, "kernel_runs_on", lambda _: False)
    compiled, seen = compiled_whole(model)
    with torch.no_grad():
        got, want = compiled(*values), model(*values)
    once = dict.fromkeys(("align", "base", "suggest", "locate", "restore", "settle"), 1)
    ours = {**once, "fuse": 3, "upsample": 3}
    assert Counter(seen) == (ours if with_kernels else {})
    assert all(map(torch.equal, got, want))


def test_auto_is_the_reference_on_a_cpu() -> None:
    args = case(1, 8, 8, 3, 5)
    assert torch.equal(kernels.fuse(*args), kernels.fuse(*args, implementation="reference"))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, triton, reference, not 'cuda'"):
        kernels.fuse(*case(1, 8, 8, 3, 5), implementation="cuda")  # type: ignore[arg-type]


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs CUDA tensors and Triton"):
        kernels.fuse(*case(1, 8, 8, 3, 5), implementation="triton")


class Fusion(torch.nn.Module):
    def __init__(self, implementation: kernels.Implementation) -> None:
        super().__init__()
        self.implementation = implementation

    def forward(self, main: Any, aux: Any, masks: Any, *weights: Any) -> Any:
        return kernels.fuse(main, aux, masks, *weights, implementation=self.implementation)


@pytest.mark.parametrize("implementation", ["auto", "triton"])
def test_export_decomposes_unless_the_operator_is_asked_for(implementation: kernels.Implementation) -> None:
    program = torch.export.export(Fusion(implementation), tuple(case(1, 8, 8, 3, 5)), strict=False)
    has_operator = any("deeplight.fuse" in str(node.target) for node in program.graph.nodes)
    assert has_operator == (implementation == "triton")
