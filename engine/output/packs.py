"""Finished regions of the output as checksummed files. The folder of packs is the journal of a run."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import DISK, Disk, disk_errors, make_folder, remove_leftovers, write_file
from deeplight.engine.core.windows import Window
from deeplight.engine.output.pack_format import (
    BlockCodec,
    DamagedPack,
    Encoded,
    MissingPack,
    PackIndex,
    PackKey,
    halve,
    level_shape,
    overview_levels,
    pack_chunks,
    read_checked,
    read_index,
    read_rest,
)
from deeplight.engine.raster.grid import Grid

TYPICAL_BYTES = {"float32": 2.5, "uint16": 1.0}
"""Compressed bytes per pixel, measured with zstd level 1 on lights with texture."""

PATIENCE_S, PAUSE_S = 60.0, 0.5
"""How long to wait for files whose names are listed: NFS clients remember for up to a minute that a name was absent."""


@dataclass(frozen=True)
class BandSpec:
    """One output band: its description and its unit ("" for none).

    flags: whether its values are bit flags, of which overviews hold the union instead of the mean.
    """

    name: str
    unit: str
    flags: bool = False


@dataclass(frozen=True)
class OutputSpec:
    """The raster to write.

    grid: the HR grid.
    dtype: "float32" holds physical values; "uint16" holds round((value − offset) / scale).
    nodata: NaN or a number for float32, 0 or 65535 for uint16.
    tags: metadata items of the file, which must be equal for equal runs.
    block: side of a TIFF tile in pixels, a multiple of 16.
    least_levels: overview levels that it has even where one block holds it.
    compression, zstd_level: "zstd" at that level, or "deflate" (level 6).

    Raises InputError where a field has another value.
    """

    grid: Grid
    bands: tuple[BandSpec, ...]
    dtype: Literal["float32", "uint16"] = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan
    tags: Mapping[str, str] = field(default_factory=dict)
    block: int = 512
    zstd_level: int = 1
    compression: Literal["zstd", "deflate"] = "zstd"
    least_levels: int = 0

    def __post_init__(self) -> None:
        if not self.bands or self.grid.height < 1 or self.grid.width < 1:
            raise InputError("the output has no pixels: give a grid of at least 1 × 1 and at least one band")
        if self.block < 16 or self.block % 16:
            raise InputError(f"block size {self.block} is not usable: give a positive multiple of 16")
        if self.dtype not in TYPICAL_BYTES:
            raise InputError(f"output type {self.dtype!r} is not supported: give float32 or uint16")
        if self.compression not in ("zstd", "deflate"):
            raise InputError(f"compression {self.compression!r} is not supported: give zstd or deflate")
        if self.dtype == "float32" and (self.scale, self.offset) != (1.0, 0.0):
            raise InputError("a scale or offset was given for float32 output: leave them out or give uint16")
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.offset)):
            raise InputError(
                f"scale {self.scale} and offset {self.offset} are not usable: "
                "give a positive scale and a finite offset"
            )
        if self.dtype == "uint16" and self.nodata not in (0, 65535):
            raise InputError(f"nodata {self.nodata} does not suit uint16 output: give 0 or 65535")
        if self.dtype == "float32" and abs(self.nodata) > float(np.finfo(np.float32).max):
            raise InputError(
                f"nodata {self.nodata} does not suit float32 output: give NaN or a float32 number"
            )

    @property
    def levels(self) -> int:
        """Number of overview levels."""
        return max(self.least_levels, overview_levels(self.grid.height, self.grid.width, self.block))

    @property
    def flag_bands(self) -> tuple[int, ...]:
        """Bands, from 0, that hold bit flags."""
        return tuple(number for number, band in enumerate(self.bands) if band.flags)

    @property
    def codec(self) -> BlockCodec:
        """The codec that turns pixels into the bytes of a tile."""
        level = self.zstd_level if self.compression == "zstd" else 6
        # the header must have exactly the number that the pixels hold
        nodata = float(np.float32(self.nodata))
        return BlockCodec(self.block, self.dtype, self.scale, self.offset, nodata, self.compression, level)

    def blocks(self, level: int) -> tuple[int, int]:
        """(rows, columns) of blocks in an overview level."""
        height, width = level_shape(self.grid.height, self.grid.width, level)
        return -(-height // self.block), -(-width // self.block)


def required_bytes(spec: OutputSpec, side: int | None = None) -> tuple[int, int]:
    """Disk space that packs and the finished file take together: (upper bound, typical).

    side: of a pack in pixels. Smaller packs need more space beside the blocks, so the default is the smallest.
    """
    bands, item = len(spec.bands), np.dtype(spec.dtype).itemsize
    full = _doublings(spec, side or spec.block)
    tile = spec.block**2 * item
    # zstd and deflate grow incompressible data by less than 1/256 + 128 bytes; 64 bytes index a block.
    bounds = [math.prod(spec.blocks(n)) * bands * (tile + tile // 256 + 192) for n in range(spec.levels + 1)]
    pixels = spec.grid.height * spec.grid.width * bands
    rest_pixels = 0
    if full < spec.levels:
        rest_pixels = math.prod(level_shape(spec.grid.height, spec.grid.width, full + 1)) * bands
    fixed = 1 << 20
    upper = 2 * sum(bounds) + (rest_pixels * 4 * 257) // 256 + fixed
    blocks = pixels * TYPICAL_BYTES[spec.dtype] * 4 / 3
    return upper, min(upper, int(2 * blocks + rest_pixels * TYPICAL_BYTES["float32"]) + fixed)


def pack_name(key: PackKey) -> str:
    """The name of a pack's file."""
    return f"{key[0]:05d}_{key[1]:05d}.pack"


