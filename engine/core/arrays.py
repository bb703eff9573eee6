"""Names of the arrays that rasters are worked on in, and the step from LR pixels to the HR pixels that they cover."""

from __future__ import annotations

import math
import mmap
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import SCALE

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Mask = NDArray[np.uint8]
"""1 where a pixel holds a value, 0 where it does not."""

_Element = TypeVar("_Element", bound=np.generic)


def to_hr(lr: NDArray[_Element]) -> NDArray[_Element]:
    """Each LR pixel of (…, h, w) as the SCALE × SCALE HR pixels that it covers: (…, SCALE · h, SCALE · w)."""
    repeated: NDArray[Any] = np.repeat(np.repeat(lr, SCALE, -2), SCALE, -1)
    return repeated


def kept_memory(shape: tuple[int, ...]) -> Floats:
    """A float32 array of zeros for a long life, taken from the system as it is touched.

    For large arrays NumPy asks for huge pages, and where the kernel then has to move memory to make them that takes
    longer than all that they save: 1 to 2 s of a CPU for 0.8 GB (a virtual machine, `defrag` at madvise).
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, 4 * count))
    return np.frombuffer(memory, np.float32, count).reshape(shape)
