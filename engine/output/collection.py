"""The STAC collection of a folder of maps, of dates or of regions of one, one item each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.files import write_file
from deeplight.engine.output.stac import COLLECTION, require_pystac

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec


def write_collection(folder: Path, spec: OutputSpec, items: Sequence[Path], what: str) -> Path:
    """Write the collection of `items`, which lie in `folder`, and return its path. spec: with the grid of
    all. what: they are, as "of 12 dates".

    The same items give the same bytes. Raises InputError where pystac is missing, DeepLightError where the disk
    refuses.
    """
    require_pystac()
    import pystac

    from deeplight.engine.output.footprint import footprint

    _, bbox = footprint(spec.grid)
    spans = [_span(json.loads(path.read_text("utf-8"))["properties"]) for path in items]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    instants = [pystac.utils.str_to_datetime(at) for at in (first, last)]
    collection = pystac.Collection(
        folder.resolve().name,
        f"Nighttime lights {what}, refined 8× by {spec.tags['DEEPLIGHT_MODEL']}",
        pystac.Extent(pystac.SpatialExtent([bbox]), pystac.TemporalExtent([list(instants)])),
        license="other",  # that of the maps is that of the layers they were made from
    )
    for path in items:
        collection.add_link(pystac.Link(pystac.RelType.ITEM, f"./{path.name}", pystac.MediaType.GEOJSON))
    content = collection.to_dict(include_self_link=False, transform_hrefs=False)
    path = folder / COLLECTION
    write_file(path, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])
    return path


def _span(properties: dict[str, Any]) -> tuple[str, str]:
    """First and last second of an item."""
    instant = properties["datetime"]
    return (instant, instant) if instant else (properties["start_datetime"], properties["end_datetime"])
