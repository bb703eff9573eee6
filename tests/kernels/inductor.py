"""What torch.compile makes of the network for an H200, without a GPU: `python -m tests.kernels.inductor tiny fp16`.

Inductor generates its program and Triton compiles every kernel of it for sm_90; nothing runs. What PyTorch asks of a
driver is answered here, in this process alone. Prints how many kernels there are, and what they are called.

`python -m tests.kernels.inductor tiny fp16 FOLDER` compiles only what a run with tiles compiles for one shape of tile,
keeps it in FOLDER, and prints the CPU time that this took: called again, that of a second process.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._inductor import compile_fx, config
from torch._inductor.fx_passes import joint_graph
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._subclasses import fake_tensor
from torch.utils import _triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from deeplight.engine.core.forms import LayerForm, Wanted
from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.network.compiled import channels_last
from deeplight.engine.network.config import PRESETS
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.finished import Finished
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.precision import in_precision
from deeplight.engine.network.tile_layers import CHANNELS, Usable, empty_layer
from deeplight.kernels import launch
from tests.kernels import fake_gpu

SIDE = 64
"""LR pixels of the tile's side."""
H200 = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=140 << 30,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=60 << 20,
    name="NVIDIA H200",
    gcnArchName="",
)


def _always(value: Any) -> Any:
    """A function of its own each time: Dynamo knows functions of torch.cuda by identity."""
    return lambda *_, **__: value


def _without_driver() -> None:
    """Answer in the driver's place what is asked until a program runs."""
    asked_of_cuda = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H200,
        "get_device_capability": (H200.major, H200.minor),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
        **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "set_rng_state")),
    }
    asked_of_interface = {
        "is_available": True,
        "is_bf16_supported": True,
        "is_triton_capable": True,
        "current_device": 0,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "get_raw_stream": 0,
        "get_compute_capability": 90,
        "get_device_properties": H200,
        "synchronize": None,
        "raise_if_triton_unavailable": None,
    }
    interface: Any = device_interface.CudaInterface
    for name, value in asked_of_cuda.items():
        setattr(torch.cuda, name, _always(value))
    for name, value in asked_of_interface.items():
        setattr(interface, name, staticmethod(_always(value)))
    interface.Worker.get_device_properties = staticmethod(_always(H200))
    interface.Worker.current_device = staticmethod(_always(0))
    torch._C._cuda_getCurrentRawStream = _always(0)
    # a build for CPUs does not know that cuDNN writes channels-last
    torch._C._conv_determine_backend_memory_format = _always(torch.channels_last)
    fake_tensor.init_gpu_context = _always(None)
    _triton.has_triton = _always(True)
    joint_graph.lazy_init = _always(None)  # patterns of attention, traced on the device


def _compiling_for_sm90(compiled: list[str]) -> None:
    """Let Inductor's kernels be compiled, one configuration of each, and not be loaded."""
    gpu = mock.Mock()
    gpu.get_current_target.return_value = GPUTarget("cuda", 90, 32)
    gpu.get_current_device.return_value = 0
    driver.set_active(gpu)
    triton_helpers.set_driver_to_gpu = _always(None)

    def precompile(self: Any, *_: object, **__: object) -> None:
        self._precompile_config(self.configs[0])
        compiled.append(self.fn.__name__)

    triton_heuristics.CachingAutotuner.precompile = precompile


def kernels_of(preset: str, precision: str, *, tiles: bool = False) -> list[str]:
    """Names of the kernels of Inductor's programs for a tile of SIDE² LR pixels, all compiled: of the network, and of
    its parts as the path on the device has them; with `tiles`, of a run with tiles and no more. Once a process."""
    compiled: list[str] = []
    _without_driver()
    _compiling_for_sm90(compiled)
    launch.TRITON = True
    model = in_precision(DeepLightSR(PRESETS[preset]).eval(), precision)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def backend(module: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        # constants would be folded by computing them, on the device
        patches = {"deterministic": True, "joint_graph_constant_folding": False}
        compile_fx.compile_fx(module, example, config_patches=patches)
        return module  # nothing can run, and fake tensors need not

    def fuse(part: torch.nn.Module) -> Any:
        return torch.compile(part, backend=backend, fullgraph=True, dynamic=False)

    with fake_gpu.fake_cuda(), torch.no_grad():
        network = fake_gpu.moved(model)
        shapes = (input_shape(spec, 1, SIDE, SIDE) for spec in INPUTS)
        given = [channels_last(torch.empty(shape, device=fake_gpu.DEVICE)) for shape in shapes]
        if not tiles:
            fuse(network)(*given)
        lights = torch.empty(1, 1, SIDE, SIDE, device=fake_gpu.DEVICE)
        parts = Divided(network, fuse)
        if not tiles:
            parts(given, lights, known=False)
        # layers as they are aligned from raw pixels, with which the first part is spared
        size = (SIDE * SCALE, SIDE * SCALE)
        layers = tuple(empty_layer(name, size, fake_gpu.DEVICE, parts.dtype) for name in CHANNELS)
        outputs = parts(given, lights, known=False, aux=layers)
        if tiles:
            _around_the_network(fuse, [*outputs, *given])
    return compiled


def _around_the_network(fuse: Any, computed: list[torch.Tensor]) -> None:
    """Compile what is before and behind the network in a tile: pixels of seven bands and of elevation, one band out."""
    like = {"device": fake_gpu.DEVICE}
    for bands in (7, 1):
        line = (1.0,) * bands
        form = LayerForm(
            "raw", tuple(range(bands)), (SIDE * SCALE,) * 2, "int16", line, line, (None,) * bands
        )
        pixels = torch.empty(*form.shape, form.stride, dtype=torch.int16, **like)
        extent, mask = (
            torch.empty(2, dtype=torch.int32, **like),
            torch.empty(form.shape, dtype=torch.uint8, **like),
        )
        fuse(fake_gpu.moved(Usable(form).eval()))(pixels, extent, mask)
    wanted = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (-math.inf, math.inf))
    fuse(fake_gpu.moved(Finished(wanted).eval()))(*computed, torch.empty(1, 1, SIDE, SIDE, **like))


def main() -> None:
    """Compile for PRESET and PRECISION, with empty caches; or with those of FOLDER."""
    config.compile_threads = 1  # other processes would ask the driver
    preset, precision, *kept = sys.argv[1:]
    before = time.process_time()
    with nullcontext(kept[0]) if kept else tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TRITON_CACHE_DIR"] = folder
        names = kernels_of(preset, precision, tiles=bool(kept))
    print(f"{len(names)} kernels compiled for sm_90")
    if kept:
        print(f"{time.process_time() - before:.1f} s of CPU time, {before:.1f} s before for imports")
    print("\n".join(names))


if __name__ == "__main__":
    main()
