"""Layers that reach a device as they are in the files become what the host makes of them: Scene.read_inputs.

With the definition of `kernels.align` on whole tiles, and with its Triton kernel, in the interpreter, on small ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch import Tensor

from deeplight.engine.core.forms import Wanted, returned, sent
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.network.config import Normalisation
from deeplight.engine.network.model import Auxiliary, DeepLightSR
from deeplight.engine.network.normalise import Normalise
from deeplight.engine.network.tile_program import TileProgram
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.unresampled import unresampled
from tests.engine.network.test_model import SMALL
from tests.scenes import ARC, NORTH, UTM, WEST, field_on, north_up, options, write_raster, write_scene

WANTED = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (-np.inf, np.inf))
SLOTS = ("blue", "green", "red", "nir")


def program_of(scene: Scene, window: Window, implementation: str, **parts: Any) -> TileProgram:
    """A program whose tile is a window of the scene. parts: of the network, instead of one that takes all inputs."""
    layers = unresampled(scene.auxiliary, [window])
    forms = {name: layer.form for name, layer in layers.items()}
    layout = sent(forms, *window.shape)
    memory = torch.full((layout.size,), 0xA5, dtype=torch.uint8)
    arrays = layout.arrays(memory.numpy())
    arrays["ntl"][:], arrays["valid"][:] = scene.read_ntl(window)
    arrays["own"][:] = arrays["valid"]
    for name, layer in layers.items():
        at = layer.located(window)
        assert at is not None
        layer.fill(arrays, name, at)
    result = torch.empty(returned(1, *window.shape).size, dtype=torch.uint8)
    slots = [int(slot in scene.dmo_slots) for slot in DMO_SLOTS]
    wanted = dataclasses.replace(WANTED, psf=tuple(scene.psf), limits=tuple(scene.limits))
    return TileProgram(list, forms, wanted, slots, window.shape, memory, result, implementation, **parts)  # type: ignore[arg-type]


def on_device(
    scene: Scene, window: Window, implementation: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The network's inputs of a window as the device makes them, and the kind of each layer."""
    with torch.inference_mode():
        program = program_of(scene, window, implementation)
        found = {name: values.numpy() for name, values in program.inputs().items()}
    return found, {name: layer.form.kind for name, layer in unresampled(scene.auxiliary, [window]).items()}


class Taking:
    """In the place of a network in parts: takes the layers, and gives zeros."""

    normalise, dtype = Normalise(Normalisation()), torch.float32
    aux: Auxiliary | None = None

    def __call__(
        self, inputs: Sequence[Tensor], lights: Tensor, *, known: bool, aux: Auxiliary | None
    ) -> Sequence[Tensor]:
        self.aux, (h, w) = aux, inputs[0].shape[2:]
        return [torch.zeros(input_shape(spec, 1, h, w)) for spec in OUTPUTS]


def standardised(scene: Scene, window: Window, implementation: str = "reference") -> Auxiliary | None:
    """The layers as a network in parts gets them."""
    taking, suggested = Taking(), torch.empty(4 * window.height * window.width, dtype=torch.uint8)
    with torch.inference_mode():
        program_of(scene, window, implementation, divided=taking, suggested=suggested)()
    return taking.aux


def compared(scene: Scene, window: Window, implementation: str) -> dict[str, str]:
    """The kinds of the layers, whose masks must be the host's and values nearly so."""
    got, kinds = on_device(scene, window, implementation)
    want = scene.read_inputs(window)
    assert got.keys() == want.keys()
    for name, values in want.items():
        if name.endswith("_valid"):
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        # coordinates as float32 fractions, here and there in float64: 2⁻¹⁸ of a pixel, times what neighbours differ by
        scale = max(1e-6, float(np.abs(values).max()))
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-5 * scale, err_msg=name)
    return kinds


def usual(folder: Path) -> SceneOptions:
    return options(write_scene(folder))


def ten_metres(folder: Path) -> SceneOptions:
    return options(write_scene(folder, 9, 11, dmo_pixel=10.0))


def rotated(folder: Path) -> SceneOptions:
    """Daytime bands that lie aslant, in float32 with a mask of the file and holes of NaN; four of the seven."""
    place = Affine.translation(284_000, 5_545_000) @ Affine.rotation(-23) @ Affine.scale(45, -45)
    values = np.stack([field_on(UTM, place, 400, 420, k) for k in range(4)]).astype(np.float32)
    values[1, 150:160, 100:140] = np.nan
    mask = np.ones((400, 420), bool)
    mask[180:190] = False
    dmo = write_raster(folder / "dmo.tif", values, UTM, place, names=SLOTS, mask=mask)
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(ntl=str(ntl), dmo=str(dmo))


