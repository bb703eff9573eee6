"""The blur that all dates have where it is measured: a series must not change because its blurs do.

It is that of the maps that are there already, else that of the first date with enough lone lights. So dates that are
added later change none, whether they come before or behind the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.wording import counted
from deeplight.engine.output.dates_zarr import DatesZarr
from deeplight.engine.output.parts import Mode, parts_folder, stored_record
from deeplight.engine.raster.psf import Fwhm, parse_psf, shown_psf
from deeplight.engine.run.provenance import said_blur
from deeplight.engine.stack.options import StackOptions, is_group
from deeplight.engine.stack.report import earlier_report
from deeplight.engine.stack.zarr_group import STORE

if TYPE_CHECKING:
    from deeplight.engine.raster.lights import OpenLights
    from deeplight.engine.stack.nights import Night

AUTO = "auto"
_log = logging.getLogger(__name__)


def earlier_blur(options: StackOptions, nights: Sequence[Night]) -> Fwhm | str | None:
    """What the maps of an earlier run into this folder or group were made with, for `psf`; None where nothing is known
    of one, where its maps are to be replaced, and where nobody asks for a blur that is measured."""
    if options.run.scene.psf != AUTO or options.run.mode is Mode.OVERWRITE:
        return None
    said = next(filter(None, map(said_blur, _facts(options, nights))), None)
    if said is None:
        return None
    _log.info('`psf="auto"`: the blur is %s LR pixels, as in the maps of %s', said, options.run.out)
    return parse_psf(said)


def _facts(options: StackOptions, nights: Sequence[Night]) -> Iterator[Mapping[str, str]]:
    """What is written beside or in the maps of an earlier run, begun or finished."""
    for night in nights:
        record = stored_record(options.of(night).out)
        yield record.fields if record is not None else {}
    if is_group(options.run.out):
        begun = DatesZarr.open(parts_folder(options.run.out) / STORE)
        group = begun or DatesZarr.open(options.run.out)
        if group is not None:
            yield from (group.tags(key) or {} for key in group.keys)
    yield from map(_tags, _maps(options))


def _maps(options: StackOptions) -> list[Path]:
    """Finished maps in the folder. While they are being replaced, those that have been."""
    report = earlier_report(options.report)
    if report is not None and report.mode == Mode.OVERWRITE.value:
        return [Path(date.output) for date in report.dates if date.status == "complete"]
    return sorted(options.folder.glob("*.tif")) if options.folder.is_dir() else []


def _tags(path: Path) -> Mapping[str, str]:
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path) as dataset:
            return dict(dataset.tags())
    except RasterioIOError:  # the run of this date will say so
        return {}


def with_one_blur(found: Sequence[tuple[Night, bool, OpenLights]]) -> list[tuple[Night, bool, OpenLights]]:
    """The dates with the blur of the first one that shows it, where it was to be measured; says what it is."""
    lights = [date for _, _, date in found]
    asked = [date for date in lights if date.blur.found is not None]
    shown = next(((night, date) for night, _, date in found if date.blur.measured), None)
    if shown is None or len(found) == 1:
        # where none has enough, one sentence of the date that has most
        for date in [max(asked, key=lambda date: date.blur.found or 0)] if asked else lights:
            date.tell_blur()
        return list(found)
    night, first = shown
    _log.info(
        '`psf="auto"`: the blur of all dates is that of %s, %s LR pixels (FWHM along rows, columns), from %s',
        night.name,
        shown_psf(first.psf),
        counted(first.blur.found or 0, "isolated lights"),
    )
    return [(night, complete, replace(date, blur=first.blur)) for night, complete, date in found]
