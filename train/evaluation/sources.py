"""What is evaluated on: clips, whole provinces of rasters, held-out synthetic countries."""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.extents import same_crs
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.remedies import copied, quoted
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import open_raster
from deeplight.engine.raster.units import RADIANCE_UNIT
from deeplight.train.clips.samples import Sample, SampleSource
from deeplight.train.evaluation.models import Inputs

SYNTHETIC = "synthetic"
COUNTRY_SIDE = 96
"""LR pixels along each side of a held-out synthetic country's part."""
_LAYERS = ("ntl", "ntl_valid", "dmo", "dmo_valid", "dmo_bands", "dem", "dem_valid")


def is_province(data: str) -> bool:
    """Whether DATA is a folder of rasters with a truth: ntl.tif and ntl_hr.tif."""
    return all((Path(data) / name).is_file() for name in ("ntl.tif", "ntl_hr.tif"))


def scene_options(folder: Path, auxiliary: bool = True) -> SceneOptions:
    """Return the rasters of a province: ntl.tif, and dmo.tif and dem.tif where they exist and are wanted."""
    paths = (folder / "dmo.tif", folder / "dem.tif")
    dmo, dem = (str(path) if auxiliary and path.is_file() else None for path in paths)
    return SceneOptions(str(folder / "ntl.tif"), dmo, dem)


class Province:
    """A folder of rasters as one place, read window by window through the engine. A context manager.

    auxiliary: False leaves DMO and DEM out, for outputs that are there already. Raises InputError where the truth is
    not on the NTL grid subdivided 8×.
    """

    def __init__(self, folder: Path, auxiliary: bool = True) -> None:
        self._folder = folder
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.scene = stack.enter_context(Scene.open(scene_options(folder, auxiliary)))
            raster = stack.enter_context(open_raster(str(folder / "ntl_hr.tif"), "truth"))
            self._truth = Layer(raster, raster.bands[:1])
            _check_grid(raster.grid, self.scene.hr_grid, raster.name, str(folder / "ntl.tif"))
            self._stack = stack.pop_all()

    def __enter__(self) -> Province:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return 1

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of the NTL in LR pixels."""
        return self.scene.grid.height, self.scene.grid.width

    def name(self, index: int) -> str:
        """Return the folder's name, for messages."""
        return self._folder.name or str(self._folder)

    def key(self, index: int) -> str:
        """Return an empty text: the only place needs no name for random draws."""
        return ""

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window; without ISP and offset, which a province does not have."""
        inputs = {name: values[0] for name, values in self.scene.read_inputs(window).items()}
        truth, valid = self._truth.read_native(window.scaled(SCALE))
        nothing = np.zeros_like(truth)
        parts: dict[str, Any] = {
            **{name: inputs[name] for name in _LAYERS},
            "ntl_hr": truth,
            "ntl_hr_valid": valid[None].astype(np.float32),
            "isp": nothing,
            "isp_valid": nothing,
            "offset": None,
        }
        return Sample(**parts)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the files' names, sizes and times."""
        digest = hashlib.sha256()
        for path in sorted(self._folder.glob("*.tif")):
            facts = path.stat()
            digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _check_grid(truth: Grid, wanted: Grid, name: str, ntl: str) -> None:
    same = truth.shape == wanted.shape and same_crs(truth.crs, wanted.crs, wanted)
    # a tenth of an HR pixel at the far corner
    far = (wanted.width, wanted.height)
    step = abs(wanted.transform.a) + abs(wanted.transform.b)
    places = [np.array(grid.transform @ far) for grid in (truth, wanted)]
    if not same or np.abs(places[0] - places[1]).max() > 0.1 * step:
        command = copied(name, "aligned.tif", f"--like {quoted(ntl)} --cut {SCALE} --mean")
        raise InputError(
            f"{name} has {truth.width}×{truth.height} pixels in {truth.crs.to_string()} and must lie on the NTL grid "
            f"cut {SCALE}×, {wanted.width}×{wanted.height} pixels in {wanted.crs.to_string()}: "
            f"warp it there with {command}"
        )


class HeldOutCountries:
    """Parts of synthetic countries that no training sees, made when they are read."""

    def __init__(self, seeds: range, side: int = COUNTRY_SIDE) -> None:
        self._seeds, self._side = seeds, side

    def __len__(self) -> int:
        return len(self._seeds)

    def size(self, index: int) -> tuple[int, int]:
        """Return the side of the square part of the country, twice, in LR pixels."""
        return self._side, self._side

    def name(self, index: int) -> str:
        """Return the country's seed as text, for messages."""
        return f"country {self._seeds[index]}"

    def key(self, index: int) -> str:
        """Return what names the country for random draws: its name."""
        return self.name(index)

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window; the country's part is made where it is not the last one read."""
        return _country_part(self._seeds[index], index, self._side).cut(window)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the seeds and the side."""
        return hashlib.sha256(f"{SYNTHETIC} {self._seeds} {self._side}".encode()).hexdigest()


@lru_cache(maxsize=1)
def _country_part(seed: int, index: int, side: int) -> Sample:
    from deeplight.train.fit.pool import country_config
    from deeplight.train.synth import Country

    row, col = (int(v) for v in np.random.default_rng((seed, index)).integers(0, 4096, 2))
    made = Country(country_config(seed)).sample(Window(row, col, side, side))
    return Sample.complete(
        made.ntl[None], made.ntl_hr[None], made.isp[None], made.dmo, made.dem[None], made.offset
    )


def unit_of(source: SampleSource) -> str:
    """Return the unit of a source's lights. Of a clip tree it is "" where its index does not give one and the same for
    all clips; made-up countries are in radiance."""
    units = {row.unit for row in getattr(getattr(source, "source", source), "rows", ())}
    if not units:
        return RADIANCE_UNIT
    return units.pop() if len(units) == 1 else ""


def ceiling_of(source: SampleSource) -> float:
    """Return the LR value from which a source's lights are saturated; infinite where the source does not say.

    By Wald's protocol it is the degradation's, of clips that of their product.
    """
    return float(getattr(source, "ceiling", math.inf))


def read_padded(
    source: SampleSource, place: int, window: Window
) -> tuple[Inputs, Doubles, NDArray[np.bool_]]:
    """Return inputs (batch of 1), truth and its validity on a window that may leave the place; pixels outside are
    invalid."""
    height, width = source.size(place)
    inside = window.clipped(height, width)
    if inside.height and inside.width:
        sample = source.read(place, inside)
    else:
        raise ValueError(f"{window} does not meet the place of {height}×{width}")
    grow = {
        False: _padding(inside, window),
        True: _padding(inside.scaled(SCALE), window.scaled(SCALE)),
        None: (),
    }
    inputs = {
        spec.name: np.pad(getattr(sample, spec.name), ((0, 0), *grow[spec.hr]))[None].astype(np.float32)
        if spec.hr is not None
        else getattr(sample, spec.name)[None].astype(np.float32)
        for spec in INPUTS
    }
    truth = np.pad(sample.ntl_hr[0], grow[True]).astype(np.float64)
    return inputs, truth, np.pad(sample.ntl_hr_valid[0] > 0, grow[True])


def _padding(inner: Window, outer: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns that `outer` has before and after `inner`."""
    rows, cols = inner.slices_in(outer)
    return (rows.start, outer.height - rows.stop), (cols.start, outer.width - cols.stop)
