"""PyTorch: DeepLightSR from configuration and weights, on a CPU, or through the kernels on CUDA.

Every precision comes from the same weights (`network.precision`). The operators deeplight::… run their reference on a
CPU and the Triton kernels on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.machine import cpu_has_bf16
from deeplight.engine.core.spec import INPUTS, LIGHTS_ALONE, OF_LIGHTS_ALONE, OFFSET, OUTPUTS, SUGGESTED
from deeplight.engine.network.alone import LightsAlone
from deeplight.engine.network.compiled import channels_last, compiled
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.precision import in_precision
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends import cuda_index
from deeplight.engine.runtime.backends.base import Backend, Resident
from deeplight.engine.runtime.cuda_device import CudaDevice, kernel_versions
from deeplight.engine.runtime.models import load_network
from deeplight.kernels.dispatch import never_interpreted
from deeplight.kernels.float32 import exact_float32

_GRAPHS = 16
"""CUDA graphs that are kept, one a tile shape."""

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class TorchBackend(Backend):
    """Runs the network of a model folder, a training run's too."""

    name: ClassVar[str] = "torch"
    takes_offset: ClassVar[bool] = True

    def __init__(self, compute: Compute, device: torch.device, threads_before: int | None = None) -> None:
        """threads_before: PyTorch's number of threads, a setting of the whole process, that `close` restores."""
        self.device = str(device)
        self._on_gpu = self.compiles = device.type == "cuda"
        self._threads_before = threads_before
        self._place, self._resident = device, compute
        self._compute = self._in_graphs(compute)
        self._alone: Compute | None = None
        self._cancelled = self._beside = False

    @property
    def _divided(self) -> Divided | None:
        """The network in parts; None where its layers suggest nothing."""
        found: Divided | None = getattr(self._resident, "divided", None)
        return found

    def _in_graphs(self, compute: Compute) -> Compute:
        return _Graphs(compute, self._place) if self._on_gpu else compute

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Build the network from its weights, see Backend.open.

        device: "cpu", "cuda" or, as one of several, "cuda:1".
        """
        place = torch.device(device)
        if place.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            cuda_index(device, count, f"PyTorch {torch.__version__}")
        if place.type == "cpu" and precision == "bf16" and not cpu_has_bf16():
            raise InputError('this CPU has no bfloat16 arithmetic: use `precision="fp32"`')
        network, before = load_network(artifact), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return cls(Computing(network, precision, place, compiling=compiling), place, before)
        except BaseException:
            torch.set_num_threads(before)
            raise

    def split(
        self,
        streams: int,
        threads: int,
        outputs: Sequence[str] | None = None,
        *,
        layers: bool = True,
        offset: bool = False,
        suggested: bool = False,
    ) -> None:
        """One tile at a time, see Backend.split; without what belongs to layers where there are none."""
        super().split(streams, threads, outputs, layers=layers, offset=offset, suggested=suggested)
        # on a GPU dates share them on the device path; beside it, a graph would be captured with and without them
        self.suggests = suggested and not self._on_gpu and self._divided is not None
        alone = getattr(self._resident, "alone", None)
        spared = not layers and outputs is not None and set(outputs) <= set(OF_LIGHTS_ALONE)
        self._alone = self._in_graphs(alone) if spared and alone is not None and not self._beside else None

    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        if self._cancelled:
            raise DeepLightError("PyTorch was asked to stop")
        h, w = inputs["ntl"].shape[-2:]
        compute, given, made = self._compute, tuple(s.name for s in INPUTS), tuple(s.name for s in OUTPUTS)
        if self._alone is not None:
            compute, given, made = self._alone, LIGHTS_ALONE, OF_LIGHTS_ALONE
        elif OFFSET.name in inputs:
            given = (*given, OFFSET.name)
        try:
            # also in a reduced precision: its islands are promised in float32
            with exact_float32(), torch.inference_mode():
                tensors = [torch.from_numpy(inputs[name]) for name in given]
                if SUGGESTED.name in inputs:
                    assert self._divided is not None
                    lights = torch.from_numpy(inputs[SUGGESTED.name])
                    results = self._divided(tensors, lights, known=True)
                else:
                    results = compute(tensors)
            by_name = dict(zip(made, results, strict=True))
            return [by_name[name].to("cpu", torch.float32).contiguous().numpy() for name in outputs]
        except RuntimeError as e:
            remedy = "; use smaller `tiles`" if "memory" in str(e).lower() else ""
            raise DeepLightError(
                f"PyTorch failed on a tile of {h}×{w} LR pixels: {_first_line(e)}{remedy}"
            ) from None

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        """See Backend.suggest."""
        if not self.suggests or self._divided is None:
            return super().suggest(inputs)
        with exact_float32(), torch.inference_mode():
            found = self._divided.suggest([torch.from_numpy(inputs[s.name]) for s in INPUTS])
        return np.ascontiguousarray(found.numpy())

    def versions(self) -> dict[str, str]:
        """PyTorch's version; on a GPU also Triton's and a digest of the kernels' configurations, which decide bits."""
        return kernel_versions(self._place) if self._on_gpu else {"torch": str(torch.__version__)}

    def origins(self) -> dict[str, str]:
        """The GPU, which decides bits besides versions and the model; nothing on a CPU."""
        if not self._on_gpu:
            return {}
        gpu = torch.cuda.get_device_properties(torch.device(self.device))
        return {"the GPU": f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}"}

    def fallbacks(self) -> dict[str, str]:
        """Tile shapes that run uncompiled although a compiler was asked, as text, and why."""
        return dict(getattr(self._resident, "fallbacks", {}))

    def resident(self) -> Resident | None:
        """The model for the device path; None on a CPU."""
        if not self._on_gpu:
            return None
        alone = getattr(self._resident, "alone", None)
        # beside the device path come single tiles of shapes of their own, for each of which compiling takes far longer
        self._beside, self._alone = True, None
        self._compute = getattr(self._resident, "uncompiled", self._compute)
        return Resident(
            CudaDevice(self._place),
            self._resident,
            compiling=self.compiling,
            alone=alone,
            divided=self._divided,
        )

    def cancel(self) -> None:
        """Refuse all further runs."""
        self._cancelled = True

    def close(self) -> None:
        """Set PyTorch's number of threads as it was. Further calls are not allowed."""
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)


