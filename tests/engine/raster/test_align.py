"""The alignment on the host: by its definition, with the same bits however it is computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deeplight.engine.core.arrays import kept_memory
from deeplight.engine.raster import accel
from deeplight.engine.raster.align import align
from deeplight.kernels.align import reference

SIDES = [(1, 1), (1, 6), (5, 3), (23, 17)]


def given(h: int, w: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Features and offsets, some of which point far beyond the tile."""
    random = np.random.default_rng(h * 100 + w)
    values = random.normal(size=(batch, 10, 8 * h, 8 * w)).astype(np.float32)
    offset = random.normal(0, 1.5, (batch, 2, h, w)).astype(np.float32)
    offset[:, :, ::4] *= 40
    return values, offset


def gentle(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and offsets as a network gives them, under which neighbours are read beside each other."""
    values, offset = given(h, w)
    y, x = np.meshgrid(np.linspace(0, 3, h), np.linspace(0, 3, w), indexing="ij")
    offset[:] = np.stack([np.sin(x + y), np.cos(2 * x - y)]) * np.array([0.4, 1.5])[:, None, None, None]
    return values, offset


def moved(values: np.ndarray, offset: np.ndarray, threads: int = 1) -> np.ndarray:
    out = kept_memory(values.shape)
    align(values, offset, out, threads)
    return out


@pytest.mark.parametrize(("h", "w"), SIDES)
def test_it_is_the_kernels_definition(h: int, w: int, path: str) -> None:
    values, offset = given(h, w)
    want = reference.align(torch.from_numpy(values), offset=torch.from_numpy(offset)).numpy()
    # offsets of up to 500 pixels have 2^-15 of one as their last bit, times differences of up to 8
    np.testing.assert_allclose(moved(values, offset), want, rtol=0, atol=4e-4)
    near = np.clip(offset, -2, 2)
    want = reference.align(torch.from_numpy(values), offset=torch.from_numpy(near)).numpy()
    np.testing.assert_allclose(moved(values, near), want, rtol=0, atol=4e-5)


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
@pytest.mark.parametrize("make", [given, gentle])
@pytest.mark.parametrize(("h", "w"), SIDES)
def test_bits_do_not_depend_on_threads_or_the_native_module(
    h: int, w: int, make: Callable[[int, int], tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values, offset = make(h, w)
    offset[0, 0, 0, 0], offset[0, 1, 0, -1] = np.nan, np.inf
    made = [moved(values, offset, threads).tobytes() for threads in (1, 2, 5)]
    monkeypatch.setattr(accel, "NATIVE", None)
    with np.errstate(invalid="ignore"):
        made.append(moved(values, offset).tobytes())
    assert len(set(made)) == 1


def test_a_pixel_has_the_same_bits_in_every_tile() -> None:
    """Where the tile begins does not matter, as long as its rim is not reached."""
    values, offset = given(20, 20, 1)
    np.clip(offset, -2, 2, out=offset)
    whole = moved(values, offset)
    part = moved(values[:, :, 24:136, 16:152].copy(), offset[:, :, 3:17, 2:19].copy())
    inner = slice(32, -32)
    assert part[:, :, inner, inner].tobytes() == whole[:, :, 24:136, 16:152][:, :, inner, inner].tobytes()


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
def test_arrays_that_do_not_fit_are_refused() -> None:
    values, offset = given(2, 3, 1)
    assert accel.NATIVE is not None
    for one, by, out in (
        (values[0], offset[0, :, :1].copy(), values[0].copy()),
        (values[0], offset[0], values[0, :, :-8].copy()),
        (values[0, :, :-1].copy(), offset[0], values[0, :, :-1].copy()),
    ):
        with pytest.raises(ValueError, match=r"values|offset|out"):
            accel.NATIVE.align(one, by, out)
