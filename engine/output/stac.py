"""A STAC item beside the output, so that catalogues find it: of a map, or of a Zarr group of several dates."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.files import write_file
from deeplight.engine.core.windows import Window
from deeplight.engine.output.acquired import Span, acquired
from deeplight.engine.output.model_item import link_model

if TYPE_CHECKING:
    from pystac import Item
    from pystac.extensions.raster import RasterBand

    from deeplight.engine.output.packs import BandSpec, OutputSpec
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.source import Raster
    from deeplight.engine.runtime.manifest import Manifest

_log = logging.getLogger(__name__)

PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"

ZARR = "application/vnd.zarr; version=3"
"""The media type of a Zarr group."""

COLLECTION = "collection.json"
"""Name of the collection of a folder's items."""


def require_pystac() -> None:
    """Raises InputError where pystac is missing."""
    if find_spec("pystac") is None:
        raise InputError(f"`stac=True` needs pystac, which is not installed: {install_command('stac')}")


def item_path(out: Path) -> Path:
    """Where the item of an output lies: out.tif → out.stac.json, as of out.zarr."""
    return out.with_suffix(".stac.json")


def write_item(out: Path, spec: OutputSpec, ntl: Raster, model: Manifest, collection: str = "") -> Path:
    """Write the item of the finished output `out`, made from `ntl` by `model`, and return its path; that of the model
    (`write_model_item`) lies beside it. collection: id of the one in the same folder that it belongs to.

    The same output of the same NTL raster gives the same item. Raises InputError where pystac is missing,
    DeepLightError where the disk refuses.
    """
    return write_items([(out, spec)], ntl, model, collection)[0]


def write_items(
    maps: Sequence[tuple[Path, OutputSpec]], ntl: Raster, model: Manifest, collection: str
) -> list[Path]:
    """As `write_item`, of several outputs of one time."""
    require_pystac()
    when = _time(maps[0][1], ntl) if maps else None
    return [_write_item(out, spec, when, model, collection) for out, spec in maps if when is not None]


def _write_item(out: Path, spec: OutputSpec, when: Span, model: Manifest, collection: str) -> Path:
    import pystac

    item = _item(out, spec, when)
    bands = [_band(spec, band, spec.dtype, spec.nodata) for band in spec.bands]
    _add_data(item, out, pystac.MediaType.COG, bands)
    if collection:
        item.collection_id = collection
        item.add_link(pystac.Link(pystac.RelType.COLLECTION, f"./{COLLECTION}", pystac.MediaType.JSON))
    return _write(item, out, model)


def write_group_item(out: Path, spec: OutputSpec, dates: Sequence[Span], model: Manifest) -> Path:
    """Write the item of the Zarr group `out` and return its path; that of the model lies beside it.

    It is of the time from the first date to the last, and says the group's dimensions and arrays. spec: of a map of any
    date. dates: of the group, in order. The same group gives the same item. Raises as `write_item`.
    """
    require_pystac()
    from pystac.extensions.datacube import DatacubeExtension, Dimension, Variable

    from deeplight.engine.output.zarr_attributes import array_name, cube_dimensions, fill_of, type_of

    item = _item(out, spec, (dates[0][0], dates[-1][1]))
    bands = [_band(spec, band, type_of(spec, band), fill_of(spec, band)) for band in spec.bands]
    _add_data(item, out, ZARR, bands)
    dimensions = cube_dimensions(spec.grid, dates)
    said: dict[str, dict[str, Any]] = {
        array_name(band): {"dimensions": ["time", "y", "x"], "type": "data", "description": band.name}
        | ({"unit": band.unit} if band.unit else {})
        for band in spec.bands
    }
    DatacubeExtension.ext(item, add_if_missing=True).apply(
        {name: Dimension.from_dict(about) for name, about in dimensions.items()},
        {name: Variable(about) for name, about in said.items()},
    )
    return _write(item, out, model)


def _write(item: Item, out: Path, model: Manifest) -> Path:
    link_model(item, model)
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    path = item_path(out)
    write_file(path, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])
    return path


def _item(out: Path, spec: OutputSpec, when: Span) -> Item:
    """The item without assets."""
    import pystac
    from pystac.extensions.projection import ProjectionExtension

    from deeplight.engine.output.footprint import footprint

    geometry, bbox = footprint(spec.grid)
    first, last = when
    properties: dict[str, Any] = {
        "processing:software": {"deeplight": spec.tags["DEEPLIGHT_VERSION"]},
        "processing:lineage": f"NTL refined 8× by {spec.tags['DEEPLIGHT_MODEL']}",
    }
    item = pystac.Item(
        out.stem,
        geometry,
        bbox,
        first if first == last else None,
        properties,
        start_datetime=None if first == last else first,
        end_datetime=None if first == last else last,
        stac_extensions=[PROCESSING],
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    epsg = spec.grid.crs.to_epsg()
    projection.apply(
        code=None if epsg is None else f"EPSG:{epsg}",
        wkt2=spec.grid.crs.to_wkt(version="WKT2_2019") if epsg is None else None,
        bbox=list(spec.grid.bounds_xy),
        shape=[spec.grid.height, spec.grid.width],
        transform=list(spec.grid.transform[:6]),
    )
    return item


def _add_data(item: Item, out: Path, kind: str, bands: Sequence[RasterBand]) -> None:
    """The asset of the output, a file or a group of this media type."""
    import pystac
    from pystac.extensions.raster import RasterExtension

    asset = pystac.Asset(f"./{out.name}", "Nighttime lights", media_type=kind, roles=["data"])
    item.add_asset("data", asset)
    RasterExtension.ext(asset, add_if_missing=True).apply(list(bands))


def _band(spec: OutputSpec, band: BandSpec, dtype: str, nodata: float) -> RasterBand:
    from pystac.extensions.raster import DataType, RasterBand

    packed = dtype == "uint16"
    written = RasterBand.create(
        nodata="nan" if math.isnan(nodata) else nodata,  # type: ignore[arg-type]
        data_type=DataType(dtype),
        unit=band.unit or None,
        spatial_resolution=_resolution_m(spec.grid),
        scale=spec.scale if packed else None,
        offset=spec.offset if packed else None,
    )
    written.properties["name"] = band.name
    return written


def _resolution_m(grid: Grid) -> float:
    """Side of a square as large as the pixel in the middle of the grid, in metres."""
    from deeplight.engine.raster.geodesy import valid_area_km2

    middle = Window(grid.height // 2, grid.width // 2, 1, 1)
    return round(1000 * math.sqrt(valid_area_km2(grid, middle, np.ones((1, 1), np.uint8))), 2)


def _time(spec: OutputSpec, ntl: Raster) -> Span:
    """The time that the output's tags say; with a warning the date of change of the NTL's file, where nothing does."""
    found = acquired("", spec.tags)
    if found is not None:
        return found
    _log.warning(
        "neither the metadata nor the name of %s says when it was taken; "
        "the STAC item has the time that file was last changed: correct its datetime",
        ntl.what,
    )
    stamp = datetime.now(UTC) if ntl.path is None else datetime.fromtimestamp(ntl.path.stat().st_mtime, UTC)
    return (stamp.replace(microsecond=0),) * 2
