"""Pixel loops in C++; see native/kernels.hpp. All arrays C-contiguous; outputs are allocated by the caller."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def to_physical(
    raw: NDArray[Any],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    nodata: NDArray[np.float64],
    mask: NDArray[np.uint8] | None,
    values: NDArray[np.float32],
    valid: NDArray[np.uint8],
    low: float,
    high: float,
    threads: int = 1,
) -> None: ...
def resample(
    values: NDArray[np.float32],
    mask: NDArray[np.uint8],
    row: int,
    col: int,
    nodes: Sequence[NDArray[np.float64]],
    places: Sequence[Sequence[int]],
    out_row: int,
    out_col: int,
    out: NDArray[np.float32],  # whose planes may lie apart
    out_mask: NDArray[np.uint8],
    threads: int = 1,
) -> None: ...
def area_mean(
    values: NDArray[np.float32],
    mask: NDArray[np.uint8],
    fy: int,
    fx: int,
    out: NDArray[np.float32],
    out_mask: NDArray[np.uint8],
    threads: int = 1,
) -> None: ...
def align(
    values: NDArray[np.float32], offset: NDArray[np.float32], out: NDArray[np.float32], threads: int = 1
) -> None: ...
