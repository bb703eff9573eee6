"""Memory that is used again: never too small, never shared, and without influence on what is read."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.buffers import InputPool, Scratch
from deeplight.engine.raster.scene import Scene
from tests.scenes import options, write_scene


def test_scratch_is_the_threads_own_and_grows() -> None:
    scratch = Scratch()
    first = scratch.take("a", (2, 3), np.uint16)
    assert first.shape == (2, 3) and first.dtype == np.uint16
    first[:] = 7
    assert (scratch.take("a", (3, 1), np.uint16) == 7).all()
    assert scratch.take("a", (2, 100), np.float32).shape == (2, 100)
    others: list[bool] = []
    mine = scratch.take("b", (4,), np.uint8)
    thread = threading.Thread(
        target=lambda: others.append(np.shares_memory(scratch.take("b", (4,), np.uint8), mine))
    )
    thread.start()
    thread.join()
    assert others == [False]
    assert not np.shares_memory(scratch.take("a", (4,), np.uint8), mine)


def test_tensors_of_the_pool_are_apart_and_aligned() -> None:
    pool = InputPool()
    piece, tensors = pool.take(3, 5)
    assert {name: t.shape for name, t in tensors.items()} == {s.name: input_shape(s, 1, 3, 5) for s in INPUTS}
    start = piece.__array_interface__["data"][0]
    for value, tensor in enumerate(tensors.values()):
        assert (tensor.__array_interface__["data"][0] - start) % 64 == 0 and tensor.flags.c_contiguous
        tensor[:] = value
    assert (
        [float(t.min()) for t in tensors.values()]
        == [float(t.max()) for t in tensors.values()]
        == [*range(len(INPUTS))]
    )


def test_a_piece_comes_again_only_where_it_is_large_enough() -> None:
    pool = InputPool()
    piece, _ = pool.take(4, 4)
    other, _ = pool.take(4, 4)
    assert not np.shares_memory(piece, other)
    pool.give(piece)
    assert np.shares_memory(pool.take(3, 4)[0], piece)
    pool.give(piece)
    assert not np.shares_memory(pool.take(4, 5)[0], piece)


@pytest.mark.parametrize("layers", ["all", "some bands", "no DEM", "none"])
def test_what_was_in_memory_before_is_gone(tmp_path: Path, layers: str) -> None:
    """Also where layers, bands or pixels are missing, and beyond the scene."""
    scene = options(write_scene(tmp_path, 13, 17))
    change = {
        "all": {},
        "some bands": {"dmo_bands": {"red": 3, "nir": 1}},
        "no DEM": {"dem": None},
        "none": {"dem": None, "dmo": None},
    }[layers]
    from dataclasses import replace

    with Scene.open(replace(scene, **change)) as opened:
        for window in (Window(-3, 5, 11, 9), Window(4, 12, 30, 21)):
            _, dirty = InputPool().take(*window.shape)
            for tensor in dirty.values():
                tensor[:] = np.nan
            got, want = opened.read_inputs(window, dirty), opened.read_inputs(window)
            for name, tensor in want.items():
                assert got[name] is dirty[name]
                assert np.isfinite(tensor).all()
                np.testing.assert_array_equal(got[name], tensor)
