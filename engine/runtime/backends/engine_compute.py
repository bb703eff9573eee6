"""An engine of TensorRT as a function of tensors on its GPU, for the device path; PyTorch gives memory and stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape

if TYPE_CHECKING:
    from deeplight.engine.runtime.backends.cuda_tiles import EngineBackend


@dataclass
class _Shape:
    """The context of a shape, and the memory that it reads, writes and works in, which stays where it is."""

    context: Any
    inputs: list[Tensor]
    outputs: list[Tensor]
    scratch: Tensor


class EngineCompute:
    """Called with the tensors of spec.INPUTS, of any layout, it returns those of spec.OUTPUTS, which the next call of
    that shape overwrites. It works on the stream that is current, and may be captured after a first call of a shape.
    """

    def __init__(self, backend: EngineBackend, device: torch.device, stream: Callable[[], int]) -> None:
        """stream: the current one's address."""
        self._backend, self._device, self._stream = backend, device, stream
        self._shapes: dict[tuple[int, int, int], _Shape] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The network's outputs. Raises RuntimeError where the library refuses."""
        batch, _, h, w = inputs[0].shape
        new = (batch, h, w) not in self._shapes
        if new:
            self._shapes[batch, h, w] = self._made(batch, h, w)
        made = self._shapes[batch, h, w]
        # a copy that is needed anyway: engines read channels one after the other
        for given, place in zip(inputs, made.inputs, strict=True):
            place.copy_(given)
        self._backend.execute(made.context, self._stream())
        if new:
            self._backend.compiled(self._stream())
        return made.outputs

    def _made(self, batch: int, h: int, w: int) -> _Shape:
        def memory(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self._device)

        context, size = self._backend.fitted(batch, h, w, self._stream())
        inputs, outputs = (
            [memory(*input_shape(s, batch, h, w)) for s in specs] for specs in (INPUTS, OUTPUTS)
        )
        scratch = memory(max(size, 1), dtype=torch.uint8)
        for spec, tensor in zip((*INPUTS, *OUTPUTS), (*inputs, *outputs), strict=True):
            context.set_tensor_address(spec.name, tensor.data_ptr())
        if size:
            context.set_device_memory(scratch.data_ptr(), size)
        return _Shape(context, inputs, outputs, scratch)

    def keep(self, sides: Collection[tuple[int, int]]) -> None:
        """Let go of the contexts of all tiles but those of these LR sides. Nothing may be running, nor captured graphs
        of them be replayed again."""
        self._shapes = {key: made for key, made in self._shapes.items() if key[1:] in sides}

    def close(self) -> None:
        """Let go of all contexts, before the engine goes."""
        self.keep(())
