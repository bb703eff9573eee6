"""In which order packs are computed, so that every block of a source is decoded once.

GDAL keeps decoded blocks per dataset handle, the least recently used go first. Tiles of two pack rows share the
blocks between them, so these are still there if all blocks behind one row of packs fit into the cache. Where a
row of the whole scene is too long for that, the scene is cut into panels, each computed from top to bottom. One
panel is one lane: one reader, one handle. Where reading is most of the work, all packs, in that order, are cut into
runs of the same number instead, which are the lanes, so that all readers have one; blocks between two are decoded by
both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise, zip_longest
from typing import TYPE_CHECKING, Self

from deeplight.engine.core.windows import Window
from deeplight.engine.run.executor import Task
from deeplight.engine.run.tiling import EDGE, Crew, TilePlan, cores

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

_MOST_CACHE_SHARE, _MOST_CACHE_BYTES = 0.05, 1 << 30
"""Of the available memory, and at all, for decoded blocks, where a panel of one pack needs more than usual. Where
reading is most of the work, the share alone counts. GDAL's own limit between two reads is this share of all memory:
what a larger one holds is lost there."""
_WORTH_MEMORY = 0.9
"""Share of the decoding that another order must do with, to be worth a larger cache."""
_RUN, _RUNS = 4, 4
"""Packs of a run at least, before readers have several of them, and how many these are at most: where some parts of a
scene take less time than others, who is done early takes another one."""


@dataclass(frozen=True)
class Order:
    """panel: width of a panel in LR pixels. cache_mb: for GDAL's block cache. runs: lanes are runs of packs; else they
    are panels."""

    panel: int
    cache_mb: int
    runs: bool = False


def choose_order(scene: Scene, plan: TilePlan, crew: Crew, cache_mb: int, memory: int) -> Order:
    """The widest panels whose rows of packs leave their blocks in the cache, shared by the readers.

    cache_mb: the usual cache. memory: bytes available. A cache that does not even hold the blocks behind one
    pack, as for files stored in rows, is made larger as far as memory allows.
    """
    readers = crew.readers
    if crew.all_read and readers > 1:
        return _order_of_runs(scene, plan, readers, cache_mb, memory)
    packs = -(-scene.grid.width // plan.pack)
    usual = cache_mb << 20

    def fits(count: int) -> bool:
        lanes = min(readers, -(-packs // count))
        return lanes * _decoded_bytes(scene, plan, 1, count) <= usual

    # At least a panel for each reader, or two of them decode the same blocks.
    count = _largest(fits, -(-packs // readers))
    if count:
        return Order(count * plan.pack, cache_mb)
    need = min(readers, packs) * _decoded_bytes(scene, plan, 1, 1)
    limit = min(int(memory * _MOST_CACHE_SHARE), _MOST_CACHE_BYTES)
    return Order(plan.pack, max(usual, min(need, limit)) + (1 << 20) - 1 >> 20)


class Lanes(Iterator[Task]):
    """The cores of all packs, as many lanes at a time as there are readers. Next comes a tile of the lane of which the
    fewest are under way, so that a lane whose tiles take little time does not wait for others.

    packs: windows in LR pixels.
    """

    def __init__(self, packs: Iterable[Window], plan: TilePlan, order: Order, readers: int) -> None:
        by_panel = sorted(packs, key=lambda w: (w.col // order.panel, w.row, w.col))
        if order.runs:
            lanes = _runs(by_panel, plan, readers)
        else:
            panels = groupby(by_panel, key=lambda w: w.col // order.panel)
            lanes = [[core for pack in panel for core in cores(pack, plan)] for _, panel in panels]
        self._waiting = enumerate(map(iter, lanes))
        self._running: dict[int, Iterator[Window]] = {}
        self._under_way: Counter[int] = Counter()
        self._readers = readers

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Task:
        while True:
            while len(self._running) < self._readers and (lane := next(self._waiting, None)) is not None:
                self._running[lane[0]] = lane[1]
            if not self._running:
                raise StopIteration
            number = min(self._running, key=lambda n: (self._under_way[n], n))
            if (core := next(self._running[number], None)) is None:
                del self._running[number]
                continue
            self._under_way[number] += 1
            return Task(core, number)

    def ended(self, task: Task) -> None:
        """A tile is not under way any more."""
        self._under_way[task.lane] -= 1


def _runs(packs: Sequence[Window], plan: TilePlan, readers: int) -> list[list[Window]]:
    """Runs of packs with about as many pixels each, some for each reader; of tiles, where there are few packs, and
    tiles so large that two readers would not decode about the same."""
    count = readers * max(1, min(_RUNS, len(packs) // (_RUN * readers)))
    each = [list(cores(pack, plan)) for pack in packs]
    if len(packs) < 2 * readers and (plan.core or 0) >= 2 * plan.halo:
        each = [[core] for pack in each for core in pack]
    pixels = list(accumulate(sum(core.height * core.width for core in part) for part in each))
    ends = (
        [0, *(bisect_left(pixels, pixels[-1] * n / count) + 1 for n in range(1, count + 1))] if each else []
    )
    return [[core for part in each[a:b] for core in part] for a, b in pairwise(ends) if a < b]


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1 … most that fits, 0 where none does; small ones are asked about first, for they are cheap."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _order_of_runs(scene: Scene, plan: TilePlan, readers: int, cache_mb: int, memory: int) -> Order:
    """The panels in which a reader's share of the packs is decoded from the fewest blocks, of those whose rows of packs
    leave their blocks in the cache; others with a smaller cache where that is about the same."""
    across, down = (-(-side // plan.pack) for side in (scene.grid.width, scene.grid.height))
    share = -(-across * down // readers)
    limit = max(cache_mb << 20, int(memory * _MOST_CACHE_SHARE))
    # of more packs than two it follows; to ask for all of a scene would be to place all of its pixels
    alone, beside, below = (_decoded_bytes(scene, plan, *n) for n in ((1, 1), (1, 2), (2, 1)))
    found: list[tuple[int, float, Order]] = []
    for wide in _widths(min(across, share)):
        row = alone + (wide - 1) * (beside - alone)
        cache = max(cache_mb << 20, min(readers, across * down) * row)
        decoded = row * (1 + (-(-share // wide) - 1) * (below / max(1, alone) - 1))
        order = Order(wide * plan.pack, min(cache, limit) + (1 << 20) - 1 >> 20, runs=True)
        found.append((cache, decoded, order))
    possible = [f for f in found if f[0] <= limit] or found
    least = min(decoded for _, decoded, _ in possible)
    return min((f for f in possible if f[1] * _WORTH_MEMORY <= least), key=lambda f: f[:2])[2]


def _widths(most: int) -> list[int]:
    """Widths of panels to compare, in packs: each power of two, and the largest."""
    return [*(1 << k for k in range(most.bit_length()) if 1 << k < most), most]


def _decoded_bytes(scene: Scene, plan: TilePlan, down: int, across: int) -> int:
    """Decoded blocks behind that many packs with their halo, in the middle of the scene."""
    high, wide = scene.grid.height, scene.grid.width
    height, width = down * plan.pack + 2 * plan.halo, across * plan.pack + 2 * plan.halo
    row, col = max(0, (high - height) // 2), max(0, (wide - width) // 2)
    # no tile reads further beyond a scene that is smaller than a pack
    most = Window(0, 0, high, wide).grown(EDGE)
    return scene.cached_bytes(Window(row, col, height, width).shared_with(most))


def packs_at_once(plan: TilePlan, crew: Crew) -> int:
    """Packs whose tiles suffice for all readers."""
    tiles = -(-plan.pack // (plan.core or plan.pack))
    return -(-crew.readers // tiles**2)


def shared_out(pack: Window, plan: TilePlan, readers: int) -> Iterator[Task]:
    """The tiles of a pack for so many readers, each of which has the same rows of all packs of one shape: neighbours
    share source blocks, and a pack keeps all readers busy. Where it has fewer rows of tiles than there are readers,
    packs of neighbouring columns are for different ones."""
    rows = min(readers, -(-pack.height // (plan.core or pack.height)))
    first = pack.col // plan.pack % -(-readers // rows) * rows
    lanes: dict[int, list[Task]] = {}
    for core in cores(pack, plan):
        lane = first + (core.row - pack.row) * rows // pack.height
        lanes.setdefault(lane, []).append(Task(core, lane))
    for together in zip_longest(*lanes.values()):
        yield from (task for task in together if task is not None)
