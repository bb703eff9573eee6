"""The blocks of each overview level: those that packs hold, and those that span packs, which are made here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from deeplight.engine.core.arrays import Floats
from deeplight.engine.output.pack_format import halve, level_shape
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
    keys = store.keys()
    for key in keys:
        index = store.index(key)
        source = index.start
        for block in index.blocks:
            per_side = blocks_per_side(store, block.level)
            place = (block.band, key[0] * per_side + block.row, key[1] * per_side + block.col)
            level = levels[block.level]
            level.size[place], level.crc[place], level.source[place] = block.size, block.crc, source
            source += block.size
    return levels


def blocks_per_side(store: PackStore, level: int) -> int:
    """Blocks of a level that a pack has beside each other."""
    return (store.side >> level) // store.spec.block


class Overviews:
    """The overview levels whose blocks span several packs, built depth first into a spool file.

    At most four blocks a level are in memory.
    """

    def __init__(self, store: PackStore, levels: list[Level], spool: BinaryIO) -> None:
        self.store = store
        self.levels = levels
        self.spool = spool
        self.first = store.full_levels + 1
        self.position = 0

    def build(self) -> None:
        """Fill the spool and the tables of these levels."""
        if self.first <= self.store.spec.levels:
            self._block(self.store.spec.levels, 0, 0)

    def _block(self, level: int, row: int, col: int) -> Floats | None:
        """One block, stored; (bands, height, width), None where it lies outside or is all nodata."""
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
        self._keep(level, row, col, pixels)
        return pixels

    def _part(self, level: int, row: int, col: int) -> Floats | None:
        """What the block (or pack) at `row`, `col` one level below adds to its parent at `level`."""
        if level == self.first:
            rows, cols = self.store.lattice
            return self.store.rest((row, col)) if row < rows and col < cols else None
        rows, cols = self.store.spec.blocks(level - 1)
        below = self._block(level - 1, row, col) if row < rows and col < cols else None
        return None if below is None else halve(below, self.store.spec.flag_bands)

    def _keep(self, level: int, row: int, col: int, pixels: Floats) -> None:
        codec, table = self.store.spec.codec, self.levels[level]
        for band, plane in enumerate(pixels):
            if data := codec.encode(plane):
                place = (band, row, col)
                table.size[place], table.source[place] = len(data), self.position
                self.position += self.spool.write(data)
