"""The STAC items of an output in regions, and their collection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import remove_leftovers
from deeplight.engine.core.wording import counted
from deeplight.engine.output.regions import files_of, is_collection_of_regions, piece_of, region_window
from deeplight.engine.output.stac import COLLECTION, item_path

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.source import Raster
    from deeplight.engine.runtime.manifest import Manifest


def write_region_items(vrt: Path, spec: OutputSpec, side: int, ntl: Raster, model: Manifest) -> Path:
    """Write an item for each region of a finished VRT, and the collection of all, whose path is returned; the item of
    the model lies beside them. side: of a region in HR pixels. Raises as `write_item`."""
    from deeplight.engine.output.collection import write_collection
    from deeplight.engine.output.stac import write_items

    files, folder = files_of(vrt), vrt.parent
    remove_leftovers(folder, {COLLECTION, *(item_path(path).name for path in files)})
    windows = [region_window(piece_of(path.name), side, spec) for path in files]
    maps = [(path, replace(spec, grid=spec.grid.part(w))) for path, w in zip(files, windows, strict=True)]
    items = write_items(maps, ntl, model, collection=folder.resolve().name)
    return write_collection(folder, spec, items, f"in {counted(len(items), 'regions')}")


def check_collection(path: Path) -> None:
    """Raise InputError where there is a collection of anything but regions, which would be replaced."""
    if path.exists() and not is_collection_of_regions(path):
        raise InputError(
            f"{path} is not of a map in regions, and its name is needed for one: move it away, or choose another "
            "folder"
        )
