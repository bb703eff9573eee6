"""From which value on clips count as saturated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.clips.degrade import Degradation
from deeplight.train.clips.index import RECORD
from deeplight.train.clips.place import PlaceOptions
from deeplight.train.clips.tree import open_source
from deeplight.train.evaluation.sources import ceiling_of
from tests.train.clips.places import cut, ntl_place, write_truth

NONE = Degradation(psf_fwhm_lr=0.0)


@pytest.mark.parametrize(("unit", "ceiling"), [("", 6553.4), ("DN", 63.0)])
def test_clips_saturate_where_the_engine_says(unit: str, ceiling: float, tmp_path: Path) -> None:
    cut(tmp_path / "tree", ntl_place(tmp_path), unit=unit)
    source = open_source(str(tmp_path / "tree"), "all", "wald", NONE).source  # type: ignore[attr-defined]
    assert ceiling_of(source) == ceiling
    (first, *_) = sorted((tmp_path / "tree").glob("*/*/ntl.tif"))
    with Scene.open(SceneOptions(str(first))) as scene:
        assert scene.ceiling == ceiling


@pytest.mark.parametrize(("saturation", "ceiling"), [(None, math.inf), (20.0, 20.0)])
def test_degraded_lights_saturate_where_the_degradation_says(
    saturation: Any, ceiling: float, tmp_path: Path
) -> None:
    lights, _ = write_truth(tmp_path, 24, 24)
    degradation = Degradation(saturation=saturation)
    cut(
        tmp_path / "tree",
        PlaceOptions(SceneOptions(""), ntl_hr=str(lights)),
        degradation=degradation,
        unit="DN",
    )
    assert ceiling_of(open_source(str(tmp_path / "tree"), "all", "paired", NONE)) == ceiling
    assert ceiling_of(open_source(str(tmp_path / "tree"), "all", "wald", degradation)) == ceiling
    (tmp_path / "tree" / RECORD).write_text("[1")
    assert ceiling_of(open_source(str(tmp_path / "tree"), "all", "paired", NONE)) == 63.0, "the unit's"
