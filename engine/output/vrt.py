"""VRTs over maps that lie in their folder: text that GDAL reads as one raster, without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.grid import Grid

VRT = "lights.vrt"
"""Name of the VRT in a folder of maps."""
_TYPES = {"float32": "Float32", "uint16": "UInt16"}


@dataclass(frozen=True)
class VrtSource:
    """A band of a map, which fills a window of the VRT pixel by pixel. name: of the map's file."""

    name: str
    band: int
    window: Window


def vrt_text(
    grid: Grid, bands: Iterable[str], tags: Mapping[str, str] | None = None, overviews: Sequence[int] = ()
) -> str:
    """The whole VRT. bands: of `vrt_band`. overviews: factors of overviews, which are read from those of the maps."""
    place = ", ".join(repr(float(v)) for v in grid.transform.to_gdal())
    # with "average" GDAL would read the full resolution in place of the maps' overviews, which are means
    levels = f'<OverviewList resampling="nearest">{" ".join(map(str, overviews))}</OverviewList>\n'
    return (
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">\n'
        f"<SRS>{escape(grid.crs.to_wkt())}</SRS>\n<GeoTransform>{place}</GeoTransform>\n{_metadata(tags or {})}"
        f"{levels if overviews else ''}{''.join(bands)}</VRTDataset>\n"
    )


def vrt_band(
    number: int,
    spec: OutputSpec,
    name: str,
    unit: str,
    sources: Iterable[VrtSource],
    tags: Mapping[str, str] | None = None,
) -> str:
    """One band of a VRT over maps that are encoded as `spec` says; nodata where no source is."""
    nodata = "nan" if math.isnan(spec.nodata) else repr(spec.nodata)
    blocks = f'blockXSize="{spec.block}" blockYSize="{spec.block}"'
    return (
        f'<VRTRasterBand dataType="{_TYPES[spec.dtype]}" band="{number}" {blocks}>\n'
        f"<Description>{escape(name)}</Description>{_metadata(tags or {})}"
        f"<UnitType>{escape(unit)}</UnitType><NoDataValue>{nodata}</NoDataValue>"
        f"<Offset>{spec.offset!r}</Offset><Scale>{spec.scale!r}</Scale>\n"
        f"{''.join(_source(source, spec) for source in sources)}</VRTRasterBand>\n"
    )


def _metadata(tags: Mapping[str, str]) -> str:
    items = "".join(f"<MDI key={quoteattr(k)}>{escape(v)}</MDI>" for k, v in tags.items())
    return f"<Metadata>{items}</Metadata>\n" if items else ""


def _source(source: VrtSource, spec: OutputSpec) -> str:
    """With the size of the map, so that GDAL opens it when it reads it, and not before."""
    w = source.window
    size = f'xSize="{w.width}" ySize="{w.height}"'
    about = (
        f'RasterXSize="{w.width}" RasterYSize="{w.height}" DataType="{_TYPES[spec.dtype]}" '
        f'BlockXSize="{spec.block}" BlockYSize="{spec.block}"'
    )
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(source.name)}</SourceFilename>'
        f"<SourceBand>{source.band}</SourceBand><SourceProperties {about}/>"
        f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{w.col}" yOff="{w.row}" {size}/></SimpleSource>\n'
    )
