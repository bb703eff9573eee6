"""A folder of rasters, models and settings as people have them, most of which cannot be used as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from affine import Affine

from tests.engine.analytic import write_analytic
from tests.field.lights import lights
from tests.scenes import ARC, north_up, write_raster

SIDE = 24


def write_odd_folder(folder: Path) -> None:
    """n.tif is good, and so are dmo.tif, dem.tif and model; the others are what their names say."""
    values = lights(SIDE)
    unit = ["nW/cm²/sr"]
    write_raster(folder / "n.tif", values, units=unit)
    write_raster(folder / "m.tif", values, units=unit)
    write_raster(folder / "nan.tif", np.full_like(values, np.nan))
    write_raster(folder / "complex.tif", values.astype(np.complex64))
    write_raster(folder / "two.tif", np.stack([values, values]), names=["avg_rad", "other"])
    write_raster(folder / "nocrs.tif", values, crs=None)
    write_raster(folder / "noplace.tif", values, crs=None, transform=Affine.identity())
    write_raster(folder / "watts.tif", values, units=["W/m2/sr"])
    write_raster(folder / "picture.png", values.astype(np.uint8), driver="PNG")
    bands = np.full((4, SIDE, SIDE), 0.2, np.float32)
    names = ["blue", "green", "red", "nir"]
    write_raster(folder / "dmo.tif", bands, names=names)
    write_raster(folder / "unnamed.tif", bands)
    write_raster(folder / "red.tif", bands[0], names=["red"])
    write_raster(folder / "elsewhere.tif", bands, names=names, transform=north_up(ARC, -120.0, 10.0))
    heights = np.full((SIDE, SIDE), 300.0, np.float32)
    write_raster(folder / "dem.tif", heights, units=["m"])
    write_raster(folder / "feet.tif", heights * 3.28084, units=["ft"])
    write_raster(folder / "percent.tif", np.full((SIDE, SIDE), 40, np.uint8))
    (folder / "empty.tif").touch()
    (folder / "text.tif").write_text("not a raster\n")
    whole = (folder / "n.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "folder").mkdir()
    write_analytic(folder / "model")
    shutil.copytree(folder / "model", folder / "damaged")
    network = next((folder / "damaged").glob("*.onnx"))
    network.write_bytes(network.read_bytes()[:100])
    (folder / "broken.toml").write_text("[training\n")
    (folder / "unknown.toml").write_text("[training]\nspeed = 3\n")
    (folder / "used").mkdir()
    (folder / "used" / "metrics.json").write_text("{}")
