"""How a raster's pixels are stored: whether its blocks can be read, and whether all of them are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.remedies import copy_as_geotiff

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_MAX_BLOCK = 1 << 30
_BIG_BLOCK = 64 << 20
_BLOCK_TO_FILE = 200
_MAX_BLOCKS_CHECKED = 50_000


def pixel_interleaved(dataset: DatasetReader) -> bool:
    """Whether a block holds all bands of its pixels."""
    return dataset.interleaving is not None and dataset.interleaving.name == "pixel"


def check_blocks(what: str, name: str, dataset: DatasetReader, size: int) -> None:
    """Refuses files whose smallest read takes absurd memory, and TIFFs that end before their pixels do.

    what, name: of the raster, for messages. size: of the file in bytes.
    """
    height, width = dataset.block_shapes[0]
    by_pixel = pixel_interleaved(dataset)
    itemsize = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    block = height * width * itemsize * (dataset.count if by_pixel else 1)
    if block > _MAX_BLOCK or (block > _BIG_BLOCK and block > _BLOCK_TO_FILE * size):
        raise InputError(
            f"{what} ({size} bytes) is stored in blocks of {block >> 20} MB, each read whole; "
            f"rewrite it in tiles: {copy_as_geotiff(name, 'tiled.tif')}"
        )
    if dataset.driver == "GTiff" and _tiff_end(dataset, by_pixel) > size:
        raise InputError(f"{what} is truncated: it ends before its pixels do; fetch or write it again")


def _tiff_end(dataset: DatasetReader, by_pixel: bool) -> int:
    """End in bytes of the last block of a TIFF's full-resolution image; of a sample where there are many."""
    height, width = dataset.block_shapes[0]
    rows, cols = -(-dataset.height // height), -(-dataset.width // width)
    planes = 1 if by_pixel else dataset.count
    total = planes * rows * cols
    picks = np.unique(np.linspace(0, total - 1, min(total, _MAX_BLOCKS_CHECKED)).astype(np.int64))
    end = 0
    for pick in picks.tolist():
        plane, block = divmod(pick, rows * cols)
        row, col = divmod(block, cols)
        offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=plane + 1)
        count = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=plane + 1)
        end = max(end, int(offset or 0) + int(count or 0))
    return end
