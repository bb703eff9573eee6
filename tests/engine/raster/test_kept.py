"""Resampled tiles that are kept for the next date: what was read, within their memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.kept import KeptTiles
from deeplight.engine.raster.scene import Scene
from tests.scenes import options, write_scene

WINDOWS = [Window(-8, -8, 72, 80), Window(40, 96, 64, 64)]
"""In HR pixels; the first leaves the scene."""


def tile(kept: KeptTiles, scene: Scene, name: str, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """What is read into arrays that hold something else."""
    values = np.full((len(DMO_SLOTS) if name == "dmo" else 1, *window.shape), np.nan, np.float32)
    mask = np.full(window.shape, np.nan, np.float32)
    kept.read_into(name, scene.auxiliary[name], window, values, mask)
    return values, mask


@pytest.mark.parametrize("bands", [{}, {"dmo_bands": {"red": 4, "blue": 2}}], ids=["all", "two"])
def test_kept_tiles_are_what_was_read_and_are_not_read_again(
    tmp_path: Path, bands: dict[str, object]
) -> None:
    with Scene.open(options(write_scene(tmp_path), **bands)) as scene:
        kept = KeptTiles(1 << 30)
        first = {(name, w): tile(kept, scene, name, w) for name in ("dmo", "dem") for w in WINDOWS}
        channels = len(bands["dmo_bands"]) if bands else len(DMO_SLOTS)  # type: ignore[arg-type]
        assert kept.size == sum(w.height * w.width for w in WINDOWS) * ((channels + 1) * 4 + 2)
        scene.prepare_reading(256)
        for (name, window), expected in first.items():
            for got, want in zip(tile(kept, scene, name, window), expected, strict=True):
                np.testing.assert_array_equal(got, want)
        assert all(layer["bytes_read"] == 0 for layer in (scene.describe()["dmo"], scene.describe()["dem"]))
        assert np.isfinite(first["dmo", WINDOWS[1]][0]).all() and first["dmo", WINDOWS[1]][1].any()


def test_what_does_not_fit_is_read_again(tmp_path: Path) -> None:
    with Scene.open(options(write_scene(tmp_path))) as scene:
        size = WINDOWS[0].height * WINDOWS[0].width * (len(DMO_SLOTS) * 4 + 1)
        kept = KeptTiles(size)
        first = [tile(kept, scene, "dmo", w) for w in WINDOWS]
        assert kept.size == size
        scene.prepare_reading(256)
        tile(kept, scene, "dmo", WINDOWS[0])
        assert scene.describe()["dmo"]["bytes_read"] == 0
        again = tile(kept, scene, "dmo", WINDOWS[1])
        assert scene.describe()["dmo"]["bytes_read"] > 0 and kept.size == size
        np.testing.assert_array_equal(again[0], first[1][0])
