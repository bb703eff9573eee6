"""Radiance conserved on real lights, seen again by a sensor that shares nothing with the engine's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.scenes import write_raster
from tests.wald import coarsened

Floats = NDArray[np.float32]
RIM = (slice(3, -3),) * 2
"""Without the 3 LR pixels along the edges, to which the blur brings light from beyond."""


def conserved(lr: Floats, fwhm: float, tmp_path: Path) -> Floats:
    """The map (8h, 8w) that the model in the package makes of lights, told their blur."""
    ntl = write_raster(tmp_path / "ntl.tif", lr, units=["nW/cm²/sr"])
    scene = SceneOptions(str(ntl), psf=(fwhm, fwhm))
    out = tmp_path / "out.tif"
    infer(RunOptions(scene=scene, out=out, conserve_radiance=True, tiles=TileRequest(64)))
    with rasterio.open(out) as file:
        return np.asarray(file.read(1), np.float32)


def differences(lr: Floats, found: Floats, fwhm: float) -> tuple[float, float]:
    """Root mean square of what the sensor sees too much or too little, and the largest error of a sum over 32² LR
    pixels (of all, where there are fewer), as shares. Dark squares, below 2 % of the brightest, are left out."""
    again, lr = coarsened(found, (fwhm, fwhm))[1][RIM], lr[RIM]
    rms = float(np.sqrt(np.mean((again - lr) ** 2) / np.mean(lr**2)))
    squares = [
        (float(lr[r : r + 32, c : c + 32].sum()), float(again[r : r + 32, c : c + 32].sum()))
        for r in range(0, max(lr.shape[0] - 31, 1), 32)
        for c in range(0, max(lr.shape[1] - 31, 1), 32)
    ]
    least = 0.02 * max(given for given, _ in squares)
    return rms, max(abs(made / given - 1) for given, made in squares if given >= least)


@pytest.mark.parametrize("fwhm", [0.0, 1.0, 1.6])
@pytest.mark.parametrize("place", ["san_antonio", "luxembourg"])
def test_real_lights_through_a_known_blur(shared_data: Path, tmp_path: Path, place: str, fwhm: float) -> None:
    """The lights of a place are the truth here, and what a sensor sees of them is the input."""
    name, middle = (
        ("ntl_hr.tif", np.s_[440:920, 440:920]) if place == "san_antonio" else ("ntl.tif", np.s_[:, :])
    )
    with rasterio.open(shared_data / place / name) as file:
        truth = file.read(1, masked=True)[middle]
    assert not np.ma.is_masked(truth)
    lr = coarsened(np.asarray(truth.filled(0), np.float32), (fwhm, fwhm))[1]
    rms, sums = differences(lr, conserved(lr, fwhm, tmp_path), fwhm)
    assert rms <= 0.02 and sums <= 0.005


def test_real_lights_as_they_are(shared_data: Path, tmp_path: Path) -> None:
    """Touggourt by VIIRS: its true blur is not known, and the product's is what it is told."""
    with rasterio.open(shared_data / "touggourt" / "ntl.tif") as file:
        lr = file.read(1).clip(0).astype(np.float32)
    rms, sums = differences(lr, conserved(lr, 1.6, tmp_path), 1.6)
    assert rms <= 0.02 and sums <= 0.005
