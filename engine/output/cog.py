"""Packs → one Cloud-Optimized GeoTIFF, by copying compressed blocks.

The place of every block is known before the first is written, so that several hands may copy (`copying.py`).

File order: header, all IFDs, the smallest overview's blocks, …, the full resolution's. Bands are separate
planes: one band is read without decoding the others, an all-nodata block of one band costs nothing, and
neighbours in a plane compress better than different quantities side by side. GDAL and COG validators
take either.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import DISK, Disk, disk_errors, remove_leftovers, remove_sidecars, replacing
from deeplight.engine.core.progress import BYTES, Progress, Silent
from deeplight.engine.output.copying import LEADER, PLACED, TRAILER_BYTES, ByteRange, CopyJob, aligned, cut
from deeplight.engine.output.hands import Hands, Threads
from deeplight.engine.output.levels import Level, blocks_per_side, make_overviews, pack_tables
from deeplight.engine.output.pack_format import DamagedPack, level_shape
from deeplight.engine.output.packs import OutputSpec, PackStore
from deeplight.engine.raster.extents import same_crs
from deeplight.engine.raster.grid import Grid

CLASSIC_LIMIT = 2**32 - 1
"""Largest size in bytes of a classic TIFF; above it the file is a BigTIFF."""

GHOST = (
    "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
"""What GDAL notes in its own COGs, so that it finds a block's size beside the block instead of in the tag.

