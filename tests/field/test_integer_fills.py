"""Fill values that scaled integers and integers of 32 bits do not declare, and small numbers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.raster.scene import Scene, SceneOptions
from tests.field.lights import hole, lights, put, refusal
from tests.field.test_radiance import WHOLE, remedy

SCALED_FILLS = [
    (32766, "int16", 0.1), (65534, "uint16", 0.1), (65534, "uint16", 0.01), (32766, "int16", 1.0),
    (65534, "int32", 1.0), (255, "uint8", 2.0), (7777, "int16", 0.1), (999999, "int32", 1.0),
    (999999, "int32", 0.1), (99999, "int32", 0.1),
    (2147483647, "int32", 0.001), (4294967295, "uint32", 0.001), (2147483647, "float64", 0.001),
    (-2147483648, "float64", 1e-8), (-2147483648, "int32", 1e-4), (-32768, "int16", 0.001), (-9999, "int16", 0.005),
]  # fmt: skip
"""Raw value, type, scale; some are beyond the range of radiance too."""


@pytest.mark.parametrize(("fill", "dtype", "scale"), SCALED_FILLS)
def test_an_undeclared_fill_value_of_scaled_and_of_wide_integers_is_refused(
    fill: float, dtype: str, scale: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gap = hole()
    truth = np.rint(lights() / scale).astype(dtype)
    path = put(tmp_path, np.where(gap, np.asarray(fill, dtype), truth), scales=[scale], units=["nW/cm2/sr"])
    assert remedy(refusal(capfd, tmp_path, "--ntl", path)) == ["--ntl-nodata", str(fill)]
    with Scene.open(SceneOptions(path, ntl_nodata=fill)) as scene:
        values, valid = scene.read_ntl(WHOLE)
    np.testing.assert_array_equal(valid == 0, gap)
    np.testing.assert_allclose(values[~gap], truth[~gap] * scale, rtol=1e-6)


def test_noise_in_scaled_integers_is_no_fill_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A raw −1 is −0.1 nW/cm²/sr here, and beside zeros it is no gap."""
    raw = np.rint(lights() * 10).astype(np.int16)
    raw[raw == 0] -= np.random.default_rng(4).integers(0, 2, (raw == 0).sum()).astype(np.int16)
    with Scene.open(SceneOptions(put(tmp_path, raw, scales=[0.1], units=["nW/cm2/sr"]))) as scene:
        assert scene.read_ntl(WHOLE)[1].all()
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []
