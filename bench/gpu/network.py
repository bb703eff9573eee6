"""The network on one tile in a CUDA graph, with references and with kernels, eager and compiled; and a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.gpu.stage import Rows, StageSettings, TileCut, attempt, channels_last, milliseconds
from bench.network import random_model
from deeplight.engine.core.forms import LayerForm, sent
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, SCALE, input_shape
from deeplight.engine.network.compiled import Compiled, compiled
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.model import Auxiliary
from deeplight.engine.network.precision import in_precision
from deeplight.engine.network.tile_layers import Standard, TileFile, Usable
from deeplight.engine.network.tile_program import tensors
from deeplight.engine.runtime.cuda_device import CudaDevice
from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import never_interpreted
from deeplight.kernels.float32 import exact_float32

Network = Callable[..., Any]
WAYS = ("kernels", "both", "eager", "compiled", "free")
"""Ways to run the network. kernels: without compiling what lies between the kernels. both: with compiling it. eager,
compiled: the references. free: as "both", but Inductor may choose by timing, which is not deterministic; for the first
preset and type only."""
TARGETED = ("both", "compiled")
NAMES = 25
"""How many kernels the profile names."""


def measure(settings: StageSettings) -> None:
    """Rows of network.json.

    In each type, the first one first: what targets ask for, which is the engine's way of every preset beside the
    references compiled; then the other ways. A captured tile, profiles and the way "free" are of the first type.
    """
    rows = Rows(settings, "network")
    for dtype in settings.dtypes:
        networks = {preset: built(preset, dtype, settings) for preset in settings.presets}
        for preset, step in _steps(settings, first=dtype == settings.dtypes[0]):
            if settings.late:
                rows.add(left_out=f"no time for {step} of {preset} {dtype} and what follows")
                return
            what = {"preset": preset, "dtype": dtype, "side": settings.side}
            with exact_float32(), torch.inference_mode(), never_interpreted():
                _measure(rows, step, what, *networks[preset], settings)


def _steps(settings: StageSettings, first: bool) -> Iterator[tuple[str, str]]:
    """Presets, and ways to run the network or other things to measure, in order. first: for the first type."""
    some = settings.presets[0]
    for way in TARGETED:
        yield from ((preset, way) for preset in settings.presets)
    if first and settings.device == "cuda":
        yield some, "capture"
    for way in ("kernels", "eager"):
        yield from ((preset, way) for preset in settings.presets)
    if first:
        yield from ((preset, "profile") for preset in settings.presets)
        yield some, "free"


def _measure(
    rows: Rows,
    step: str,
    what: dict[str, Any],
    network: Network,
    inputs: list[Tensor],
    settings: StageSettings,
) -> None:
    if step == "capture":
        tile = replace(
            settings, side=TileCut(settings.side).side
        )  # the engine's stage finds what is compiled for it
        what |= {"side": tile.side}
        attempt(rows, {"what": step, **what}, lambda: captured(*built(what["preset"], what["dtype"], tile)))
    elif step == "profile":
        attempt(rows, {"what": step, **what}, lambda: profile(network, inputs, settings))
    else:
        attempt(
            rows, {"what": "network", "way": step, **what}, lambda: timed(network, inputs, step, settings)
        )


def built(preset: str, precision: str, settings: StageSettings) -> tuple[Network, list[Tensor]]:
    """Random weights in the form that the engine uses in a precision, and inputs, both channels-last on the device."""
    model = in_precision(random_model(preset), precision).to(settings.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shapes = (input_shape(spec, 1, settings.side, settings.side) for spec in INPUTS)
    return model, [channels_last(shape, settings.device) for shape in shapes]


def captured(network: Network, inputs: Sequence[Tensor]) -> dict[str, float]:
    """What a tile is to the engine's device: layers from pixels as they are sent, and the network in its parts,
    compiled, with the lights that layers suggest, and beside it without them, as for a further date. Seconds in which
    they are captured, and ms of a replay.

    Raises RuntimeError where a replay gives other bits than a call, because something in it is not part of the graph.
    """
    device, found = CudaDevice(inputs[0].device), dict[str, float]()
    stream, lights = device.stream(), inputs[0].clone(memory_format=torch.contiguous_format)
    divided = Divided(network, lambda part: compiled(part, inputs[0].device))  # type: ignore[arg-type]
    layers = as_sent(divided, inputs[0])

    def computed(known: bool) -> Sequence[Tensor]:
        return divided(inputs, lights, known=known, aux=layers())

    made = [result.clone() for result in computed(known=False)]
    want = [result.clone() for result in made]

    def tile(known: bool) -> None:
        for target, result in zip(made, computed(known), strict=True):
            target.copy_(result)

    if divided.fallbacks:
        raise RuntimeError(f"uncompiled: {divided.fallbacks}")
    graphs: dict[str, Any] = {}
    for name, known in (("date", False), ("further_date", True)):
        begin = time.perf_counter()
        graphs[name] = device.capture(stream, partial(tile, known), [], [], graphs.get("date"))
        found[f"{name}_capture_s"] = time.perf_counter() - begin
    for name in (*graphs, *graphs):
        before, after = device.event(), device.event()
        for target in made:
            target.zero_()
        torch.cuda.synchronize()
        stream.record(before)
        stream.replay(graphs[name])
        stream.record(after)
        after.wait()
        if not all(map(torch.equal, made, want)):
            raise RuntimeError("a replayed graph gives other bits than a call")
        found[f"{name}_ms"] = 1e3 * after.seconds_since(before)
    return found


def in_parts(network: Network, inputs: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """The network as the engine's device has it: in its parts, compiled, on layers that were made before from pixels as
    they are sent. Running it raises RuntimeError where a part is not compiled."""
    where = inputs[0].device
    divided = Divided(network, lambda part: compiled(part, where))  # type: ignore[arg-type]
    aux, lights = (
        as_sent(divided, inputs[0])(),
        inputs[0].clone(memory_format=torch.contiguous_format),
    )

    def run() -> Sequence[Tensor]:
        made = divided(inputs, lights, known=False, aux=aux)
        if divided.fallbacks:
            raise RuntimeError(f"uncompiled: {divided.fallbacks}")
        return made

    return run


def as_sent(divided: Divided, lights: Tensor) -> Callable[[], Auxiliary]:
    """What makes the layers of a tile beside `lights` (1,1,h,w): seven bands of uint16 and elevation of int16, as large
    as HR pixels and half a pixel beside them."""
    h, w = lights.shape[2:]
    size, device = (SCALE * h, SCALE * w), lights.device
    forms = {
        "dmo": _raw(tuple(range(len(DMO_SLOTS))), size, "uint16", 1e-4),
        "dem": _raw((0,), size, "int16", 1.0),
    }
    layout = sent(forms, h, w)
    memory = torch.zeros(layout.size, dtype=torch.uint8, device=device)
    parts, found, usables = tensors(layout, memory), [], list[Any]()
    for name, form in forms.items():
        pixels = parts[f"{name}.pixels"].view(torch.int16)
        pixels.copy_(torch.randint(0, 3000, pixels.shape, device=device))
        parts[f"{name}.extent"].copy_(torch.tensor(size))
        for axis in (0, 1):
            along = torch.arange(parts[f"{name}.whole"].shape[1 + axis], device=device) * form.step
            parts[f"{name}.whole"][axis] = along[:, None] if axis == 0 else along
        parts[f"{name}.fraction"].fill_(0.5)
        usables.append(usable := compiled(Usable(form).to(device).eval(), device))
        standard = Standard(divided.normalise.lines(), divided.dtype)
        found.append(TileFile(name, form, size, usable, device, "auto", standard))

    def layers() -> Auxiliary:
        made = tuple(layer(parts) for layer in found)
        for part in usables:
            if isinstance(part, Compiled) and part.failed is not None:
                raise RuntimeError(part.failed)
        return made

    return layers


def _raw(channels: tuple[int, ...], shape: tuple[int, int], dtype: str, gain: float) -> LayerForm:
    """Pixels of a file without scale, offset, nodata and mask of their own."""
    count = len(channels)
    return LayerForm(
        "raw", channels, shape, dtype, (gain,) * count, (0.0,) * count, (None,) * count, masked=False
    )


def timed(network: Network, inputs: Sequence[Tensor], way: str, settings: StageSettings) -> dict[str, float]:
    """Time in ms and HR Mpix/s."""
    torch.compiler.reset()
    with _references() if way in ("eager", "compiled") else _as_it_is():
        run = network if way in ("kernels", "eager") else _compiled(network, way, settings)
        ms = milliseconds(lambda: run(*inputs), settings.device)
        if isinstance(run, Compiled) and run.failed is not None:
            raise RuntimeError(run.failed)
    return {"ms": ms, "hr_mpix_per_s": (8 * settings.side) ** 2 / ms * 1e-3}


def _compiled(network: Any, way: str, settings: StageSettings) -> Network:
    if settings.device == "cuda" and (settings.max_autotune or way == "free"):
        mode = "max-autotune-no-cudagraphs" if settings.max_autotune else "default"
        return torch.compile(network, mode=mode, fullgraph=True, dynamic=False)
    # Inductor on a CPU is another compiler, which the stand-in need not test
    return Compiled(network, "inductor" if settings.device == "cuda" else "aot_eager")


@contextmanager
def _references() -> Iterator[None]:
    with mock.patch.object(dispatch, "use_kernel", lambda *_, **__: False):
        yield


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def profile(
    network: Network, inputs: Sequence[Tensor], settings: StageSettings, runs: int = 3
) -> dict[str, Any]:
    """Milliseconds and calls of each device kernel by name, the longest first, of one run with the kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    on_gpu = settings.device == "cuda"
    for _ in range(2):
        network(*inputs)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with record(activities=activities) as recorded:
        for _ in range(runs):
            network(*inputs)
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in recorded.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found.append((microseconds / 1e3 / runs, event.count / runs, event.key[:100]))
    found.sort(reverse=True)
    return {"total_ms": sum(row[0] for row in found), "kernels": found[:NAMES]}