The trailing space leaves room for YES, written when GDAL edits the file.
"""

GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
"""Pixel scale, tie point, transformation, three GeoKey tags, GDAL_METADATA, GDAL_NODATA."""
NODATA_TAG = 42113
TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325
COMPRESSION_TAGS = {"zstd": 50000, "deflate": 8}
SAMPLES, SAMPLED = 16, 8
"""Blocks of each level decoded in the check of a finished file: so many, and not more than one of so many."""


@dataclass(frozen=True)
class AssemblyStats:
    """What was assembled: size of the file, blocks stored, blocks left out as all nodata, overview levels."""

    bytes: int
    blocks: int
    sparse_blocks: int
    levels: int
    bigtiff: bool


@dataclass(frozen=True)
class _Layout:
    """Everything before the first block, the size of the whole file, whether it is a BigTIFF.

    places: of the blocks of each level, full resolution first, like Level.size; 0 = sparse.
    """

    header: bytes
    size: int
    big: bool
    places: list[npt.NDArray[np.int64]]


def assemble(
    store: PackStore,
    out: Path,
    *,
    verify: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    disk: Disk = DISK,
    hands: Hands | None = None,
) -> AssemblyStats:
    """Write the finished file as `out`, which appears whole, checked and synced, or stays as it was.

    What an earlier file of that name left beside it (see `sidecars`) goes just before the new one appears.
    verify: looks at the finished file and raises to keep it from getting its name. hands: who does what can be
    done side by side; None: this thread. Equal packs give equal bytes. Memory does not grow with the scene, except for
    100 bytes a block.
    Raises DeepLightError where packs are missing or damaged (those are removed, so that a resumed run
    computes them again), where the disk is full, or where the finished file does not read back.
    """
    check_packs(store)
    check_storable(store.spec)
    remove_leftovers(out.parent, (out.name,), disk=disk)
    return write_cog(store, out, verify=verify, progress=progress, disk=disk, hands=hands)


def check_packs(store: PackStore) -> None:
    """Raise DeepLightError where not all packs are there."""
    keys = store.keys()
    present = store.present()
    missing = [key for key in keys if key not in present]
    if missing:
        raise DeepLightError(
            f"{len(missing)} of {len(keys)} packs are not there yet, the first is {missing[0]}: "
            "make the same call with `resume=True`"
        )


def write_cog(
    store: PackStore,
    out: Path,
    *,
    verify: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    disk: Disk = DISK,
    hands: Hands | None = None,
    within: Path | None = None,
) -> AssemblyStats:
    """Do what `assemble` does, of packs that are known to be there; others may write `out`, too. within: see
    `replacing`."""
    try:
        with disk_errors(out), disk.scratch(store.folder) as spool:
            levels = pack_tables(store)
            make_overviews(store, levels, spool, hands or Threads(1), disk)
            layout = _lay_out(store.spec, levels)
            check = functools.partial(_check, spec=store.spec, levels=levels, size=layout.size)

            def accept(path: Path) -> None:
                check(path)
                if verify is not None:
                    verify(path)
                remove_sidecars(out, disk=disk)

            with replacing(out, check=accept, within=within, disk=disk) as file, progress or Silent() as told:
                told.start(layout.size, BYTES, "assembling")
                start = _write_head(file, store, levels, layout, spool)
                told.advance(start)
                job = CopyJob(store, _placed(store, levels, layout), Path(file.name), told, disk)
                _copy(job, file, ByteRange(start, layout.size), hands or Threads(1))
    except DamagedPack as error:
        store.discard(error.key)
        raise
    blocks = sum(int(np.count_nonzero(level.size)) for level in levels)
    return AssemblyStats(
        bytes=layout.size,
        blocks=blocks,
        sparse_blocks=sum(level.size.size for level in levels) - blocks,
        levels=store.spec.levels,
        bigtiff=layout.big,
    )


def check_storable(spec: OutputSpec) -> None:
    """Raise InputError where a GeoTIFF cannot hold the CRS (a rotated pole). Cheap; `assemble` calls it."""
    from rasterio.io import MemoryFile

    grid = spec.grid
    one_pixel = dataclasses.replace(spec, grid=Grid(grid.crs, grid.transform, 1, 1))
    with MemoryFile(_skeleton(one_pixel, big=False)) as memory, memory.open() as dataset:
        if dataset.crs is None or not same_crs(dataset.crs, grid.crs, grid):
            raise InputError(
                f"a GeoTIFF cannot hold the NTL raster's CRS ({grid.crs.to_wkt()[:60]}…): "
                "reproject the raster first, for example to EPSG:4326"
            )


def _write_head(
    file: BinaryIO, store: PackStore, levels: list[Level], layout: _Layout, spool: BinaryIO
) -> int:
    """Write all that comes before blocks of packs, and return its bytes."""
    size = file.write(layout.header)
    for level in reversed(levels[store.full_levels + 1 :]):
        for place in zip(*np.nonzero(level.size), strict=True):
            spool.seek(int(level.source[place]))
            data = spool.read(int(level.size[place]))
            file.writelines((LEADER.pack(len(data)), data, data[-TRAILER_BYTES:]))
            size += LEADER.size + len(data) + TRAILER_BYTES
    return size


def _copy(job: CopyJob, file: BinaryIO, blocks: ByteRange, hands: Hands) -> None:
    """Copy all blocks of packs. file: positioned at the first of them."""
    # who writes the rest has no page in common with this process
    others = min(aligned(blocks.start), blocks.stop)
    job.copy_into(file, ByteRange(blocks.start, others))
    if others < blocks.stop:
        file.flush()
        hands.do(job, cut(others, blocks.stop, hands.count))


def _placed(store: PackStore, levels: list[Level], layout: _Layout) -> npt.NDArray[Any]:
    """The blocks of packs in the order of the file: PLACED (n,)."""
    tables = []
    for number in range(store.full_levels, -1, -1):
        level, per_side = levels[number], blocks_per_side(store, number)
        there = np.nonzero(level.size)
        table = np.empty(there[0].size, PLACED)
        table["at"] = layout.places[number][there] - LEADER.size
        table["size"], table["source"], table["crc"] = (
            level.size[there],
            level.source[there],
            level.crc[there],
        )
        table["pack"] = there[1] // per_side * store.lattice[1] + there[2] // per_side
        tables.append(table)
    return np.concatenate(tables)


def _lay_out(spec: OutputSpec, levels: list[Level]) -> _Layout:
    """Give each block its place in the file: smallest level first, in a level band by band, row by row."""
    framed = [level.size + (level.size > 0) * (LEADER.size + TRAILER_BYTES) for level in levels]
    total = sum(int(size.sum()) for size in framed)
    for big in (False, True):
        skeleton = _skeleton(spec, big)
        if len(skeleton) + total <= CLASSIC_LIMIT:
            break
    ends = len(skeleton) + np.cumsum(np.concatenate([size.ravel() for size in reversed(framed)]))
    places: list[npt.NDArray[np.int64]] = []
    for level in levels:
        ends, own = np.split(ends, [ends.size - level.size.size])
        places.append(np.where(level.size > 0, own.reshape(level.size.shape) - TRAILER_BYTES - level.size, 0))
    return _Layout(_with_places(skeleton, places, levels), len(skeleton) + total, big, places)


def _skeleton(spec: OutputSpec, big: bool) -> bytes:
    """Header, ghost area and IFDs of a file in which all blocks are sparse yet."""
    import tifffile

    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=big, byteorder="<", shaped=False) as writer:
        buffer.write(f"GDAL_STRUCTURAL_METADATA_SIZE={len(GHOST):06d} bytes\n{GHOST}".encode())
        tags = _geo_tags(spec)
        bands = len(spec.bands)
        for number in range(spec.levels + 1):
            height, width = level_shape(spec.grid.height, spec.grid.width, number)
            rows, cols = spec.blocks(number)
            writer.write(
                itertools.repeat(b"", bands * rows * cols),
                shape=(bands, height, width) if bands > 1 else (height, width),
                dtype=spec.dtype,
                tile=(spec.block, spec.block),
                compression=COMPRESSION_TAGS[spec.compression],
                predictor=spec.codec.predictor if spec.codec.predictor > 1 else None,
                photometric="minisblack",
                planarconfig="separate" if bands > 1 else None,
                subfiletype=1 if number else None,
                software=False,
                metadata=None,
                extratags=[tag for tag in tags if number == 0 or tag[0] == NODATA_TAG],
            )
    return buffer.getvalue()


def _with_places(skeleton: bytes, places: list[npt.NDArray[np.int64]], levels: list[Level]) -> bytes:
    import tifffile

    buffer = io.BytesIO(skeleton)
    with tifffile.TiffFile(buffer) as tiff:
        pages = [page.aspage() for page in tiff.pages]
        for page, place, level in zip(pages, places, levels, strict=True):
            page.tags[TILE_OFFSETS].overwrite(place.ravel().tolist())
            page.tags[TILE_BYTE_COUNTS].overwrite(level.size.ravel().tolist())
    return buffer.getvalue()


def _geo_tags(spec: OutputSpec) -> list[tuple[int, int, int, Any, bool]]:
    """Georeferencing, nodata and metadata tags as GDAL writes them, taken from a file of one pixel."""
    import tifffile
    from rasterio.io import MemoryFile

    bands = spec.bands
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=1,
            height=1,
            count=len(bands),
            dtype=spec.dtype,
            crs=spec.grid.crs,
            transform=spec.grid.transform,
            nodata=spec.codec.nodata,
        ) as dataset:
            dataset.descriptions = tuple(band.name for band in bands)
            dataset.units = tuple(band.unit for band in bands)
            if spec.dtype == "uint16":
                dataset.scales = (spec.scale,) * len(bands)
                dataset.offsets = (spec.offset,) * len(bands)
            dataset.update_tags(**dict(sorted(spec.tags.items())))
        raw = memory.read()
    with tifffile.TiffFile(io.BytesIO(raw)) as tiff:
        found = [tag for tag in tiff.pages[0].aspage().tags.values() if tag.code in GEO_TAGS]
    tags = []
    for tag in found:
        size = tag.valuebytecount
        tags.append(
            (tag.code, int(tag.dtype), tag.count, raw[tag.valueoffset : tag.valueoffset + size], False)
        )
    return tags


def _check(path: Path, *, spec: OutputSpec, levels: list[Level], size: int) -> None:
    """Raise DeepLightError unless the file has its length, opens, and blocks spread over it decode."""
    import rasterio
    from rasterio.errors import RasterioError, RasterioIOError

    try:
        if path.stat().st_size != size:
            raise DeepLightError(f"{path.stat().st_size} bytes instead of {size}")
        for number, level in enumerate(levels):
            options = {"overview_level": number - 1} if number else {}
            with rasterio.open(path, driver="GTiff", **options) as dataset:
                _check_level(dataset, spec, number, level)
    except (RasterioError, RasterioIOError, DeepLightError) as error:
        raise DeepLightError(
            f"the assembled file does not read back ({error}): check the disk, then make the same call with "
            "`resume=True`"
        ) from error


def _check_level(dataset: Any, spec: OutputSpec, number: int, level: Level) -> None:
    shape = (len(spec.bands), *level_shape(spec.grid.height, spec.grid.width, number))
    if (dataset.count, dataset.height, dataset.width) != shape or dataset.dtypes[0] != spec.dtype:
        raise DeepLightError(f"level {number} has another shape or type")
    stored = np.argwhere(level.size)
    for band, row, col in stored[:: max(SAMPLED, -(-len(stored) // SAMPLES))].tolist():
        top, left = row * spec.block, col * spec.block
        window = (
            (top, min(top + spec.block, dataset.height)),
            (left, min(left + spec.block, dataset.width)),
        )
        dataset.read(band + 1, window=window)
