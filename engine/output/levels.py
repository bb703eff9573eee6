"""The blocks of each overview level: those that packs hold, and those that span packs, which are made here."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.files import DISK, Disk, write_file
from deeplight.engine.output.hands import Hands, Piece
from deeplight.engine.output.pack_format import (
    DamagedPack,
    halve,
    level_shape,
    pack_chunks,
    read_checked,
    read_index,
    read_rest,
)
from deeplight.engine.output.packs import PackStore


@dataclass(frozen=True)
class Level:
    """Where the blocks of one overview level lie: int64 (bands, block rows, block columns), size 0 = sparse.

    crc: of the blocks that packs hold.
    source: offset in the block's pack, or in the spool of overviews that span packs.
    """

    size: npt.NDArray[np.int64]
    crc: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]


def pack_tables(store: PackStore) -> list[Level]:
    """The place of every block that packs hold, from their indices; larger overviews are still empty."""
    bands = len(store.spec.bands)
    levels = []
    for number in range(store.spec.levels + 1):
        shape = (bands, *store.spec.blocks(number))
        levels.append(Level(*(np.zeros(shape, dtype=np.int64) for _ in range(3))))
    for row, col in np.ndindex(store.lattice):
        index = store.index(store.at(row, col))
        source = index.start
        for block in index.blocks:
            per_side = blocks_per_side(store, block.level)
            place = (block.band, row * per_side + block.row, col * per_side + block.col)
            level = levels[block.level]
            level.size[place], level.crc[place], level.source[place] = block.size, block.crc, source
            source += block.size
    return levels


def blocks_per_side(store: PackStore, level: int) -> int:
    """Blocks of a level that a pack has beside each other."""
    return (store.side >> level) // store.spec.block


Keep = Callable[[int, int, int, int, bytes], None]
"""Takes a block of an overview: its level, band, row, column and bytes."""


class Overviews:
    """The overview levels whose blocks span packs, built depth first: at most four blocks a level are in memory.

    keep: told of every block that is not all nodata. groups: hold what is made already; None: nothing is.
    """

    def __init__(self, store: PackStore, keep: Keep, groups: Groups | None = None) -> None:
        self.store, self.keep, self.groups = store, keep, groups
        self.first = store.full_levels + 1

    def block(self, level: int, row: int, col: int) -> Floats | None:
        """One block and all below it; (bands, height, width), None where it lies outside or is all nodata."""
        spec = self.store.spec
        height, width = level_shape(spec.grid.height, spec.grid.width, level)
        shape = (min(spec.block, height - row * spec.block), min(spec.block, width - col * spec.block))
        pixels: Floats = np.full((len(spec.bands), *shape), np.nan, dtype=np.float32)
        found = False
        half = spec.block // 2
        for r, c in itertools.product((0, 1), (0, 1)):
            part = self._part(level, 2 * row + r, 2 * col + c)
            if part is not None:
                found = True
                _, h, w = part.shape
                pixels[:, r * half : r * half + h, c * half : c * half + w] = part
        if not found:
            return None
        for band, plane in enumerate(pixels):
            if data := spec.codec.encode(plane):
                self.keep(level, band, row, col, data)
        return pixels

    def _part(self, level: int, row: int, col: int) -> Floats | None:
        """What the block (or pack) at `row`, `col` one level below adds to its parent at `level`."""
        if level == self.first:
            rows, cols = self.store.lattice
            return self.store.rest(self.store.at(row, col)) if row < rows and col < cols else None
        rows, cols = self.store.spec.blocks(level - 1)
        if row >= rows or col >= cols:
            return None
        if self.groups is not None and level == self.groups.level + 1:
            return self.groups.take((row, col), self.keep)
        below = self.block(level - 1, row, col)
        return None if below is None else halve(below, self.store.spec.flag_bands)


@dataclass(frozen=True)
class Groups:
    """Overviews of groups of 4 × 4 packs, which can be made side by side: a job whose pieces are rows and columns of
    `level`, the second one whose blocks span packs. Each becomes a file in the form of a pack, beside the packs.

    token: in the names of the files, so that no other process has them.
    """

    store: PackStore
    token: str
    disk: Disk = DISK

    @property
    def level(self) -> int:
        """The largest overview of which each group has one block."""
        return self.store.full_levels + 2

    def pieces(self) -> list[Piece]:
        """All groups; none where there is one at most."""
        rows, cols = self.store.spec.blocks(self.level) if self.level < self.store.spec.levels else (0, 0)
        return [(row, col) for row in range(rows) for col in range(cols)]

    def do(self, piece: Piece, stop: threading.Event | None = None) -> None:
        """Make the file of a group. Raises DamagedPack, DeepLightError."""
        if stop is not None and stop.is_set():
            return
        blocks: list[tuple[int, int, int, int, bytes]] = []
        overviews = Overviews(self.store, lambda *block: blocks.append(block))
        pixels = overviews.block(self.level, *piece)
        rest = None if pixels is None else halve(pixels, self.store.spec.flag_bands)
        write_file(self._path(piece), pack_chunks(self.token, piece, blocks, rest, {}), disk=self.disk)

    def take(self, piece: Piece, keep: Keep) -> Floats | None:
        """What a group adds to the level above, and all its blocks. Its file is removed."""
        path = self._path(piece)
        try:
            with path.open("rb") as file:
                index = read_index(file, path.name, piece)
                file.seek(index.start)
                for block in index.blocks:
                    keep(*block[:4], read_checked(file, block.size, block.crc, path.name, piece))
                rest = read_rest(file, index, path.name)
        except DamagedPack as error:  # no pack is to blame
            raise DeepLightError(
                f"{path} is damaged: check the disk, then make the same call with `resume=True`"
            ) from error
        self.disk.remove(path)
        return rest

    def _path(self, piece: Piece) -> Path:
        return self.store.folder / f".overviews-{self.token}-{piece[0]}-{piece[1]}"

    @contextlib.contextmanager
    def published(self) -> Iterator[Grouping]:
        """The job for other processes."""
        yield Grouping(self.token)


@dataclass(frozen=True)
class Grouping:
    """Groups for other processes."""

    token: str

    def job(self, store: PackStore) -> Groups:
        """The job, in a process that has the packs."""
        return Groups(store, self.token)

    def size(self, piece: Piece) -> int:
        """None of the output is finished."""
        return 0


def make_overviews(
    store: PackStore, levels: list[Level], spool: BinaryIO, hands: Hands, disk: Disk = DISK
) -> None:
    """Put the blocks that span packs into the spool, and where they are there into the tables of their levels."""
    position = 0

    def keep(level: int, band: int, row: int, col: int, data: bytes) -> None:
        nonlocal position
        table, place = levels[level], (band, row, col)
        table.size[place], table.source[place] = len(data), position
        position += spool.write(data)

    groups = Groups(store, secrets.token_hex(8), disk)
    pieces = groups.pieces() if hands.count > 1 else []
    if pieces:
        hands.do(groups, pieces)
    if store.full_levels < store.spec.levels:
        Overviews(store, keep, groups if pieces else None).block(store.spec.levels, 0, 0)
