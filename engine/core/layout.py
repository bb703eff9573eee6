"""Arrays that lie one behind the other in one piece of memory, so that a tile crosses a link in one copy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 256
"""Bytes to whose multiples parts are aligned: what a GPU's allocator gives, and more than any kernel asks for."""


@dataclass(frozen=True)
class Part:
    """One array: its name, shape and NumPy's name of its element type, as in "uint16"."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Layout:
    """Where each part begins. Two layouts of the same parts are equal, and may stand for each other.

    size: of the whole in bytes.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(parts)
        self.starts: dict[str, int] = {}
        at = 0
        for part in self.parts:
            self.starts[part.name] = at
            at += -(-part.bytes // _ALIGNED) * _ALIGNED
        self.size = at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def arrays(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Views of the parts in `memory` (size,)."""
        return {
            p.name: memory[self.starts[p.name] :][: p.bytes].view(p.dtype).reshape(p.shape)
            for p in self.parts
        }
