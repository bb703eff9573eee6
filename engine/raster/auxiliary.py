"""The layers beside NTL as a scene opens them: daytime bands, in one file or each in its own, and elevation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention
from deeplight.engine.raster.bands import FactorOnly, assign_bands, find_bands
from deeplight.engine.raster.elevation import ELEVATIONS, check_elevation, check_unit
from deeplight.engine.raster.extents import Overlap, format_bounds, lonlat_bounds, overlap
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.kept import KeptTiles
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.plausibility import (
    REFLECTANCES,
    check_offset,
    check_reflectance,
)
from deeplight.engine.raster.remedies import copied
from deeplight.engine.raster.sentinel import tagged_scale
from deeplight.engine.raster.side_by_side import joined
from deeplight.engine.raster.single import check_single, chosen_band
from deeplight.engine.raster.source import Raster, open_raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplight.engine.raster.scene import SceneOptions

_log = logging.getLogger(__name__)

DEM_VOID = -32768.0
"""SRTM's void, also where a file does not declare it; no place on Earth is that deep."""


class Daytime:
    """The daytime bands of a scene on the HR grid, from files that may lie on grids of their own.

    slots: slot name to 1-based band of its file, in slot order. files: each open file as (channels, layer), channels
    being places in DMO_SLOTS. joined: the same of what is read, where files of one grid are one. share: part of the NTL
    grid that the file covers which covers least.
    """

    def __init__(self, files: Sequence[tuple[Mapping[str, int], AuxLayer]], hr: Grid) -> None:
        bands = {slot: number for slots, _ in files for slot, number in slots.items()}
        self.slots = {slot: bands[slot] for slot in DMO_SLOTS if slot in bands}
        self.files = [([DMO_SLOTS.index(slot) for slot in slots], layer) for slots, layer in files]
        self.joined = joined(self.files, hr)
        self.share = min(layer.overlap.share for _, layer in files)
        self.filled = sorted(channel for channels, _ in self.files for channel in channels)

    @property
    def layers(self) -> tuple[AuxLayer, ...]:
        """The open files."""
        return tuple(layer for _, layer in self.files)

    def read_into(self, hr_window: Window, values: Floats, mask: NDArray[Any]) -> None:
        """Reflectance (7, H, W) by slot and the mask (H, W) of pixels where every file is valid; 0 elsewhere and in
        slots without a band. The window may leave the files. Arrays of any content, see AuxLayer.read_into."""
        if [channels for channels, _ in self.joined] == [list(range(len(values)))]:
            self.joined[0][1].read_into(hr_window, values, mask)
            return
        values[sorted(set(range(len(values))) - set(self.filled))], mask[:] = 0, 1
        for channels, layer in self.joined:
            first, end = channels[0], channels[0] + len(channels)
            if channels == list(range(first, end)):
                valid = np.empty(hr_window.shape, np.uint8)
                layer.read_into(hr_window, values[first:end], valid)
            else:
                values[channels], valid = layer.read(hr_window)
            mask *= valid
        if len(self.joined) > 1:
            values *= mask != 0

    def describe(self) -> dict[str, Any]:
        """Facts for the run report: "slots", and those of the file (AuxLayer.describe), or of each under "files"."""
        if len(self.files) == 1:
            return {**self.layers[0].describe(), "slots": self.slots}
        files = {DMO_SLOTS[channels[0]]: layer.describe() for channels, layer in self.files}
        sizes = [file["bytes"] for file in files.values()]
        return {
            "files": {slot: files[slot] for slot in self.slots},
            "bytes": None if None in sizes else sum(sizes),
            "bytes_read": sum(file["bytes_read"] for file in files.values()),
            "share_of_scene": self.share,
            "slots": self.slots,
        }


@dataclass(frozen=True)
class Beside:
    """The layers beside the lights, open. They may serve several scenes on one grid, one after the other."""

    dmo: Daytime | None
    dem: AuxLayer | None
    kept: KeptTiles

    @classmethod
    def open(cls, options: SceneOptions, ntl: Grid, stack: ExitStack, keep: int = 0) -> Beside:
        """Opens and checks those that are given, closed by `stack`. keep: bytes of resampled tiles that stay for the
        next scene. Raises InputError as `open_daytime` and `open_elevation` do."""
        return cls(open_daytime(options, ntl, stack), open_elevation(options, ntl, stack), KeptTiles(keep))

    def rest(self) -> None:
        """Closes files until the next read; see Raster.rest."""
        daytime = () if self.dmo is None else (layer for _, layer in self.dmo.joined)
        for layer in (*daytime, self.dem):
            if layer is not None:
                layer.pixels.rest()


