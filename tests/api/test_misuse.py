"""Wrong uses of the API: each is refused with one sentence that names parameters and no option of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deeplight as dl
from tests.scenes import NTL, SceneFiles, dmo_file, north_up, ntl_file

Use = Callable[[SceneFiles, Path, Path], object]
"""(files of a scene, a model, an empty folder) → what is refused."""


def opened(files: SceneFiles, model: Path, folder: Path, **options: Any) -> object:
    with dl.open_scene(files.ntl) as scene:
        return dl.refine(scene, model, **{"out": folder / "o.tif", **options})


def finished_twice(files: SceneFiles, model: Path, folder: Path) -> object:
    opened(files, model, folder)
    return opened(files, model, folder)


def closed(files: SceneFiles, model: Path, folder: Path) -> object:
    with dl.open_scene(files.ntl) as scene:
        pass
    return dl.load_model(model)(scene)


def part_refined(files: SceneFiles, model: Path, folder: Path) -> object:
    with dl.open_scene(files.ntl) as scene:
        return dl.refine(scene[:5, :5], model, out=folder / "o.tif")


def raw_reflectance(files: SceneFiles, model: Path, folder: Path) -> object:
    dmo = dmo_file(folder, np.full((4, 15, 19), 3000, np.uint16))
    return dl.open_scene(ntl_file(folder), dmo)


def not_asked_for(files: SceneFiles, model: Path, folder: Path) -> object:
    with dl.open_scene(files.ntl) as scene, dl.load_model(model) as loaded:
        return loaded(scene, bands=()).isp


USES: dict[str, tuple[Use, str]] = {
    "absent file": (lambda f, m, o: dl.open_scene("gone.tif"), "NTL raster gone.tif does not exist"),
    "no lights": (lambda f, m, o: dl.open_scene(None), "ntl is None"),
    "bare array": (lambda f, m, o: dl.open_scene(NTL), "give deeplight.Layer(array, grid=…)"),
    "no layer": (lambda f, m, o: dl.open_scene(f.ntl, dem=3), "dem is int and a path"),
    "another grid": (
        lambda f, m, o: dl.open_scene(dl.Layer(NTL[1:], dl.open_scene(f.ntl).grid)),
        "ntl is an array of 12×17 pixels and its grid has 21×27",
    ),
    "no CRS": (lambda f, m, o: dl.open_scene(dl.Layer(NTL, "x", "EPSG:4326")), "ntl has a grid"),
    "unknown CRS": (
        lambda f, m, o: dl.open_scene(dl.Layer(NTL, crs="EPSG:1", transform=north_up())),
        "ntl has crs='EPSG:1'",
    ),
    "five numbers": (
        lambda f, m, o: dl.open_scene(dl.Layer(NTL, crs=4326, transform=(1, 2, 3, 4, 5))),
        "the six numbers of an affine.Affine are needed",
    ),
    "complex numbers": (
        lambda f, m, o: dl.open_scene(dl.Layer(NTL + 1j, crs=4326, transform=north_up())),
        "ntl is an array of type complex",
    ),
    "four dimensions": (
        lambda f, m, o: dl.open_scene(dl.Layer(NTL[None, None], crs=4326, transform=north_up())),
        "ntl is an array of shape (1, 1, 13, 17)",
    ),
    "scale of zero": (lambda f, m, o: dl.open_scene(f.ntl, f.dmo, dmo_scale=0), "dmo_scale=0 is not F or (F, OFFSET)"),
    "scale without a layer": (lambda f, m, o: dl.open_scene(f.ntl, dmo_scale=1e-4), "dmo_scale is about the daytime"),
    "raw reflectance": (raw_reflectance, "pass dmo_scale=(0.0001, -0.1) where"),
    "slots by a name": (
        lambda f, m, o: dl.open_scene(f.ntl, f.dmo, dmo_bands={"bleu": 1}),
        "dmo_bands={'bleu': 1} is not slots (coastal,",
    ),
    "slot of a file": (lambda f, m, o: dl.open_scene(f.ntl, {"bleu": f.dmo}), "'bleu' is not a band slot"),
    "bands of files": (
        lambda f, m, o: dl.open_scene(f.ntl, {"blue": f.dmo}, dmo_bands={"blue": 1}),
        "leave out dmo_bands",
    ),
    "band 0": (lambda f, m, o: dl.open_scene(f.ntl, ntl_band=0), "ntl_band=0 is not a whole number of at least 1"),
    "band 2 of 1": (lambda f, m, o: dl.open_scene(f.ntl, ntl_band=2), "correct ntl_band"),
    "bounds turned": (
        lambda f, m, o: dl.open_scene(f.ntl, ntl_bounds=(7, 50, 6, 49)),
        "ntl_bounds=(7, 50, 6, 49) is not (west, south, east, north)",
    ),
    "another place": (
        lambda f, m, o: dl.open_scene(f.ntl, ntl_bounds=(1, 1, 2, 2)),
        "leave out ntl_bounds, which is for files without a place",
    ),
    "a url": (lambda f, m, o: dl.open_scene("https://example.org/a.tif"), "or pass allow_remote=True"),
    "a wide blur": (lambda f, m, o: dl.open_scene(f.ntl, psf=9), 'psf=9 is not "auto", "unknown", or a FWHM'),
    "nodata as text": (lambda f, m, o: dl.open_scene(f.ntl, ntl_nodata="none"), "ntl_nodata='none' is not a number"),
    "unit as number": (lambda f, m, o: dl.open_scene(f.ntl, ntl_unit=1), "ntl_unit=1 is not a text"),
    "no model": (lambda f, m, o: dl.load_model("gone"), "unknown model 'gone'"),
    "no model's name": (lambda f, m, o: dl.load_model(3), "model=3 is not a path"),
    "no GPU": (lambda f, m, o: dl.load_model(m, backend="onnxruntime", device="cuda"), "not offered by backend"),
    "no precision": (lambda f, m, o: dl.load_model(m, precision="fp8"), "no ONNX file in precision fp8"),
    "no threads": (lambda f, m, o: dl.load_model(m, threads=0), "threads=0 is not a whole number of at least 1"),
    "a path for a scene": (lambda f, m, o: dl.load_model(m)(f.ntl), "open one with deeplight.open_scene"),
    "a path for a run": (lambda f, m, o: dl.refine(f.ntl, m, out=o / "o.tif"), "open one with deeplight.open_scene"),
    "closed": (closed, "the scene is closed"),
    "a part for a run": (part_refined, "call the model with it, as model(part)"),
    "an empty part": (lambda f, m, o: dl.open_scene(f.ntl)[100:228, 40:168], "this part holds no pixel"),
    "one slice": (lambda f, m, o: dl.open_scene(f.ntl)[3], "two slices without steps"),
    "every second": (lambda f, m, o: dl.open_scene(f.ntl)[::2, :], "two slices without steps"),
    "degrees": (lambda f, m, o: dl.open_scene(f.ntl)[0.5:2.5, :], "whole LR pixels"),
    "not asked for": (not_asked_for, 'call the model with bands=("isp",)'),
    "no band": (lambda f, m, o: opened(f, m, o, bands="sip"), "bands='sip' is not names of isp, offset"),
    "tiles of nothing": (lambda f, m, o: opened(f, m, o, tiles=0), 'tiles=0 is not "auto", a side in LR pixels'),
    "a small halo": (lambda f, m, o: opened(f, m, o, tiles="9+1"), 'tiles="9+1": the halo is below the 2 LR pixels'),
    "no type": (lambda f, m, o: opened(f, m, o, dtype="int8"), "dtype='int8' is not one of 'float32', 'uint16'"),
    "steps of bands": (
        lambda f, m, o: opened(f, m, o, dtype="uint16", bands="isp"),
        'leave out bands=("isp",), or use dtype="float32"',
    ),
    "seams of nothing": (lambda f, m, o: opened(f, m, o, tiles=None, verify_seams=3), "leave out tiles=None"),
    "both": (lambda f, m, o: opened(f, m, o, resume=True, overwrite=True), "resume=True and overwrite=True exclude"),
    "there already": (finished_twice, "use overwrite=True to replace it"),
    "a picture": (lambda f, m, o: opened(f, m, o, out="lights.png"), "does not end in .tif or .tiff"),
    "a group": (lambda f, m, o: opened(f, m, o, out="lights.zarr"), "is the name of a Zarr group: use refine_dates"),
    "no path": (lambda f, m, o: opened(f, m, o, out=None), "out=None is not a path"),
    "progress as text": (lambda f, m, o: opened(f, m, o, progress="bar"), "progress='bar' is not None, True or"),
    "many streams": (lambda f, m, o: opened(f, m, o, streams=64, tiles=9), "streams=64 needs a thread for each tile"),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_a_wrong_use_is_one_sentence_in_parameters(
    name: str, files: SceneFiles, folder: Path, tmp_path: Path
) -> None:
    use, piece = USES[name]
    with pytest.raises(dl.InputError) as error:
        use(files, folder, tmp_path)
    message = str(error.value)
    assert piece in message
    assert "--" not in message
    assert "\n" not in message
    assert not message.endswith(".")