def pack_count(spec: OutputSpec, side: int) -> int:
    """Number of packs with `side` pixels a side."""
    return -(-spec.grid.height // side) * -(-spec.grid.width // side)


def _doublings(spec: OutputSpec, side: int) -> int:
    """The k for which side = block · 2^k. Raises InputError where there is none."""
    doublings = (side // spec.block).bit_length() - 1
    if doublings < 0 or spec.block << doublings != side:
        raise InputError(
            f"pack side {side} is not aligned to blocks: give {spec.block} times a power of two, "
            f"for example {spec.block * 4}"
        )
    return doublings


class PackStore:
    """Packs of one output in one folder, each `side` × `side` HR pixels (smaller only at the scene's edge).

    side: block · 2^k. No bit of the finished file depends on it.
    Different packs may be written by different threads or processes at the same time.
    Raises InputError for another side, DeepLightError where the folder cannot be made (needs its parent).
    """

    def __init__(self, folder: Path, spec: OutputSpec, side: int, *, disk: Disk = DISK) -> None:
        self.folder = folder
        self.spec = spec
        self.side = side
        self.first: PackKey = (0, 0)
        """The pack in the upper left corner; another one in a `part`."""
        self.disk = disk
        self.full_levels = min(_doublings(spec, side), spec.levels)
        """Overview levels up to this one consist of whole blocks of single packs."""
        self._fingerprint = self._name_output()
        make_folder(folder, disk=disk)

    def _name_output(self) -> str:
        spec, grid = self.spec, self.spec.grid
        fields = (
            grid.crs.to_wkt() if grid.crs else "",
            [float(v) for v in grid.transform[:6]],
            (grid.height, grid.width, self.side),
            [(band.name, band.unit) for band in spec.bands],
            spec.codec,
            sorted(spec.tags.items()),
        )
        return hashlib.sha256(repr(fields).encode()).hexdigest()

    @property
    def lattice(self) -> tuple[int, int]:
        """(rows, columns) of packs."""
        return -(-self.spec.grid.height // self.side), -(-self.spec.grid.width // self.side)

    def part(self, packs: Window, levels: int) -> PackStore:
        """A window, in packs, as an output of its own with so many overview levels, of which packs can be read.

        They keep their keys.
        """
        spec, found = self.spec, copy.copy(self)
        pixels = packs.scaled(self.side).clipped(spec.grid.height, spec.grid.width)
        found.spec = replace(spec, grid=spec.grid.part(pixels), least_levels=levels)
        found.first = self.at(packs.row, packs.col)
        found.full_levels = min(_doublings(spec, self.side), found.spec.levels)
        return found

    def at(self, row: int, col: int) -> PackKey:
        """The pack at a place in the lattice."""
        return self.first[0] + row, self.first[1] + col

    def keys(self) -> list[PackKey]:
        """All packs of the output, row by row."""
        rows, cols = self.lattice
        return [self.at(row, col) for row in range(rows) for col in range(cols)]

    def window(self, key: PackKey) -> Window:
        """The HR pixels of a pack, inside the scene. Raises KeyError for a pack that the output lacks."""
        row, col = key[0] - self.first[0], key[1] - self.first[1]
        full = Window(row * self.side, col * self.side, self.side, self.side)
        window = full.clipped(self.spec.grid.height, self.spec.grid.width)
        if min(row, col) < 0 or not window.height or not window.width:
            raise KeyError(key)
        return window

    def path(self, key: PackKey) -> Path:
        """The file of a pack."""
        return self.folder / pack_name(key)

    def write(self, key: PackKey, pixels: Floats | Encoded, facts: Mapping[str, float] | None = None) -> int:
        """Store a pack durably and return its bytes. An existing pack stays, since equal pixels have equal bytes.

        pixels: float32 (bands, height, width) of `window(key)`, physical values, NaN = nodata, or what the codec's
        `encoded` makes of them, which gives the same bytes. facts: are stored with the pack, see `index`, and not in
        the output.
        Raises ValueError for another shape, dtype or an infinite value, DeepLightError if the disk is full.
        """
        self._check_pixels(key, pixels)
        level, half = (pixels, None) if isinstance(pixels, np.ndarray) else (pixels.steps, pixels.halves)
        blocks = self._level_blocks(0, level)
        for number in range(1, self.full_levels + 1):
            level, half = self._halved(level, half), None
            blocks += self._level_blocks(number, level)
        rest = self._halved(level, half) if self.full_levels < self.spec.levels else None
        if rest is not None and np.isnan(rest).all():
            rest = None
        chunks = pack_chunks(self._fingerprint, key, blocks, rest, facts or {})
        return write_file(self.path(key), chunks, first_stays=True, disk=self.disk)

    def _check_pixels(self, key: PackKey, pixels: Floats | Encoded) -> None:
        shape, plain = (len(self.spec.bands), *self.window(key).shape), isinstance(pixels, np.ndarray)
        dtype = pixels.dtype if isinstance(pixels, np.ndarray) else pixels.steps.dtype
        if pixels.shape != shape or dtype != np.dtype("float32" if plain else self.spec.dtype):
            raise ValueError(f"pack {key}: pixels are {dtype} {pixels.shape}, must be float32 {shape}")
        if np.isinf(pixels if isinstance(pixels, np.ndarray) else pixels.halves).any():
            raise ValueError(f"pack {key}: pixels hold infinite values, must be finite or NaN")

    def _halved(self, level: NDArray[Any], half: Floats | None) -> Floats:
        return halve(level, self.spec.flag_bands) if half is None else half

    def write_empty(self, key: PackKey) -> int:
        """Store durably a pack in which everything is nodata, and return its size in bytes."""
        self.window(key)
        chunks = pack_chunks(self._fingerprint, key, [], None, {})
        return write_file(self.path(key), chunks, first_stays=True, disk=self.disk)

    def _level_blocks(self, number: int, level: NDArray[Any]) -> list[tuple[int, int, int, int, bytes]]:
        codec, side = self.spec.codec, self.spec.block
        bands, height, width = level.shape
        found = []
        for band in range(bands):
            for row in range(-(-height // side)):
                for col in range(-(-width // side)):
                    area = level[band, row * side : (row + 1) * side, col * side : (col + 1) * side]
                    if data := codec.encode(area):
                        found.append((number, band, row, col, data))
        return found

    def index(self, key: PackKey) -> PackIndex:
        """The index of a pack, whose blocks are not read.

        Raises DamagedPack where it is missing, truncated or its index is damaged, InputError where it belongs
        to another output.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                index = read_index(file, path.name, key)
        except FileNotFoundError:
            raise MissingPack(path.name, key) from None
        if index.fingerprint != self._fingerprint:
            raise InputError(
                f"{self.folder} holds packs of another output (grid, bands, data type, tags or pack size differ): "
                "remove that folder or write to another file"
            )
        return index

    def rest(self, key: PackKey) -> Floats | None:
        """The pack's part of overview level full_levels + 1, (bands, height, width); None if all nodata."""
        index, path = self.index(key), self.path(key)
        with path.open("rb") as file:
            return read_rest(file, index, path.name)

    def present(self) -> set[PackKey]:
        """The packs whose files exist, whatever they contain, from one listing of the folder: on a network disk a name
        that was looked up too early seems to be missing for up to a minute."""
        names = {path.name for path in self.folder.iterdir()}
        return {key for key in self.keys() if self.path(key).name in names}

    def done(self, keys: Collection[PackKey] | None = None) -> set[PackKey]:
        """The packs (of `keys`) that exist with every byte as it was written. Damaged packs are removed.

        Reads all of them. Raises InputError where the folder holds packs of another output.
        """
        good: set[PackKey] = set()
        unseen = set(self.keys() if keys is None else keys)
        until = time.monotonic() + PATIENCE_S
        while unseen := self._sort_out(unseen & self.present(), good):
            if time.monotonic() > until:
                break  # it is computed again, which gives the same pack
            time.sleep(PAUSE_S)
        return good

    def _sort_out(self, keys: Collection[PackKey], good: set[PackKey]) -> set[PackKey]:
        """Add packs that are as they were written to `good`, and remove damaged ones. Returns those whose files are
        listed but not found, because the client of a network disk has remembered their names as absent."""
        unseen = set()
        for key in sorted(keys):
            try:
                self._verify(key)
                good.add(key)
            except MissingPack:
                unseen.add(key)
            except DamagedPack:
                self.discard(key)
        return unseen

    def _verify(self, key: PackKey) -> None:
        index, path = self.index(key), self.path(key)
        with path.open("rb") as file:
            file.seek(index.start)
            for block in index.blocks:
                read_checked(file, block.size, block.crc, path.name, key)
            if index.rest:
                read_checked(file, index.rest.size, index.rest.crc, path.name, key)

    def discard(self, key: PackKey) -> None:
        """Remove a pack, so that it counts as not done."""
        with disk_errors(self.path(key)):
            self.disk.remove(self.path(key))

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed writers. No other writer may be at work."""
        remove_leftovers(self.folder, {self.path(key).name for key in self.keys()}, disk=self.disk)
