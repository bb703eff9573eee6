"""Files of a band each on one grid are read as one file of these bands would be, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.raster import side_by_side
from deeplight.engine.raster.auxiliary import Daytime
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.side_by_side import JoinedLayer
from tests.scenes import ARC, NORTH, UTM, WEST, north_up, write_raster

WINDOWS = (Window(-2, -3, 17, 21), Window(3, 5, 7, 6), Window(60, 60, 4, 4))


@dataclass(frozen=True)
class Form:
    """Files of some slots on one grid. given: options of a scene."""

    crs: str
    place: Affine
    shape: tuple[int, int]
    dtype: str = "uint16"
    slots: Sequence[str] = DMO_SLOTS
    masks: bool = False
    given: tuple[tuple[str, Any], ...] = ()


SLANTED = Affine.translation(284_500, 5_545_000) @ Affine.rotation(-9) @ Affine.scale(45, -45)
FORMS = {
    "30 m in UTM": Form(UTM, Affine(30, 0, 284_900, 0, -30, 5_544_800), (280, 330)),
    "10 m, averaged": Form(UTM, Affine(10, 0, 284_900, 0, -10, 5_544_800), (640, 900), slots=DMO_SLOTS[1:5]),
    "floats, aslant, with masks": Form(UTM, SLANTED, (210, 240), "float32", ("nir", "red", "blue"), True),
    "the whole Earth": Form(
        "EPSG:4326", Affine(0.02, 0, WEST + 0.03, 0, -0.02, NORTH + 0.2), (30, 18_000), "uint8"
    ),
    "scale and nodata given": Form(
        "EPSG:4326",
        north_up(ARC / 6),
        (70, 95),
        "int16",
        given=(("dmo_scale", (1e-4, 0.0)), ("dmo_nodata", 0.0)),
    ),
}


def numbers(form: Form) -> np.ndarray:
    """Raw pixels with holes in other places of each band."""
    rng, count = np.random.default_rng(11), len(form.slots)
    low, high = (1, 240) if form.dtype == "uint8" else (500, 9000)
    values = rng.integers(low, high, (count, *form.shape)).astype(form.dtype)
    for band in values:
        band[rng.random(form.shape) < 0.04] = 0
    return values


def both(folder: Path, form: Form) -> tuple[SceneOptions, SceneOptions]:
    """One file of all bands, and a file for each, of which the last slot is given first."""
    values, scale = numbers(form), 0.004 if form.dtype == "uint8" else 1e-4
    ntl = str(write_raster(folder / "ntl.tif", np.ones((13, 17), np.float32)))
    masks = np.random.default_rng(5).random((len(values), *form.shape)) > 0.03
    given = dict(form.given)
    declared = {} if given else {"nodata": 0, "scales": [scale]}

    def written(name: str, bands: np.ndarray, mask: np.ndarray, **more: Any) -> str:
        more |= {"scales": declared["scales"] * len(bands), "nodata": 0} if declared else {}
        more |= {"mask": mask} if form.masks else {}
        return str(write_raster(folder / f"{name}.tif", bands, form.crs, form.place, **more))

    stack = written("stack", values, masks.all(axis=0), names=form.slots)
    single = {
        slot: written(slot, values[k : k + 1], masks[k]) for k, slot in reversed(list(enumerate(form.slots)))
    }
    return SceneOptions(ntl, stack, **given), SceneOptions(ntl, dmo_files=single, **given)


def daytime(scene: Scene) -> Daytime:
    found = scene.auxiliary["dmo"]
    assert isinstance(found, Daytime)
    return found


@pytest.fixture(params=FORMS)
def scenes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Scene, Scene]]:
    stack, single = both(tmp_path, FORMS[request.param])
    with Scene.open(stack) as one, Scene.open(single) as many:
        yield one, many


@pytest.mark.parametrize("shared_mb", [0, 64])
def test_bits_are_those_of_one_file(scenes: tuple[Scene, Scene], shared_mb: int) -> None:
    one, many = scenes
    assert len(daytime(many).joined) == 1 < len(daytime(many).files)
    for scene in scenes:
        scene.prepare_reading(64, shared_mb)
    for window in WINDOWS:
        want, got = one.read_inputs(window), many.read_inputs(window)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values, err_msg=f"{name} of {window}")
    seen = many.read_inputs(WINDOWS[1])["dmo_valid"]
    assert 0.05 < seen.mean() < 0.999, "there are pixels, and holes between them"


def test_each_file_tells_what_it_is_and_what_was_read_of_it(scenes: tuple[Scene, Scene]) -> None:
    _, many = scenes
    many.prepare_reading(64)
    many.read_inputs(WINDOWS[1])
    told = daytime(many).describe()
    assert [Path(file["file"]).stem for file in told["files"].values()] == list(daytime(many).slots)
    assert all(file["bands"] == [1] and file["bytes_read"] > 0 for file in told["files"].values())
    assert told["bytes_read"] == sum(many.bytes_read[1:])


def test_what_is_decoded_is_let_go_of(tmp_path: Path) -> None:
    """Between the dates of a stack: see Beside.rest."""
    _, single = both(tmp_path, FORMS["30 m in UTM"])
    with Scene.open(single) as scene:
        scene.prepare_reading(64, 64)
        want = scene.read_inputs(WINDOWS[0])["dmo"].copy()
        layer = daytime(scene).joined[0][1]
        assert isinstance(layer, JoinedLayer) and layer.pixels._shared is not None
        assert scene.cached_bytes(WINDOWS[1], shared=True) >= 7 * 2 * 280 * 330, "all files of a panel"
        layer.pixels.rest()
        assert layer.pixels._shared is None and not any(
            file.raster._handles for file in daytime(scene).layers
        )
        np.testing.assert_array_equal(scene.read_inputs(WINDOWS[0])["dmo"], want)
        scene.prepare_reading(64, 64)
    assert layer.pixels._shared is None, "closed"


@pytest.mark.parametrize("declared", [0.0, float("nan")])
def test_a_scale_that_is_given_stands_in_for_one_that_cannot_be(declared: float, tmp_path: Path) -> None:
    _, single = both(tmp_path, replace(FORMS["30 m in UTM"], given=(("dmo_scale", (1e-4, 0.0)),)))
    assert single.dmo_files is not None
    with Scene.open(single) as scene:
        want = scene.read_inputs(WINDOWS[1])["dmo"].copy()
    for name in single.dmo_files.values():
        with rasterio.open(name, "r+") as file:
            file.scales = [declared]
    with Scene.open(single) as scene:
        assert len(daytime(scene).joined) == 1
        np.testing.assert_array_equal(scene.read_inputs(WINDOWS[1])["dmo"], want)


@pytest.mark.parametrize("way", ["tiles", "alpha", "another driver"])
def test_how_a_file_is_stored_changes_nothing(way: str, tmp_path: Path) -> None:
    _, single = both(tmp_path, FORMS["30 m in UTM"])
    assert single.dmo_files is not None
    with Scene.open(single) as scene:
        want = {name: values.copy() for name, values in scene.read_inputs(WINDOWS[1]).items()}
    name = single.dmo_files["nir"]
    with rasterio.open(name) as file:
        values, profile, scales = file.read(), file.profile, file.scales
    if way == "another driver":
        name = str(tmp_path / "nir.img")
        profile = {k: profile[k] for k in ("height", "width", "count", "dtype", "crs", "transform", "nodata")}
        profile["driver"] = "HFA"
    else:
        profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel"}
    if way == "alpha":
        profile |= {"count": 2, "alpha": "YES"}
        values = np.concatenate([values, np.full_like(values, 65535)])
    with rasterio.open(name, "w", **profile) as file:
        file.write(values)
        file.scales = scales * profile["count"]
    with Scene.open(replace(single, dmo_files={**single.dmo_files, "nir": name})) as scene:
        assert len(daytime(scene).joined) == 1
        for key, found in scene.read_inputs(WINDOWS[1]).items():
            np.testing.assert_array_equal(found, want[key], err_msg=key)


@pytest.mark.parametrize("shared_mb", [0, 64])
def test_damage_is_told_of_the_file_that_has_it(shared_mb: int, tmp_path: Path) -> None:
    _, single = both(tmp_path, FORMS["30 m in UTM"])
    with Scene.open(single) as scene:
        scene.prepare_reading(64, shared_mb)
        want = scene.read_inputs(Window(0, 0, 3, 3))["dmo"].copy()
        (red,) = (file.raster for channels, file in daytime(scene).files if channels == [3])
        decode, damaged = red.decode, Window(150, 150, 1, 1)

        def decoding(window: Window, *given: Any, **more: Any) -> Any:
            if damaged.shared_with(window) == damaged:
                raise DeepLightError(f"{red.what} is damaged")
            return decode(window, *given, **more)

        red.decode = decoding  # type: ignore[method-assign]
        scene.prepare_reading(64, shared_mb)
        with pytest.raises(DeepLightError, match=r"red\.tif is damaged"):
            scene.read_inputs(Window(0, 0, 13, 17))
        np.testing.assert_array_equal(scene.read_inputs(Window(0, 0, 3, 3))["dmo"], want)


def test_blocks_too_large_to_be_kept_together_are_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each strip of a window would decode all of them anew."""
    _, single = both(tmp_path, FORMS["30 m in UTM"])  # blocks of 12 × 330
    monkeypatch.setattr(side_by_side, "_MOST_ROW_BYTES", 3 * 12 * 330 * 2)
    with Scene.open(single) as scene:
        assert [layer.raster.block_shape for layer in daytime(scene).layers] == [(12, 330)] * 7
        assert [channels for channels, _ in daytime(scene).joined] == [[4, 5, 6], [1, 2, 3], [0]]


