from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from deeplight.engine.raster import accel
from deeplight.engine.raster.convert import to_physical

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
CAST = ["bool", "float16", "int64", "uint64", ">u2", ">f4"]
# Odd sizes, and more pixels than one chunk of the native loop.
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 37, 61), (3, 0, 4), (4, 1, 2049)]


def pixels(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "ui":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, dtype=kind.newbyteorder("="), endpoint=True).astype(
            kind
        )
    raw = rng.normal(0, 100, shape).astype(kind)
    raw[rng.random(shape) < 0.05] = np.nan
    raw[rng.random(shape) < 0.02] = np.inf
    return raw


def reference(raw, scale, offset, nodata, mask):
    """One pixel after the other, in float64."""
    values = np.zeros(raw.shape, np.float64)
    valid = np.zeros(raw.shape[1:], np.uint8)
    for r in range(raw.shape[1]):
        for c in range(raw.shape[2]):
            physical = [float(raw[b, r, c]) * scale[b] + offset[b] for b in range(len(raw))]
            holes = [nodata[b] is not None and float(raw[b, r, c]) == nodata[b] for b in range(len(raw))]
            if np.isfinite(physical).all() and not any(holes) and (mask is None or mask[r, c]):
                values[:, r, c], valid[r, c] = physical, 1
    return values, valid


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES + CAST)
def test_matches_a_loop(dtype: str, shape: tuple[int, int, int], path: str) -> None:
    raw = pixels(dtype, shape)
    bands = shape[0]
    scale = np.linspace(0.5, 2.75e-5, bands)
    offset = np.linspace(-0.2, 3.0, bands)
    nodata: list[float | None] = [None] * bands
    if raw.size and np.isfinite(raw.flat[0]):
        nodata[0] = float(raw.flat[0])
    mask = (np.random.default_rng(1).random(shape[1:]) < 0.8).astype(np.uint8) * 255
    values, valid = to_physical(raw, scale, offset, nodata, mask)
    expected, expected_valid = reference(raw, scale, offset, nodata, mask)
    assert values.dtype == np.float32 and valid.dtype == np.uint8
    np.testing.assert_array_equal(valid, expected_valid)
    # Three float32 roundings of the product's size, which may cancel against the offset.
    size = np.abs(np.nan_to_num(raw.astype(np.float64), posinf=0, neginf=0)) * scale[:, None, None]
    assert (np.abs(values - expected) <= 2e-7 * (size + np.abs(offset)[:, None, None])).all()


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
@pytest.mark.parametrize("with_mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_and_numpy_give_the_same_bits(
    dtype: str, with_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = pixels(dtype, (5, 83, 71))
    scale, offset = np.array([1, 0.1, 2.75e-5, -3, 1e30]), np.array([0, 5, -0.2, 1e6, 0])
    nodata = [None, float("nan"), 0.0, 7.0, -9999.0]
    mask = np.random.default_rng(2).random((83, 71)) < 0.7 if with_mask else None
    limits = (-1e10, 3e37) if with_mask else (-np.inf, np.inf)
    native = to_physical(raw, scale, offset, nodata, mask, limits=limits)
    threaded = to_physical(raw, scale, offset, nodata, mask, limits=limits, threads=3)
    monkeypatch.setattr(accel, "NATIVE", None)
    plain = to_physical(raw, scale, offset, nodata, mask, limits=limits)
    for ours, name in ((native, "native"), (threaded, "three threads")):
        np.testing.assert_array_equal(ours[0].view(np.uint32), plain[0].view(np.uint32), err_msg=name)
        np.testing.assert_array_equal(ours[1], plain[1], err_msg=name)
    assert plain[1].any()


def test_values_beyond_limits_are_invalid_in_all_bands(path: str) -> None:
    raw = np.array([[[-3, -2, 0, 4, 5, 4]], [[0, 0, 0, 0, 0, 9]]], np.float32)
    values, valid = to_physical(raw, [1, 1], [0, 0], [None, None], limits=(-2, 4))
    assert valid.tolist() == [[0, 1, 1, 1, 0, 0]]
    assert values.tolist() == [[[0, -2, 0, 4, 0, 0]], [[0, 0, 0, 0, 0, 0]]]
    values, valid = to_physical(raw[:1], [1e38], [0], [None], limits=(-np.inf, 1e300))
    assert valid.tolist() == [[1, 1, 1, 0, 0, 0]]  # what float32 cannot hold, whatever the limits


@pytest.mark.parametrize(
    ("dtype", "nodata", "hit"),
    [
        ("uint8", -9999.0, False),
        ("uint8", 255.5, False),
        ("uint8", 1e300, False),
        ("uint16", float("inf"), False),
        ("uint32", 4294967295.0, True),
        ("int16", -32768.0, True),
        ("float32", -3.4028234663852886e38, True),
        ("float32", 0.1, True),  # 0.1 in float32 is not 0.1
        ("float64", 0.1, True),
        ("float32", float("nan"), False),
    ],
)
def test_nodata_is_compared_in_the_raw_dtype(dtype: str, nodata: float, hit: bool, path: str) -> None:
    kind = np.dtype(dtype)
    raw = np.array([[[1, 2, 3]]], kind)
    raw[0, 0, 1] = kind.type(nodata) if hit else 2
    _, valid = to_physical(raw, [1], [0], [nodata])
    assert valid.tolist() == [[1, 0 if hit else 1, 1]]


def test_a_hole_in_one_band_clears_all(path: str) -> None:
    raw = np.array([[[1, 2, 3, 4]], [[5, np.nan, np.inf, -1]]], np.float32)
    values, valid = to_physical(raw, [2, 1], [1, 0], [4, -1])
    assert valid.tolist() == [[1, 0, 0, 0]]
    assert values.tolist() == [[[3, 0, 0, 0]], [[5, 0, 0, 0]]]


def test_values_beyond_float32_are_invalid(path: str) -> None:
    values, valid = to_physical(np.array([[[1e300, 1.0]]]), [1], [0], [None])
    assert valid.tolist() == [[0, 1]] and values.tolist() == [[[0, 1]]]


def test_large_integers_keep_their_digits(path: str) -> None:
    raw = np.array([[[4294967294, 4294967290]]], np.uint32)
    values, _ = to_physical(raw, [1], [-4294967290], [None])
    assert values.tolist() == [[[4, 0]]]


def test_views_are_read_where_they_are(path: str) -> None:
    whole = pixels("int16", (6, 40, 50))
    part = whole[::2, 3:33:3, ::-1]
    values, valid = to_physical(part, [1] * 3, [0] * 3, [None] * 3)
    np.testing.assert_array_equal(values, part.astype(np.float32))
    assert valid.all()


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]"])
def test_unreal_pixels_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match="must be real numbers"):
        to_physical(np.zeros((1, 2, 2), dtype), [1], [0], [None])


def test_shapes_that_do_not_fit_are_refused() -> None:
    raw = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(ValueError, match="raw has 2 bands"):
        to_physical(raw, [1], [0, 0], [None, None])
    with pytest.raises(ValueError, match="mask has shape"):
        to_physical(raw, [1, 1], [0, 0], [None, None], np.ones((4, 3)))
    with pytest.raises(ValueError, match="expected \\(bands"):
        to_physical(raw[0], [1], [0], [None])


def test_the_environment_variable_leaves_the_native_module_out() -> None:
    code = "from deeplight.engine.raster import accel; import sys; sys.exit(accel.NATIVE is not None)"
    env = {"DEEPLIGHT_NO_NATIVE": "1", "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
