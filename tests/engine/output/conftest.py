"""Fixtures of the output's tests."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import Interrupted
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.stopped import Stopped
from tests.scenes import write_raster


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (4, 800)).astype(np.float32)
    path = write_raster(folder / "ntl.tif", ntl, tiled=True, blockxsize=64, blockysize=16)
    request = RunOptions(
        scene=SceneOptions(ntl=str(path)),
        out=folder / "o.tif",
        model=str(write_analytic(folder / "analytic")),
        tiles=TileRequest(64),
        threads=1,
    )
    infer(request)
    expected = request.out.read_bytes()
    request.out.unlink()
    with pytest.MonkeyPatch.context() as m:
        m.setattr("deeplight.engine.output.cog.assemble", interrupt)
        with pytest.raises(Interrupted):
            infer(request)
    packs = sorted(parts_folder(request.out).glob("packs-*/*"))
    assert len(packs) == 4
    packs.pop().unlink()
    return Stopped(
        dataclasses.replace(request, mode=Mode.RESUME), expected, {p.name: p.read_bytes() for p in packs}
    )


def interrupt(*_: object, **__: object) -> None:
    raise Interrupted(15)


@pytest.fixture
def stopped(stopped_once: Stopped, tmp_path: Path) -> Stopped:
    """A copy that tests may damage. Its files keep their times."""
    folder = tmp_path / "copy"
    shutil.copytree(stopped_once.request.out.parent, folder)
    old = stopped_once.request
    scene = dataclasses.replace(old.scene, ntl=str(folder / "ntl.tif"))
    request = dataclasses.replace(old, scene=scene, out=folder / "o.tif", model=str(folder / "analytic"))
    return dataclasses.replace(stopped_once, request=request)
