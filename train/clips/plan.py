"""Where clips lie and which split they belong to: whole blocks of the LR grid, with a buffer between splits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from affine import Affine

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.extents import Bounds, lonlat_bounds
from deeplight.engine.raster.grid import Grid

SPLITS = ("train", "val", "test")
BlockIndex = tuple[int, int]
"""(row, col) of a block."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Region:
    """A region whose clips form a split of their own; bounds None: the whole place of that name."""

    name: str
    bounds: Bounds | None


@dataclass(frozen=True)
class ClipPlanOptions:
    """How a place is cut, in LR px.

    clip: largest side of a clip; clip_min: smallest, for those at the edge of a block. block: least side of the blocks
    that go to one split as a whole. buffer: least distance between clips of different splits. shares: of the blocks,
    for train, val, test. seed: of the blocks' order. regions: held out.
    """

    clip: int = 256
    clip_min: int = 256
    block: int = 528
    buffer: int = 16
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError where sizes do not fit together."""
        if not 1 <= self.clip_min <= self.clip:
            raise InputError(
                f"the smallest clip is {self.clip_min} and the largest {self.clip} LR pixels; give "
                "`clip=(N, LEAST)` with LEAST between 1 and N"
            )
        least = max(self.clip_min, self.buffer)
        if self.buffer < 0 or self.block < least:
            raise InputError(
                f"blocks of {self.block} LR pixels hold no clip of {self.clip_min}, or no buffer of {self.buffer}; "
                f"give `block={least}` or more, and `buffer=0` or more"
            )


@dataclass(frozen=True)
class Planned:
    """One clip to cut: its window in LR px, its split, and the (row, col) of its block."""

    window: Window
    split: str
    block: BlockIndex


def parse_name(text: str) -> str:
    """Return the text where it can be the name of a folder. Raises InputError where it cannot."""
    if not _NAME.fullmatch(text):
        raise InputError(
            f"the name {text!r} is not of letters, digits, . _ and -; give one such as san_antonio"
        )
    return text


def parse_shares(text: str) -> tuple[float, float, float]:
    """`0.8,0.1,0.1` → shares of train, val and test, made to sum to 1. Raises InputError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or not all(v >= 0 for v in values) or not 0 < sum(values) < np.inf:
        raise InputError(
            f"shares {text!r} are not three numbers for train, val and test, such as 0.8,0.1,0.1"
        )
    train, val, test = (v / sum(values) for v in values)
    return train, val, test


def parse_region(text: str) -> Region:
    """`NAME=WEST,SOUTH,EAST,NORTH` in degrees, or the name of a place. Raises InputError."""
    name, equals, corners = text.partition("=")
    if parse_name(name.strip()) in SPLITS:
        raise InputError(f"a held-out region cannot be called {name}; choose a name that is no split's")
    if not equals:
        return Region(name.strip(), None)
    try:
        west, south, east, north = (float(part) for part in corners.split(","))
    except ValueError:
        raise InputError(
            f"region {text!r} is not NAME=WEST,SOUTH,EAST,NORTH in degrees, such as anhui=114.9,29.4,119.6,34.7"
        ) from None
    if not (west < east and -90 <= south < north <= 90):
        raise InputError(f"region {text!r} is empty; give WEST < EAST and SOUTH < NORTH in degrees")
    return Region(name.strip(), (west, south, east, north))


def plan_clips(
    grid: Grid,
    place: str,
    good: Callable[[Window], bool],
    options: ClipPlanOptions,
    known: Mapping[BlockIndex, str] | None = None,
) -> list[Planned]:
    """The clips of a place, block by block, not yet looked at.

    good: whether the lights in a window of LR px make a clip; a block where none do is of no split (""), and its clips
    come last. known: blocks of this grid whose split is decided, by another date. Clips of different splits are at
    least options.buffer apart, those of another date with the same blocks included. Raises InputError where the blocks
    are too few for the shares.
    """
    blocks = dict(_blocks(grid, options.block))
    inner = {key: list(_clips(_kept(key, blocks, {}, options.buffer), options)) for key in blocks}
    worth = {key: blocks[key] for key, clips in inner.items() if any(map(good, clips))}
    splits = _assigned(worth, grid, place, options, known or {})
    refused = [Planned(w, "", key) for key, clips in inner.items() if key not in worth for w in clips]
    return [
        Planned(window, split, key)
        for key, split in sorted(splits.items())
        for window in _clips(_kept(key, blocks, splits, options.buffer), options)
    ] + refused


def _blocks(grid: Grid, side: int) -> Iterator[tuple[BlockIndex, Window]]:
    """Blocks of at least `side` a side (or the whole raster), of nearly one size."""
    down, across = (_edges(n, side) for n in (grid.height, grid.width))
    for r in range(len(down) - 1):
        for c in range(len(across) - 1):
            yield (r, c), Window(down[r], across[c], down[r + 1] - down[r], across[c + 1] - across[c])