class Computing:
    """The network in a precision, on a device, as a function of the tensors of `spec.INPUTS`, and `spec.OFFSET` where
    that is given.

    compiling: on CUDA, let Inductor fuse what is between the kernels (`network.compiled`).
    """

    def __init__(
        self, model: DeepLightSR, precision: str, device: torch.device, *, compiling: bool = True
    ) -> None:
        placed = in_precision(model, precision).to(device)
        placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def fuse(part: nn.Module) -> Callable[..., Any]:
            return compiled(part, device) if compiling else part

        self._placed, self._device = placed, device
        self._run, self._alone = fuse(placed), fuse(LightsAlone(placed))
        self.divided = Divided(placed, fuse) if placed.config.align else None

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The network's outputs."""
        return _called(self._run, inputs)

    def uncompiled(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """As a call, from tensors that lie anywhere, without compiling anything."""
        return _called(self._placed, [x.to(self._device) for x in inputs])

    def alone(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """OF_LIGHTS_ALONE from LIGHTS_ALONE, in order, for tiles without daytime bands and elevation."""
        return _called(self._alone, inputs)

    @property
    def fallbacks(self) -> dict[str, str]:
        """Tile shapes that run uncompiled although a compiler was asked, as text, and why."""
        parts = (self._run, self._alone, self.divided)
        return {shape: why for part in parts for shape, why in getattr(part, "fallbacks", {}).items()}


def _called(run: Callable[..., Any], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    with never_interpreted():
        result: Sequence[Tensor] = run(*(channels_last(x) for x in inputs))
    return result


class _Graphs:
    """One CUDA graph per tile shape, over buffers that are allocated once: no allocation and no launch per tile.

    Inputs go through pinned memory. The oldest graph is dropped where there are more than `_GRAPHS` shapes.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute, self._device = compute, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._captured: dict[tuple[int, ...], tuple[Any, list[Tensor], list[Tensor], Sequence[Tensor]]] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        key = (*inputs[0].shape, len(inputs))
        if key not in self._captured:
            if len(self._captured) >= _GRAPHS:
                del self._captured[next(iter(self._captured))]
            self._captured[key] = self._capture(inputs)
        graph, pinned, resident, results = self._captured[key]
        for source, page, target in zip(inputs, pinned, resident, strict=True):
            page.copy_(source)
            with torch.cuda.stream(self._stream):
                target.copy_(page, non_blocking=True)
        with torch.cuda.stream(self._stream):
            graph.replay()
        self._stream.synchronize()
        return results

    def _capture(self, inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor], list[Tensor], Sequence[Tensor]]:
        pinned = [torch.empty_like(channels_last(x)).pin_memory() for x in inputs]
        with torch.cuda.stream(self._stream):
            resident = [channels_last(x).to(self._device) for x in inputs]
            for _ in range(
                3
            ):  # compiles the kernels and lets libraries choose, which a capture must not contain
                self._compute(resident)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # other threads may pin memory and wait for events meanwhile: only this one is being recorded
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                results = self._compute(resident)
        return graph, pinned, resident, results


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