def test_only_files_of_one_grid_and_type_are_joined(tmp_path: Path) -> None:
    rng, files = np.random.default_rng(0), {}
    shifted = north_up(ARC / 6) @ Affine.translation(0.1, 0)
    ways: dict[str, tuple[str, Affine, int, dict[str, Any]]] = {
        "red": ("uint16", north_up(ARC / 6), 100, {}),
        "coastal": ("uint16", shifted, 100, {}),
        "nir": ("int16", north_up(ARC / 6), 100, {}),
        "green": ("uint16", north_up(ARC / 6), 101, {}),
        "blue": ("uint16", north_up(ARC / 6), 100, {"nodata": 3}),
    }
    for slot, (dtype, place, side, more) in ways.items():
        values = rng.integers(500, 9000, (1, side, side)).astype(dtype)
        files[slot] = str(
            write_raster(tmp_path / f"{slot}.tif", values, transform=place, scales=[1e-4], **more)
        )
    ntl = str(write_raster(tmp_path / "ntl.tif", np.ones((13, 17), np.float32)))
    with Scene.open(SceneOptions(ntl, dmo_files=files)) as scene:
        read = daytime(scene).joined
        assert [[DMO_SLOTS[c] for c in channels] for channels, _ in read] == [
            ["blue", "red"],
            ["coastal"],
            ["nir"],
            ["green"],
        ]
        assert read[0][1].nodata == (3.0, None)
        alone = [scene.read_inputs(Window(1, 1, 5, 5))["dmo"]]
    for slots in pairwise(DMO_SLOTS):  # each as it is without the others: no file has a hole
        some = {slot: name for slot, name in files.items() if slot in slots}
        with Scene.open(SceneOptions(ntl, dmo_files=some)) as scene:
            found = scene.read_inputs(Window(1, 1, 5, 5))["dmo"]
        for slot in some:
            np.testing.assert_array_equal(found[0, DMO_SLOTS.index(slot)], alone[0][0, DMO_SLOTS.index(slot)])