def check_auxiliary_options(options: SceneOptions) -> None:
    """Raises InputError where options about daytime bands exclude each other, or are about a layer that is not given: a
    mistake, not a wish to ignore."""
    if options.dmo is not None and options.dmo_files:
        raise InputError("`dmo` and `dmo[slot]` both give daytime bands: use one of them")
    if options.dmo_bands is not None and options.dmo_files:
        raise InputError(
            "`dmo_bands` assigns the bands of one file, `dmo`, and `dmo[slot]` gives each band by its slot: leave out "
            "`dmo_bands`"
        )
    seen: dict[str, str] = {}
    for slot, name in (options.dmo_files or {}).items():
        if slot not in DMO_SLOTS:
            raise InputError(f"{slot!r} is not a band slot; slots are {', '.join(DMO_SLOTS)}")
        first = seen.setdefault(str(Path(name).absolute()), slot)
        if first != slot:
            raise InputError(
                f"`dmo[slot]` gives {name} for {first} and for {slot}: give each slot its own file"
            )
    daytime = options.dmo is not None or bool(options.dmo_files)
    for layer, there, what, remedy in (
        ("dmo", daytime, "the daytime bands and there are", "`dmo` or `dmo[slot]`"),
        ("dem", options.dem is not None, "the elevation and there is", "`dem`"),
    ):
        about = [f.name for f in fields(options) if f.name.startswith(f"{layer}_") and f.name != "dmo_files"]
        given = [name for name in about if getattr(options, name) is not None]
        if given and not there:
            raise InputError(f"`{given[0]}` is about {what} none: give {remedy}, or leave it out")


def open_daytime(options: SceneOptions, ntl: Grid, stack: ExitStack) -> Daytime | None:
    """The daytime bands that are asked for, closed by `stack`; None without any.

    Raises InputError, one sentence with the remedy, where a file cannot be used or does not meet the NTL raster,
    where it is not known which bands it holds, and where their values cannot be reflectance or may have an offset.
    """
    names = dict(options.dmo_files or {})
    if options.dmo is not None:
        names[""] = options.dmo
    if not names:
        return None
    files, unsaid = [], []
    for slot, name in names.items():
        raster = stack.enter_context(open_raster(name, "DMO", options.allow_remote, options.placement("dmo")))
        given = options.dmo_bands
        if slot:
            check_single(raster, _one_of_several(raster, slot, alone=len(names) == 1))
            given = {slot: raster.bands[0]}
        file = Path(name).name
        slots = assign_bands(raster.what, raster.band_names, raster.bands, given, file, raster.wavelengths)
        found = meeting(ntl, raster)
        bands = tuple(slots.values())
        scale = tagged_scale(raster, bands, options.dmo_scale)
        nodata = options.dmo_nodata if options.dmo_nodata is not None else _daytime_void(raster, bands, scale)
        layer = AuxLayer(raster, bands, ntl.finer(), found, scale, nodata, REFLECTANCES)
        files.append((slots, layer))
        if scale is None or isinstance(scale, FactorOnly):
            unsaid.append(layer)
    layers = [layer for _, layer in files]
    for layer in layers:
        check_reflectance(layer, [other for other in layers if other is not layer])
    check_offset(unsaid, layers)
    daytime = Daytime(files, ntl.finer())
    missing = [slot for slot in DMO_SLOTS if slot not in daytime.slots]
    if missing:
        _log.info("DMO: no band for %s; the network is told so", ", ".join(missing))
    return daytime


def _one_of_several(raster: Raster, slot: str, alone: bool) -> str:
    """How to use one of the bands of a file that `dmo[slot]` names. alone: it names no other file."""
    found = find_bands(
        raster.what, raster.band_names, raster.bands, Path(raster.name).name, raster.wavelengths
    )
    band = found.get(slot, raster.bands[0])
    if alone:
        return f"name it with its bands: {mention(dmo=raster.name, dmo_bands={slot: band})}"
    return f"write the one for {slot} to a file of its own: {copied(raster.name, f'{slot}.tif', f'--band {band}')}"


def _daytime_void(raster: Raster, bands: Sequence[int], scale: tuple[float, float] | None) -> float | None:
    """0 in integers with an offset below zero that declare nothing: Landsat's and Sentinel-2's fill, of which the
    offset would make a reflectance of −0.2 or −0.1."""
    offsets = [raster.offsets[band - 1] if scale is None else scale[1] for band in bands]
    silent = all(raster.nodata[band - 1] is None for band in bands)
    whole = all(np.dtype(raster.dtypes[band - 1]).kind in "iu" for band in bands)
    return 0.0 if silent and whole and max(offsets) < 0 else None


def open_elevation(options: SceneOptions, ntl: Grid, stack: ExitStack) -> AuxLayer | None:
    """The elevation that is asked for, closed by `stack`; None without any. Raises InputError where it cannot be
    used."""
    if options.dem is None:
        return None
    raster = stack.enter_context(
        open_raster(options.dem, "DEM", options.allow_remote, options.placement("dem"))
    )
    band = chosen_band(raster, options.dem_band)
    if options.dem_scale is None:
        check_unit(raster, band)
    signed = np.dtype(raster.dtype).kind != "u"
    nodata = options.dem_nodata
    if nodata is None and raster.nodata[band - 1] is None and signed:
        nodata = DEM_VOID
    found = meeting(ntl, raster)
    layer = AuxLayer(raster, (band,), ntl.finer(), found, options.dem_scale, nodata, ELEVATIONS)
    check_elevation(layer)
    return layer


def meeting(ntl: Grid, raster: Raster) -> Overlap:
    """How a raster meets the NTL grid. Raises InputError where it does not."""
    found = overlap(ntl, raster.grid)
    if found is None:
        raise InputError(
            f"{raster.what} ({format_bounds(lonlat_bounds(raster.grid))}) does not overlap the NTL raster "
            f"({format_bounds(lonlat_bounds(ntl))}); give layers of the same place"
        )
    return found
