"""Raw pixels as a file holds them → physical units in float32, and a validity mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.raster import accel

_WIDENED: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.bool_): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.int64): np.dtype(np.float64),
    np.dtype(np.uint64): np.dtype(np.float64),
    np.dtype(np.longdouble): np.dtype(np.float64),
}


def to_physical(
    raw: NDArray[Any],
    scale: ArrayLike,
    offset: ArrayLike,
    nodata: Sequence[float | None],
    mask: NDArray[Any] | None = None,
    *,
    limits: tuple[float, float] = (-np.inf, np.inf),
    threads: int = 1,
    into: tuple[Floats, Mask] | None = None,
) -> tuple[Floats, Mask]:
    """Physical values raw · scale + offset of every band, and the pixels where all bands have one.

    raw: (C, H, W), any real dtype. scale, offset: (C,). nodata: one number or None per band, compared in
    the raw dtype; a number that the dtype cannot hold marks nothing. mask: (H, W), nonzero = valid. The
    arithmetic is float32, or float64 for integers of 32 bits and more and for float64; 64-bit integers go
    through float64, so above 2**53 they lose digits. limits: lowest and highest value that is valid. into: arrays
    for the result, which the native module uses.

    Returns (C, H, W) float32, 0 in all bands of an invalid pixel, and (H, W) uint8, 1 = valid: every band
    finite, within the limits and not nodata, and the mask nonzero. The native module and NumPy give the same bits.

    Raises TypeError for a dtype that is not real and ValueError for shapes that do not fit.
    """
    raw = _supported(raw)
    bands = raw.shape[0]
    scale = np.ascontiguousarray(scale, np.float64)
    offset = np.ascontiguousarray(offset, np.float64)
    if scale.shape != (bands,) or offset.shape != (bands,) or len(nodata) != bands:
        raise ValueError(
            f"raw has {bands} bands; scale {scale.shape}, offset {offset.shape}, nodata ({len(nodata)},)"
        )
    if mask is not None and mask.shape != raw.shape[1:]:
        raise ValueError(f"mask has shape {mask.shape}, raw {raw.shape}")
    sentinels = np.array([sentinel(value, raw.dtype) for value in nodata], np.float64)
    if accel.NATIVE is None:
        return _to_physical_numpy(raw, scale, offset, sentinels, mask, limits)
    known = None if mask is None else as_mask(mask)
    values, valid = into or (np.empty(raw.shape, np.float32), np.empty(raw.shape[1:], np.uint8))
    accel.NATIVE.to_physical(raw, scale, offset, sentinels, known, values, valid, *limits, threads)
    return values, valid


def as_mask(mask: NDArray[Any]) -> Mask:
    """A contiguous uint8 mask: nonzero = valid. No copy where it is one already."""
    if mask.dtype != np.uint8:
        mask = mask != 0
        return np.ascontiguousarray(mask).view(np.uint8)
    return np.ascontiguousarray(mask)


def _supported(raw: NDArray[Any]) -> NDArray[Any]:
    """Contiguous, in native byte order, in one of the eight dtypes that have a loop."""
    if raw.dtype.kind not in "buif":
        raise TypeError(f"raw has dtype {raw.dtype}; pixels must be real numbers")
    if raw.ndim != 3:
        raise ValueError(f"raw has shape {raw.shape}; expected (bands, height, width)")
    native = raw.dtype.newbyteorder("=")
    dtype: np.dtype[Any] = _WIDENED.get(native, native)
    return np.ascontiguousarray(raw, dtype)


def sentinel(nodata: float | None, dtype: np.dtype[Any]) -> float:
    """The nodata value as `dtype` holds it, NaN where there is none to compare with."""
    if nodata is None or np.isnan(nodata):
        return float("nan")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(nodata))
    limits = np.iinfo(dtype)
    return float(nodata) if limits.min <= nodata <= limits.max and nodata == int(nodata) else float("nan")


def _to_physical_numpy(
    raw: NDArray[Any],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    sentinels: NDArray[np.float64],
    mask: NDArray[Any] | None,
    limits: tuple[float, float],
) -> tuple[Floats, Mask]:
    wide = raw.dtype in (np.dtype(np.uint32), np.dtype(np.int32), np.dtype(np.float64))
    real = np.float64 if wide else np.float32
    values = np.empty(raw.shape, np.float32)
    valid = np.ones(raw.shape[1:], np.bool_) if mask is None else mask != 0
    with np.errstate(over="ignore", invalid="ignore"):
        for band, a, b, sentinel, out in zip(raw, scale, offset, sentinels, values, strict=True):
            np.add(np.multiply(band, real(a), dtype=real), real(b), out=out, casting="same_kind")
            valid &= np.isfinite(out) & (out >= np.float32(limits[0])) & (out <= np.float32(limits[1]))
            if not np.isnan(sentinel):
                valid &= band != raw.dtype.type(sentinel)
    values[:, ~valid] = 0
    return values, valid.view(np.uint8)
