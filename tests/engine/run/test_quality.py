"""The quality band: each flag where its reason is, the same in every tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from deeplight.engine.core.spec import INPUTS, SCALE, Quality, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.output.pack_format import halve
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.quality import extrapolated_from, quality_flags, touched
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import BLUR, write_analytic
from tests.scenes import ntl_file, options, write_scene

HEIGHT, WIDTH = 13, 17


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_touched_is_a_square_around_every_true_pixel(radius: int) -> None:
    mask = np.random.default_rng(radius).random((11 + 2 * radius, 9 + 2 * radius)) < 0.04
    found = touched(mask, radius)
    assert found.shape == (11, 9)
    for r in range(11):
        for c in range(9):
            assert found[r, c] == mask[r : r + 2 * radius + 1, c : c + 2 * radius + 1].any()


def random_inputs(window: Window) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    shapes = {spec.name: input_shape(spec, 1, *window.shape) for spec in INPUTS}
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name in ("ntl_valid", "dmo_valid", "dem_valid"):
        inputs[name] = (rng.random(shapes[name]) < 0.95).astype(np.float32)
    inputs["ntl"] = rng.choice(np.float32([0, 62.9, 63, 70]), shapes["ntl"]) * inputs["ntl_valid"]
    return inputs


def test_flags_are_those_of_plain_loops() -> None:
    window, core, radius = Window(-2, 3, 12, 14), Window(1, 6, 6, 8), 3
    inputs = random_inputs(window)
    bound = np.float32(extrapolated_from(1.5))
    offset = np.random.default_rng(6).choice([0, -bound, bound * np.float32(0.99)], (2, 12, 14))
    got = quality_flags(inputs, offset.astype(np.float32), core, window, radius, 63.0, 1.35)
    assert got.dtype == np.float32
    valid = inputs["ntl_valid"][0, 0]
    for r in range(6 * SCALE):
        for c in range(8 * SCALE):
            i, j = r // SCALE + 3, c // SCALE + 3
            near = valid[i - radius : i + radius + 1, j - radius : j + radius + 1].min() == 0
            want = Quality.NTL_FILLED_NEAR * bool(near)
            want |= Quality.DMO_MISSING * (inputs["dmo_valid"][0, 0, 24 + r, 24 + c] == 0)
            want |= Quality.DEM_MISSING * (inputs["dem_valid"][0, 0, 24 + r, 24 + c] == 0)
            want |= Quality.SATURATED_LR * (inputs["ntl"][0, 0, i, j] >= 63)
            want |= Quality.EXTRAPOLATED_OFFSET * bool((np.abs(offset[:, i, j]) >= bound).any())
            assert got[r, c] == int(want)


def run(scene: SceneOptions, model: str, out: Path, tiles: int | None, **more: Any) -> Path:
    request = None if tiles is None else TileRequest(tiles)
    infer(RunOptions(scene=scene, out=out, model=model, tiles=request, **more))
    return out


def test_band_in_the_output(tmp_path: Path) -> None:
    model = str(write_analytic(tmp_path / "model"))
    scene = options(write_scene(tmp_path, HEIGHT, WIDTH))
    bands = {}
    for tiles in (None, 4, 7):
        path = run(scene, model, tmp_path / f"{tiles}.tif", tiles, bands=("offset", "quality"))
        with rasterio.open(path) as d:
            names, types, bands[tiles] = d.descriptions, d.dtypes, d.read()
    assert names[:3] == ("ntl", "offset_x", "offset_y")
    assert types == ("float32",) * 4
    assert names[3] == (
        "quality (bit flags: 1 NTL_FILLED_NEAR, 2 DMO_MISSING, 4 DEM_MISSING, 8 SATURATED_LR, "
        "16 EXTRAPOLATED_OFFSET)"
    )
    np.testing.assert_array_equal(bands[4][3], bands[None][3])
    np.testing.assert_array_equal(bands[7][3], bands[None][3])
    radiance, offset, quality = bands[None][0], bands[None][1:3], bands[None][3]
    np.testing.assert_array_equal(np.isnan(quality), np.isnan(radiance))
    with Scene.open(scene) as opened:
        window = Window(0, 0, HEIGHT, WIDTH)
        inputs = opened.read_inputs(window.grown(BLUR))
    valid = inputs["ntl_valid"][0, 0]
    flags = np.nan_to_num(quality).astype(int)
    seen = ~np.isnan(quality)
    near = np.array(
        [
            [valid[r : r + 2 * BLUR + 1, c : c + 2 * BLUR + 1].min() == 0 for c in range(WIDTH)]
            for r in range(HEIGHT)
        ]
    )
    inner = slice(BLUR * SCALE, -BLUR * SCALE)
    wanted = {
        Quality.NTL_FILLED_NEAR: np.kron(near, np.ones((8, 8), bool)),
        Quality.DMO_MISSING: inputs["dmo_valid"][0, 0, inner, inner] == 0,
        Quality.DEM_MISSING: inputs["dem_valid"][0, 0, inner, inner] == 0,
        Quality.EXTRAPOLATED_OFFSET: (np.abs(offset) >= 1.8).any(axis=0),
    }
    for flag, mask in wanted.items():
        np.testing.assert_array_equal((flags & flag != 0)[seen], mask[seen], err_msg=flag.name or "")
        assert 0 < mask[seen].mean() < 1
    assert not (flags & Quality.SATURATED_LR).any()


@pytest.mark.parametrize(
    ("values", "header", "changes", "ceiling", "unit"),
    [
        (np.uint8([[62, 63]]), {}, {}, 63.0, "DN"),
        (np.float32([[62, 63]]), {"units": ["DN"]}, {}, 63.0, "DN"),
        (np.uint16([[65533, 65534]]), {"nodata": 65535, "scales": [0.1]}, {}, 6553.4, "nW/cm²/sr"),
        (np.uint16([[65533, 65534]]), {"nodata": 65535}, {"ntl_scale": (0.1, 0.0)}, 6553.4, "nW/cm²/sr"),
        (np.int16([[62, 63, 0]]), {}, {}, 63.0, "DN"),
        (np.float32([[62, 63, 0]]), {}, {}, 63.0, "DN"),
        (np.float32([[6553, 6553.4]]), {"units": ["nW/cm2/sr"]}, {}, 6553.4, "nW/cm²/sr"),
        (np.float32([[6553, 6553.4]]), {}, {}, 6553.4, ""),
    ],
    ids=[
        "DMSP",
        "DMSP as float",
        "Black Marble",
        "Black Marble, scale given",
        "DMSP as int16",
        "DMSP as float, undeclared",
        "radiance",
        "unknown",
    ],
)
def test_saturated_from_the_product_s_ceiling(
    tmp_path: Path, values: Any, header: Any, changes: Any, ceiling: float, unit: str
) -> None:
    with Scene.open(SceneOptions(ntl_file(tmp_path, values, **header), **changes)) as scene:
        assert scene.ceiling == pytest.approx(ceiling, rel=1e-9)
        assert scene.unit == unit
        window = Window(0, 0, 1, 2)
        flags = quality_flags(
            scene.read_inputs(window), np.zeros((2, 1, 2), np.float32), window, window, 0, scene.ceiling, 1.8
        )
    saturated = (flags.astype(int) & Quality.SATURATED_LR) != 0
    assert not saturated[:, :SCALE].any() and saturated[:, SCALE:].all()


def test_overviews_of_flags_are_their_union() -> None:
    nan = np.float32(np.nan)
    flags = np.float32([[1, 2, nan, nan], [4, 1, nan, nan], [nan, 8, 0, 0], [2, nan, 0, 0]])
    got = halve(np.stack([flags, flags]), (1,))
    np.testing.assert_array_equal(got[1], np.float32([[7, nan], [10, 0]]))
    np.testing.assert_array_equal(got[0], np.float32([[2, nan], [5, 0]]))
