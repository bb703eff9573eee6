"""Small trees of clips for tests, cut from a known scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.progress import Silent
from deeplight.engine.raster.scene import SceneOptions
from deeplight.train.clips.cut import ClipRequest, CutReport, Rules, cut_place
from deeplight.train.clips.place import PlaceOptions
from deeplight.train.clips.plan import ClipPlanOptions
from tests.scenes import ARC, NORTH, WEST, SceneFiles, north_up, write_raster, write_scene

ANY = Rules(min_valid=0.0, max_cloud=1.0, min_lit=0.0)
"""Rules for which every clip is good enough."""


def write_truth(folder: Path, height: int, width: int, seed: int = 5) -> tuple[Path, Path]:
    """HR lights and impervious percent (uint8, 255 = nodata) on the HR grid of `write_scene`."""
    rng = np.random.default_rng(seed)
    shape = (height * 8, width * 8)
    lights = rng.gamma(0.5, 8.0, shape).astype(np.float32)
    percent = rng.integers(0, 101, shape).astype(np.uint8)
    percent[:9, :9] = 255
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return (
        write_raster(folder / "ntl_hr.tif", lights, transform=north_up(ARC / 8), nodata=-1.0, **tiles),
        write_raster(folder / "isp.tif", percent, transform=north_up(ARC / 8), nodata=255, **tiles),
    )


def scene_place(folder: Path, height: int = 36, width: int = 24) -> tuple[PlaceOptions, SceneFiles]:
    """A place with every layer."""
    files = write_scene(folder, height, width)
    lights, percent = write_truth(folder, height, width)
    scene = SceneOptions(str(files.ntl), str(files.dmo), str(files.dem))
    return PlaceOptions(scene, ntl_hr=str(lights), isp=str(percent), isp_scale=(0.01, 0.0)), files


def request(out: Path, files: PlaceOptions, place: str = "here", **changes: Any) -> ClipRequest:
    """One clip of 8² LR px in each block of 12², all good enough."""
    plan = ClipPlanOptions(clip=8, clip_min=8, block=12, buffer=2)
    return replace(ClipRequest(out, place, files, plan=plan, rules=ANY), **changes)


def cut(out: Path, files: PlaceOptions, place: str = "here", **changes: Any) -> CutReport:
    return cut_place(request(out, files, place, **changes), Silent())


def ntl_place(
    folder: Path, height: int = 48, width: int = 40, west: float = WEST, north: float = NORTH
) -> PlaceOptions:
    """A place with LR lights alone: a ramp."""
    values = np.linspace(0.0, 40.0, height * width, dtype=np.float32).reshape(height, width)
    path = write_raster(folder / "only.tif", values, transform=north_up(west=west, north=north))
    return PlaceOptions(SceneOptions(str(path)))
