"""Memory does not grow with the number of dates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engine.analytic import write_analytic
from tests.scenes import write_raster

SIDE = 256
"""LR pixels: the radiance of a date on the HR grid is 17 MB, its inputs with layers 140 MB."""


@pytest.mark.slow
def test_peak_memory_of_four_and_of_sixteen_dates(tmp_path: Path) -> None:
    random, model = np.random.default_rng(0), write_analytic(tmp_path / "analytic")
    for day in range(1, 17):
        lights = random.gamma(0.5, 8.0, (SIDE, SIDE)).astype(np.float32)
        write_raster(tmp_path / f"ntl-2020-01-{day:02}.tif", lights)
    dem = write_raster(tmp_path / "dem.tif", random.integers(0, 900, (SIDE, SIDE)).astype(np.int16))
    peaks = {}
    for count, pattern in ((4, "ntl-2020-01-0[1-4].tif"), (16, "ntl-*.tif")):
        out = tmp_path / f"out{count}"
        command = [sys.executable, "-m", "deeplight.engine.cli", "--ntl", str(tmp_path / pattern)]
        command += ["--dem", str(dem), "--model", str(model), "--out", str(out), "--threads", "1"]
        subprocess.run([*command, "--tiles", "128"], check=True, capture_output=True)
        report = json.loads((out / "run.json").read_text())
        assert len(report["dates"]) == count
        peaks[count] = report["peak_memory_bytes"]
    # 12 dates more; a pack of each, if it stayed, would be 200 MB
    assert peaks[16] < peaks[4] + 60e6, peaks
