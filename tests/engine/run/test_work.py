"""One tile's work: bad numbers of a model are found, and tried again in fp32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.windows import Window
from deeplight.engine.run.work import BadPixels, TileWork, masked

CORE = Window(4, 6, 2, 2)
VALID = np.array([[1, 0], [1, 1]], np.uint8)


class Backend:
    """Gives one radiance everywhere; counts what it was asked."""

    def __init__(self, radiance: float) -> None:
        self.radiance = np.full((1, 16, 16), radiance, np.float32)
        self.runs = self.closed = 0

    def run(self, *_: Any) -> Any:
        self.runs += 1
        return self.radiance

    def close(self) -> None:
        self.closed += 1


def work(monkeypatch: pytest.MonkeyPatch, *backends: Backend) -> TileWork:
    """Of a scene of one tile; backends: as asked for, and in fp32."""
    monkeypatch.setattr("deeplight.engine.run.work.tile_window", lambda core, *_: core)
    monkeypatch.setattr("deeplight.engine.run.work.layers_present", lambda *_: np.zeros((16, 16), np.uint8))
    scene = SimpleNamespace(
        grid=SimpleNamespace(shape=(8, 8)),
        read_ntl=lambda _: (np.ones((2, 2), np.float32), VALID),
        read_inputs=lambda _, into: into,
    )
    products = SimpleNamespace(model_outputs=(), make=lambda made, *_: (made, np.ones((2, 2), np.float32)))
    parts = cast("list[Any]", [scene, backends[0], SimpleNamespace(name="m"), 0, products])
    return TileWork(*parts, fp32=cast("Any", lambda: backends[1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_numbers_count_where_the_lights_are_valid(bad: float) -> None:
    pixels = np.ones((1, 16, 16), np.float32)
    pixels[0, 3, 12] = bad
    good = masked(pixels, VALID)
    assert good is not None and np.isnan(good[0, :8, 8:]).all()
    pixels[0, 12, 3] = bad
    assert masked(pixels, VALID) is None


def test_bad_numbers_are_tried_once_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced, whole = Backend(np.nan), Backend(3.0)
    tiles = work(monkeypatch, reduced, whole)
    with pytest.raises(BadPixels, match="row 4, column 6 of 2×2") as error:
        tiles.finish(tiles.compute(tiles.read(CORE)))
    assert not error.value.final and (reduced.runs, whole.runs) == (1, 0)
    again = tiles.finish(tiles.compute(tiles.read(CORE)))
    assert again is not None and np.nanmax(again) == 3 and (reduced.runs, whole.runs) == (1, 1)
    tiles.close()
    assert (reduced.closed, whole.closed) == (0, 1)


def test_a_core_alone_is_tried_in_fp32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = work(monkeypatch, Backend(-1.0), Backend(3.0)).pixels(CORE)
    assert pixels is not None and np.nanmin(pixels) == 3


def test_numbers_that_are_bad_in_fp32_are_final(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeepLightError, match="not finite or below zero") as error:
        work(monkeypatch, Backend(np.nan), Backend(np.inf)).pixels(CORE)
    assert isinstance(error.value, BadPixels) and error.value.final
