"""A VRT of the dates of one place: a band a date, each from its own map, without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from deeplight.engine.core.files import write_file
from deeplight.engine.output.acquired import acquired, shown_span, time_tags

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec

_TYPES = {"float32": "Float32", "uint16": "UInt16"}


def write_dates_vrt(path: Path, maps: Sequence[tuple[Path, OutputSpec]]) -> None:
    """Write the VRT of the radiance of finished maps on one grid, which lie in its folder, in the order of their dates.

    A band's description is its date, its metadata has the first and last second, as in the maps. The same maps give the
    same bytes. Raises DeepLightError where `path` cannot be written.
    """
    grid = maps[0][1].grid
    place = ", ".join(repr(float(v)) for v in grid.transform.to_gdal())
    bands = "".join(_band(number, out, spec) for number, (out, spec) in enumerate(maps, 1))
    text = (
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">\n'
        f"<SRS>{escape(grid.crs.to_wkt())}</SRS>\n<GeoTransform>{place}</GeoTransform>\n{bands}</VRTDataset>\n"
    )
    write_file(path, [text.encode()])


def _band(number: int, out: Path, spec: OutputSpec) -> str:
    when = acquired("", spec.tags)
    tags = "".join(f"<MDI key={quoteattr(k)}>{escape(v)}</MDI>" for k, v in time_tags(when).items())
    nodata = "nan" if math.isnan(spec.nodata) else repr(spec.nodata)
    name = out.stem if when is None else shown_span(when)
    whole = f'xOff="0" yOff="0" xSize="{spec.grid.width}" ySize="{spec.grid.height}"'
    blocks = f'blockXSize="{spec.block}" blockYSize="{spec.block}"'
    return (
        f'<VRTRasterBand dataType="{_TYPES[spec.dtype]}" band="{number}" {blocks}>\n'
        f"<Description>{escape(name)}</Description><Metadata>{tags}</Metadata>\n"
        f"<UnitType>{escape(spec.bands[0].unit)}</UnitType><NoDataValue>{nodata}</NoDataValue>"
        f"<Offset>{spec.offset!r}</Offset><Scale>{spec.scale!r}</Scale>\n"
        f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(out.name)}</SourceFilename><SourceBand>1</SourceBand>'
        f"<SrcRect {whole}/><DstRect {whole}/></SimpleSource>\n</VRTRasterBand>\n"
    )
