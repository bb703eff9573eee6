"""Blocks that threads share: the same pixels, each decoded once, whatever happens to who decodes them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster import shared_blocks
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.scene import Scene
from deeplight.engine.raster.shared_blocks import BlockStore, Decoded, unit_of
from deeplight.engine.raster.source import open_raster
from tests.engine.device.test_layers import CASES
from tests.scenes import write_raster

KINDS: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 32},
    "strips": {"blockysize": 3},
    "interleaved": {"interleave": "pixel", "tiled": True, "blockxsize": 64, "blockysize": 64},
    "mask": {"tiled": True, "blockxsize": 64, "blockysize": 64, "mask": True},
}


def written(folder: Path, kind: str, bands: int = 3) -> str:
    how, rng = dict(KINDS[kind]), np.random.default_rng(0)
    if how.pop("mask", None):
        how["mask"] = rng.random((211, 330)) > 0.2
    values = rng.integers(0, 60000, (bands, 211, 330)).astype(np.uint16)
    return str(write_raster(folder / "a.tif", values, **how))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bands", [(1, 2, 3), (3, 1), (2,)])
def test_pixels_are_those_of_a_reader_alone(
    kind: str, bands: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_blocks, "_LEAST_SIDE", 64)
    rng = np.random.default_rng(1)
    with open_raster(written(tmp_path, kind), "DMO") as alone, open_raster(alone.name, "DMO") as shared:
        shared.share(BlockStore(2_000_000), bands)
        assert shared._shared is not None
        for _ in range(30):
            row, col = int(rng.integers(0, 200)), int(rng.integers(0, 320))
            window = Window(row, col, int(rng.integers(1, 212 - row)), int(rng.integers(1, 331 - col)))
            want, mask = alone.read(window, bands)
            got, known = shared.read(window, bands)
            np.testing.assert_array_equal(got, want)
            assert (mask is None) == (known is None)
            into = np.full((*window.shape, 8), 7, np.uint16)
            again = shared.read_pixels(window, bands, into)
            np.testing.assert_array_equal(into[..., : len(bands)].transpose(2, 0, 1), want)
            if mask is not None and known is not None and again is not None:
                np.testing.assert_array_equal(known != 0, mask != 0)
                np.testing.assert_array_equal(again != 0, mask != 0)
        other, _ = shared.read(Window(0, 0, 9, 9), (1, 3))  # of other bands, which are not in the store
        np.testing.assert_array_equal(other, alone.read(Window(0, 0, 9, 9), (1, 3))[0])


@pytest.mark.parametrize("name", ["usual", "10 m", "rotated", "bytes", "a file a band"])
def test_scenes_are_read_alike(name: str, tmp_path: Path) -> None:
    options, window = CASES[name][0](tmp_path), Window(-2, 3, 14, 17)
    with Scene.open(options) as alone, Scene.open(options) as shared:
        alone.prepare_reading(64)
        shared.prepare_reading(64, 256)
        want = alone.read_inputs(window)
        with ThreadPoolExecutor(4) as threads:
            for got in threads.map(lambda _: shared.read_inputs(window), range(4)):
                for key, values in want.items():
                    np.testing.assert_array_equal(got[key], values, err_msg=key)


def test_large_blocks_and_several_dtypes_are_not_shared(tmp_path: Path) -> None:
    with open_raster(written(tmp_path, "tiles"), "DMO") as raster:
        raster.share(BlockStore(1000), (1, 2, 3))
        assert raster._shared is None
        raster.share(BlockStore(1 << 30), (1, 2, 3))
        assert raster._shared is not None
        raster.dtypes = ("uint16", "int16", "uint16")
        raster.share(BlockStore(1 << 30), (1, 2, 3))
        assert raster._shared is None
        raster.share(None, (1, 2, 3))
        assert raster._shared is None


@pytest.mark.parametrize(
    ("block", "size", "pixel_bytes", "unit"),
    [
        ((512, 512), (9000, 9000), 14, (512, 512)),
        ((1, 9000), (9000, 9000), 14, (133, 9000)),
        ((256, 256), (9000, 9000), 16, (512, 512)),
        ((64, 64), (9000, 9000), 2, (512, 512)),
        ((128, 128), (100, 50), 4, (500, 500)),
        ((2048, 2048), (9000, 9000), 14, (2048, 2048)),
    ],
)
def test_what_is_decoded_at_once(
    block: tuple[int, int], size: tuple[int, int], pixel_bytes: int, unit: tuple[int, int]
) -> None:
    assert unit_of(block, size, pixel_bytes) == unit


@pytest.mark.parametrize("bands", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_counted_as_it_is_taken(
    kind: str, bands: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels are as wide as blocks behind a row of packs fit."""
    monkeypatch.setattr(shared_blocks, "_LEAST_SIDE", 128)
    with open_raster(written(tmp_path, kind, bands), "DMO") as raster:
        store, layer = BlockStore(1 << 30), Layer(raster, range(1, bands + 1))
        layer.raster.share(store, layer.bands)
        window = Window(5, 7, 90, 140)
        layer.read_native(window)
        taken = sum(
            part.nbytes for held in store._held.values() for part in held.result() if part is not None
        )
        assert layer.cached_bytes(window, shared=True) == taken
        assert layer.cached_bytes(window) != taken


