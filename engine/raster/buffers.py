"""Memory that is used again: large arrays come from the kernel anew each time, and clearing their pages took as long
as decoding the pixels (0.8 s of 1.6 s CPU time for a tile of 296² LR pixels with a DMO of 30 m)."""

from __future__ import annotations

import math
import queue
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import INPUTS, input_shape

_ALIGNED = 16
"""Float32 values to whose multiples tensors are aligned: 64 bytes, a cache line."""


class Scratch(threading.local):
    """Arrays of the calling thread. What `take` gives is overwritten when the thread takes that name again."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content."""
        need = math.prod(shape) * np.dtype(dtype).itemsize
        array = self._arrays.get(name)
        if array is None or array.size < need:
            array = self._arrays[name] = np.empty(need, np.uint8)
        return array[:need].view(dtype).reshape(shape)


class InputPool:
    """Memory for the inputs of tiles (spec.INPUTS, batch of 1), to be handed back once a tile is computed.

    Threads may take and give at the same time. It holds as many pieces as were ever out together.
    """

    def __init__(self) -> None:
        self._spare: queue.SimpleQueue[Floats] = queue.SimpleQueue()

    def take(self, height: int, width: int) -> tuple[Floats, dict[str, Floats]]:
        """A piece, and in it tensors of any content for a tile of height × width LR pixels."""
        shapes = {spec.name: input_shape(spec, 1, height, width) for spec in INPUTS}
        sizes = {name: -(-math.prod(shape) // _ALIGNED) * _ALIGNED for name, shape in shapes.items()}
        piece = self._piece(sum(sizes.values()))
        tensors, at = {}, 0
        for name, shape in shapes.items():
            tensors[name] = piece[at : at + math.prod(shape)].reshape(shape)
            at += sizes[name]
        return piece, tensors

    def give(self, piece: Floats) -> None:
        """Hand a piece back; nothing may use its tensors any more."""
        self._spare.put(piece)

    def _piece(self, size: int) -> Floats:
        try:
            piece = self._spare.get_nowait()
        except queue.Empty:
            return np.empty(size, np.float32)
        return piece if piece.size >= size else np.empty(size, np.float32)