def _edges(length: int, side: int) -> list[int]:
    count = max(1, length // side)
    return [length * i // count for i in range(count + 1)]


def _assigned(
    blocks: Mapping[BlockIndex, Window],
    grid: Grid,
    place: str,
    options: ClipPlanOptions,
    known: Mapping[BlockIndex, str],
) -> dict[BlockIndex, str]:
    """Split by block: held-out regions and known blocks first, the rest by shares in an order drawn from the seed."""
    held = {key: name for key, w in blocks.items() if (name := _region(grid, w, place, options.regions))}
    held |= {key: name for key, name in known.items() if key in blocks and key not in held}
    rest = sorted((key for key in blocks if key not in held), key=lambda key: _order(options.seed, key))
    wanted = {name: share for name, share in zip(SPLITS, options.shares, strict=True) if share}
    if rest and not known and len(rest) < len(wanted):
        raise InputError(
            f"{place} has {len(rest)} block{'s'[: len(rest) > 1]} of {options.block} LR pixels with good clips for "
            f"{len(wanted)} splits ({', '.join(wanted)}); use a smaller `block` and `clip`, or `shares=(1, 0, 0)`"
        )
    decided = Counter(name for name in held.values() if name in wanted)
    # what the shares ask of all blocks, less what is decided; where more is decided than asked, the largest share
    left = Counter(_apportioned(len(rest) + decided.total(), wanted)) - decided
    names = [*left.elements(), *[max(wanted, key=lambda name: wanted[name])] * len(rest)]
    return held | dict(zip(rest, names, strict=False))


def _apportioned(count: int, shares: Mapping[str, float]) -> list[str]:
    """`count` names in the given shares (largest remainder), each at least once where `count` allows it."""
    if count < len(shares):
        return list(shares)[:count]
    exact = {name: count * share for name, share in shares.items()}
    given = {name: max(1, int(value)) for name, value in exact.items()}
    while sum(given.values()) < count:
        given[max(exact, key=lambda name: exact[name] - given[name])] += 1
    while sum(given.values()) > count:
        given[max(given, key=lambda name: given[name] - exact[name] if given[name] > 1 else -1.0)] -= 1
    return list(Counter(given).elements())


def _order(seed: int, key: BlockIndex) -> bytes:
    return hashlib.sha256(f"{seed} {key[0]} {key[1]}".encode()).digest()


def _region(grid: Grid, window: Window, place: str, regions: tuple[Region, ...]) -> str | None:
    """The held-out region that a block touches: the first one given."""
    box: Bounds | None = None
    for region in regions:
        if region.bounds is None:
            if region.name == place:
                return region.name
            continue
        box = lonlat_bounds(part_of(grid, window)) if box is None else box
        west, south, east, north = region.bounds
        if box and box[0] < east and west < box[2] and box[1] < north and south < box[3]:
            return region.name
    return None


def part_of(grid: Grid, window: Window) -> Grid:
    """Return the grid of a window of `grid`."""
    return Grid(
        grid.crs, grid.transform @ Affine.translation(window.col, window.row), window.height, window.width
    )


def _kept(
    key: BlockIndex, blocks: Mapping[BlockIndex, Window], splits: Mapping[BlockIndex, str], buffer: int
) -> Window:
    """A block without half of the buffer on the sides where another split begins, or may begin at another date.

    Of two blocks that meet at a corner only, both lose rows; the same rule on both sides makes the distance whole.
    """
    half = -(-buffer // 2)

    def cut(*steps: tuple[int, int]) -> int:
        near = [n for r, c in steps if (n := (key[0] + r, key[1] + c)) in blocks]
        return half if any(n not in splits or splits[n] != splits.get(key) for n in near) else 0

    top, bottom = cut((-1, -1), (-1, 0), (-1, 1)), cut((1, -1), (1, 0), (1, 1))
    left, right = cut((0, -1)), cut((0, 1))
    block = blocks[key]
    height, width = max(0, block.height - top - bottom), max(0, block.width - left - right)
    return Window(block.row + top, block.col + left, height, width)


def _clips(area: Window, options: ClipPlanOptions) -> Iterator[Window]:
    for row, height in _pieces(area.row, area.height, options):
        for col, width in _pieces(area.col, area.width, options):
            yield Window(row, col, height, width)


def _pieces(start: int, length: int, options: ClipPlanOptions) -> Iterator[tuple[int, int]]:
    for first in range(0, length, options.clip):
        piece = min(options.clip, length - first)
        if piece >= options.clip_min:
            yield start + first, piece