def small_types(folder: Path) -> SceneOptions:
    """Bytes, and a type that no kernel reads."""
    place = north_up(ARC / 7, WEST + 3 * ARC, NORTH - ARC)
    dmo = (200 * np.stack([field_on("EPSG:4326", place, 90, 95, k) for k in range(4)])).astype(np.uint8)
    dem = (2000 * field_on("EPSG:4326", place, 90, 95)).astype(np.int32)
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(
        ntl=str(ntl),
        dmo=str(
            write_raster(folder / "dmo.tif", dmo, transform=place, names=SLOTS, nodata=37, scales=[0.004] * 4)
        ),
        dem=str(write_raster(folder / "dem.tif", dem, transform=place, nodata=700)),
    )


def a_file_a_band(folder: Path) -> SceneOptions:
    """Three bands on grids of their own, of which one is finer than HR pixels, with holes in different places."""
    files = {}
    for k, (slot, step, side) in enumerate((("red", 6, 20), ("nir", 9, 19), ("blue", 17, 20))):
        place = north_up(ARC / step, WEST, NORTH)
        values = field_on("EPSG:4326", place, side * step, side * step, k).astype(np.float32)
        values[3 * step : 5 * step, 4 * k * step : (4 * k + 3) * step] = -1.0
        files[slot] = str(write_raster(folder / f"{slot}.tif", values, transform=place, nodata=-1.0))
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(ntl=str(ntl), dmo_files=files)


def round_the_earth(folder: Path, begins: float = WEST - 0.04, more: int = 0) -> SceneOptions:
    """Layers that go round, whose first columns lie beside their last ones: just west of the lights. more: columns by
    which their ends overlap on either side, so that they do not go round."""
    turn, step = 360 / 1200, 360 / 3600
    place = Affine(turn, 0, begins - more * turn, 0, -turn, NORTH + 5 * turn)
    dmo = np.random.default_rng(7).integers(20, 220, (4, 12, 1200)).astype(np.uint8)
    fine = Affine(step, 0, begins - more * step, 0, -step, NORTH + 5 * step)
    dem = np.random.default_rng(8).integers(0, 3000, (1, 30, 3600)).astype(np.int32)
    dmo, dem = (np.pad(values, ((0, 0), (0, 0), (more, more)), "wrap") for values in (dmo, dem))
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(
        ntl=str(ntl),
        dmo=str(write_raster(folder / "dmo.tif", dmo, transform=place, names=SLOTS, scales=[0.004] * 4)),
        dem=str(write_raster(folder / "dem.tif", dem, transform=fine)),
    )


def another_order(folder: Path) -> SceneOptions:
    """All seven bands, the last first, and no elevation."""
    place = north_up(ARC / 7, WEST, NORTH)
    values = np.stack([field_on("EPSG:4326", place, 150, 150, k) for k in range(7)]).astype(np.float32)
    dmo = write_raster(folder / "dmo.tif", values, transform=place, names=DMO_SLOTS[::-1])
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(ntl=str(ntl), dmo=str(dmo))


