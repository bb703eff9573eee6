"""Lights of several months over one small scene, and runs of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from deeplight.engine.output.acquired import parse_dates
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.report import RunReport
from deeplight.engine.stack.options import StackOptions
from deeplight.engine.stack.report import StackReport
from deeplight.engine.stack.run import infer_dates
from tests.engine.analytic import write_analytic
from tests.scenes import SceneFiles, options, write_raster, write_scene

NODATA = -999.0
EMPTY = 3
"""The month without data."""


def name(month: int) -> str:
    """A month's date, as in file names."""
    return f"2020-{month:02}"


@dataclass(frozen=True)
class Months:
    """A scene, a model, and the lights of some months (months, h, w)."""

    files: SceneFiles
    model: str
    lights: NDArray[np.float32]

    @classmethod
    def write(cls, folder: Path, count: int = 4) -> Months:
        """Each month in a file of its own, ntl-2020-MM.tif; of month EMPTY no pixel has data."""
        files = write_scene(folder)
        with rasterio.open(files.ntl) as d:
            first = d.read(1)
        random = np.random.default_rng(1)
        lights = np.stack([first * random.uniform(0.5, 2.0, first.shape) for _ in range(count)])
        lights = np.where(first == NODATA, NODATA, lights).astype(np.float32)
        lights[EMPTY - 1] = NODATA
        for month, values in enumerate(lights, 1):
            write_raster(folder / f"ntl-{name(month)}.tif", values, nodata=NODATA, units=["nW/cm²/sr"])
        return cls(files, str(write_analytic(folder / "analytic")), lights)

    @property
    def folder(self) -> Path:
        """Where the lights are."""
        return self.files.ntl.parent

    @property
    def pattern(self) -> str:
        """Of all months."""
        return str(self.folder / "ntl-*.tif")

    @property
    def with_data(self) -> list[int]:
        """Months that become maps."""
        return [month for month in range(1, len(self.lights) + 1) if month != EMPTY]

    def request(self, out: Path, *ntl: object, dates: str = "", **changes: Any) -> StackOptions:
        """A run over some lights with the layers beside them."""
        names = tuple(map(str, ntl)) or (self.pattern,)
        run = RunOptions(options(self.files, ntl=names[0]), out, model=self.model, threads=1, **changes)
        return StackOptions(names, run, parse_dates(dates) if dates else None)

    def run(self, out: Path, *ntl: object, dates: str = "", **changes: Any) -> RunReport | StackReport | None:
        """The same, run."""
        return infer_dates(self.request(out, *ntl, dates=dates, **changes))

    def single(self, out: Path, ntl: object, band: int | None = None, **changes: Any) -> bytes:
        """The map of a single run, without any of the stack's code."""
        scene = replace(options(self.files, ntl=str(ntl)), ntl_band=band)
        infer(RunOptions(scene, out, model=self.model, threads=1, **changes))
        return out.read_bytes()