def one(value: int, size: int = 10) -> Decoded:
    return np.full((size, 1, 1), value, np.uint8), None


def test_what_many_ask_for_is_made_once() -> None:
    store, made, started = BlockStore(1000), [], threading.Barrier(8)

    def make() -> Decoded:
        made.append(1)
        return one(5)

    def ask(_: int) -> int:
        started.wait()
        return int(store.get("key", make)[0][0, 0, 0])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [5] * 8
    assert len(made) == 1


def test_what_was_not_used_for_the_longest_time_goes_first() -> None:
    store, made = BlockStore(35), list[int]()

    def get(key: int) -> None:
        store.get(key, lambda: made.append(key) or one(key))  # type: ignore[func-returns-value]

    for key in (1, 2, 3, 1, 4, 1, 3, 2):
        get(key)
    assert made == [1, 2, 3, 4, 2]


def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    store, waiting = BlockStore(1000), threading.Event()

    def fail() -> Decoded:
        waiting.wait(10)
        raise DeepLightError("damaged")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(store.get, "key", fail)
        second = threads.submit(store.get, "key", lambda: one(1))
        while not second.running():
            pass
        waiting.set()
        with pytest.raises(DeepLightError, match="damaged"):
            first.result()
        second.exception()  # told the same, or late enough to try by itself
    assert int(store.get("key", lambda: one(2))[0][0, 0, 0]) in (1, 2)


def test_damage_is_told_of_a_window_that_has_it(tmp_path: Path) -> None:
    """Not of one that shares with it what is decoded at once."""
    name = written(tmp_path, "tiles")
    with open_raster(name, "DMO") as raster:
        raster.share(BlockStore(1 << 30), (1, 2, 3))
        assert raster._shared is not None and raster._shared.unit[0] > 64
        decode, damaged = raster.decode, Window(100, 100, 1, 1)

        def decoding(window: Window, *given: Any, **more: Any) -> Any:
            if damaged.shared_with(window) == damaged:
                raise DeepLightError("damaged")
            return decode(window, *given, **more)

        raster.decode = decoding  # type: ignore[method-assign]
        pixels, _ = raster.read(Window(0, 0, 60, 60), (1, 2, 3))
        np.testing.assert_array_equal(pixels, decode(Window(0, 0, 60, 60), (1, 2, 3))[0])
        with pytest.raises(DeepLightError, match="damaged"):
            raster.read(Window(90, 90, 20, 20), (1, 2, 3))


def test_what_another_decodes_is_waited_for_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else many threads that begin beside each other would wait for each other, and few would decode."""
    monkeypatch.setattr(shared_blocks, "_LEAST_SIDE", 256)
    with open_raster(written(tmp_path, "tiles"), "DMO") as raster, ThreadPoolExecutor(1) as threads:
        store = BlockStore(1 << 30)
        raster.share(store, (1, 2, 3))
        shared, end = raster._shared, threading.Event()
        assert shared is not None
        first, second = shared._blocks(Window(0, 0, 211, 330))

        def slow() -> Decoded:
            assert end.wait(30)
            return shared._decoded(first)

        hanging = threads.submit(store.get, (shared.name, first), slow)
        while not store.in_the_making((shared.name, first)):
            pass
        assert list(shared._blocks(Window(0, 0, 211, 330))) == [second, first]
        end.set()
        hanging.result()
        assert list(shared._blocks(Window(0, 0, 211, 330))) == [first, second]


def test_who_decodes_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its tile is tried by another thread, which must not wait for the first for ever."""
    monkeypatch.setattr(shared_blocks, "_PATIENCE_S", 0.05)
    store, end = BlockStore(1000), threading.Event()

    def hang() -> Decoded:
        assert end.wait(30)
        return one(1)

    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(store.get, "key", hang)
        while not store._held:
            pass
        for _ in range(2):
            assert int(store.get("key", lambda: one(2))[0][0, 0, 0]) == 2
        end.set()
        assert int(hanging.result()[0][0, 0, 0]) == 1
    assert int(store.get("key", lambda: one(3))[0][0, 0, 0]) == 2 and store._total == 10
