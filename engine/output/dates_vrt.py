"""A VRT of the dates of one place: a band a date, each from its own map, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.files import write_file
from deeplight.engine.core.windows import Window
from deeplight.engine.output.acquired import acquired, shown_span, time_tags
from deeplight.engine.output.vrt import VrtSource, vrt_band, vrt_text

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec


def write_dates_vrt(path: Path, maps: Sequence[tuple[Path, OutputSpec]]) -> None:
    """Write the VRT of the radiance of finished maps on one grid, which lie in its folder, in the order of their dates.

    A band's description is its date, its metadata has the first and last second, as in the maps. The same maps give the
    same bytes. Raises DeepLightError where `path` cannot be written.
    """
    bands = (_band(number, out, spec) for number, (out, spec) in enumerate(maps, 1))
    write_file(path, [vrt_text(maps[0][1].grid, bands).encode()])


def _band(number: int, out: Path, spec: OutputSpec) -> str:
    when = acquired("", spec.tags)
    name = out.stem if when is None else shown_span(when)
    whole = Window(0, 0, *spec.grid.shape)
    return vrt_band(number, spec, name, spec.bands[0].unit, [VrtSource(out.name, 1, whole)], time_tags(when))