def as_delivered(folder: Path) -> SceneOptions:
    """A file a band, on two grids in UTM, of which one is averaged, with holes in different places."""
    files = {}
    for k, (slot, step) in enumerate((("swir1", 30), ("red", 10), ("blue", 10), ("swir2", 30), ("nir", 10))):
        side = 5_000 // step
        place = Affine(step, 0, 286_400, 0, -step, 5_543_300)
        values = (1000 + 9000 * field_on(UTM, place, side, side, k)).astype(np.uint16)
        values[k * 40 : k * 40 + 300 // step, 60 : 60 + 900 // step] = 0
        files[slot] = str(write_raster(folder / f"{slot}.tif", values, UTM, place, nodata=0))
    ntl = write_raster(folder / "ntl.tif", np.ones((21, 27), np.float32))
    return SceneOptions(ntl=str(ntl), dmo_files=files, dmo_scale=(1e-4, -0.1))


CASES: dict[str, tuple[Callable[[Path], SceneOptions], dict[str, str]]] = {
    "usual": (usual, {"dmo": "raw", "dem": "raw"}),
    "10 m": (ten_metres, {"dmo": "own", "dem": "raw"}),
    "rotated": (rotated, {"dmo": "raw"}),
    "bytes": (small_types, {"dmo": "raw", "dem": "own"}),
    "a file a band": (a_file_a_band, {"dmo": "raw", "dmo 2": "raw", "dmo 3": "own"}),
    "as delivered": (as_delivered, {"dmo": "raw", "dmo 2": "own"}),
    "round the Earth": (round_the_earth, {"dmo": "raw", "dem": "own"}),
    "another order": (another_order, {"dmo": "raw"}),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_tiles(name: str, tmp_path: Path) -> None:
    make, kinds = CASES[name]
    with Scene.open(make(tmp_path)) as scene:
        whole = Window(-2, -3, scene.grid.height + 4, scene.grid.width + 6)
        assert compared(scene, whole, "reference") == kinds
        outside = Window(scene.grid.height + 40, 0, 4, 4)
        assert compared(scene, outside, "reference") == kinds
        one, two = (unresampled(scene.auxiliary, [whole]) for _ in range(2))
        for first, again in zip(one.values(), two.values(), strict=True):
            assert first.form == again.form and hash(first.form) == hash(again.form), "dates share programs"


@pytest.mark.parametrize("name", CASES)
def test_a_network_in_parts_gets_what_its_first_part_would_make(name: str, tmp_path: Path) -> None:
    make, _ = CASES[name]
    with Scene.open(make(tmp_path)) as scene:
        window = Window(-2, -3, scene.grid.height + 4, scene.grid.width + 6)
        host, got = scene.read_inputs(window), standardised(scene, window)
    assert got is not None
    dmo, dem = got
    network = DeepLightSR(SMALL)
    with torch.no_grad():
        _, (want,) = network.layers(*(torch.from_numpy(host[spec.name]) for spec in INPUTS))
    for made, expected in ((dmo, want[:, :8]), (dem, want[:, 8:])):
        assert made.shape == expected.shape and made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made[:, -1], expected[:, -1]), "validity"
        # as `compared`, over the least standard deviation of a band, 0.04
        np.testing.assert_allclose(made, expected, rtol=0, atol=5e-4)
    assert float(dmo.abs().max()) > 1, "the scene has daytime bands"


@pytest.mark.parametrize("name", ["usual", "10 m", "rotated", "as delivered"])
def test_the_kernel_in_the_interpreter(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU")
    make, kinds = CASES[name]
    with Scene.open(make(tmp_path)) as scene:
        window = Window(-1, 4, 2, 2)
        assert compared(scene, window, "triton") == kinds
        want = standardised(scene, window)
        got = standardised(scene, window, "triton")
        assert got is not None and want is not None
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=5e-4)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_luxembourg(shared_data: Path, implementation: str) -> None:
    """30″ lights, Sentinel-2 in float32 with NaN, elevation in int16: real rasters."""
    if implementation == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU")
    place = shared_data / "luxembourg"
    request: dict[str, Any] = {layer: str(place / f"{layer}.tif") for layer in ("ntl", "dmo", "dem")}
    with Scene.open(SceneOptions(**request, dmo_scale=(1e-4, -0.1))) as scene:
        window = Window(-2, -2, 99, 91) if implementation == "reference" else Window(40, 30, 1, 2)
        assert compared(scene, window, implementation) == {"dmo": "raw", "dem": "raw"}


def test_a_pixel_has_the_same_bits_in_every_tile(tmp_path: Path) -> None:
    with Scene.open(usual(tmp_path)) as scene:
        whole, _ = on_device(scene, Window(0, 0, 21, 27), "reference")
        part, _ = on_device(scene, Window(5, 9, 8, 7), "reference")
    for name in ("dmo", "dmo_valid", "dem", "dem_valid"):
        np.testing.assert_array_equal(part[name], whole[name][..., 40:104, 72:128], err_msg=name)


def test_luxembourg_with_a_file_for_each_band(shared_data: Path, tmp_path: Path) -> None:
    place, files = shared_data / "luxembourg", {}
    with rasterio.open(place / "dmo.tif") as whole:
        for band, slot in enumerate(SLOTS, start=1):
            path = tmp_path / f"{slot}.tif"
            with rasterio.open(path, "w", **{**whole.profile, "count": 1}) as file:
                file.write(whole.read(band), 1)
            files[slot] = str(path)
    with Scene.open(SceneOptions(str(place / "ntl.tif"), dmo_files=files, dmo_scale=(1e-4, -0.1))) as scene:
        kinds = compared(scene, Window(-2, -2, 99, 91), "reference")
    assert kinds == {"dmo": "raw"}, "files of one grid are one"
