"""Nighttime lights as people bring them, and deeplight-infer on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deeplight.engine import cli
from deeplight.engine.core.arrays import Floats
from tests.scenes import write_raster


def lights(side: int = 48, seed: int = 1, cities: int = 14) -> Floats:
    """Radiance (side, side) of towns of 3 … 160 nW/cm²/sr with VIIRS' noise, cut at 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    values = np.zeros((side, side))
    for _ in range(cities):
        row, col, size = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.7, 3)
        bright = 10 ** rng.uniform(0.5, 2.2)
        values += bright * np.exp(-((y - row) ** 2 + (x - col) ** 2) / 2 / size / size)
    return np.maximum(values + rng.normal(0, 0.06, values.shape), 0).astype(np.float32)


def hole(side: int = 48) -> NDArray[np.bool_]:
    """The mask of a gap of 120 pixels."""
    gap = np.zeros((side, side), bool)
    gap[10:20, 12:24] = True
    return gap


def put(folder: Path, values: Any, name: str = "n.tif", **header: Any) -> str:
    """Writes values as a raster of this name; returns its path."""
    return str(write_raster(folder / name, values, **header))


def infer(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit status, stderr) of deeplight-infer in this process."""
    old, sys.argv = sys.argv, ["deeplight-infer", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    finally:
        sys.argv = old
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capfd.readouterr().err


def refusal(capfd: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """The one sentence with which a run is refused, before anything is written."""
    before = sorted(folder.iterdir())
    status, said = infer(capfd, *arguments, "--out", folder / "refused.tif")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1, said
    assert sorted(folder.iterdir()) == before
    return errors[0]
