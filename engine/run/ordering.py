"""In which order packs are computed, so that every block of a source is decoded once.

GDAL keeps decoded blocks per dataset handle, the least recently used go first. Tiles of two pack rows share the
blocks between them, so these are still there if all blocks behind one row of packs fit into the cache. Where a
row of the whole scene is too long for that, the scene is cut into panels, each computed from top to bottom. One
panel is one lane: one reader, one handle. Where reading is most of the work, readers share what is decoded instead
(raster.shared_blocks), and each takes the tile that is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from deeplight.engine.core.windows import Window
from deeplight.engine.run.executor import Task
from deeplight.engine.run.tiling import EDGE, Crew, TilePlan, cores

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

_MOST_CACHE_SHARE, _MOST_CACHE_BYTES = 0.05, 1 << 30
"""Of the available memory, and at all, for decoded blocks, where a panel of one pack needs more than usual. GDAL's own
limit between two reads is this share of all memory: what a larger one holds is lost there."""
_SHARED_SHARE = 0.1
"""Of the available memory, for decoded blocks that readers share."""


@dataclass(frozen=True)
class Order:
    """panel: width of a panel in LR pixels. cache_mb: for GDAL's block cache. shared_mb: for blocks that all readers
    share; 0 where they share none."""

    panel: int
    cache_mb: int
    shared_mb: int = 0


def choose_order(scene: Scene, plan: TilePlan, crew: Crew, cache_mb: int, memory: int) -> Order:
    """The widest panels whose rows of packs leave their blocks in the cache, shared by the readers.

    cache_mb: the usual cache. memory: bytes available. A cache that does not even hold the blocks behind one
    pack, as for files stored in rows, is made larger as far as memory allows.
    """
    readers, packs = crew.readers, -(-scene.grid.width // plan.pack)
    if crew.all_read and readers > 1:
        return _order_of_shared_blocks(scene, plan, readers, cache_mb, memory)
    usual = cache_mb << 20

    def fits(count: int) -> bool:
        lanes = min(readers, -(-packs // count))
        return lanes * _row_bytes(scene, plan, count) <= usual

    # At least a panel for each reader, or two of them decode the same blocks.
    count = _largest(fits, -(-packs // readers))
    if count:
        return Order(count * plan.pack, cache_mb)
    need = min(readers, packs) * _row_bytes(scene, plan, 1)
    limit = min(int(memory * _MOST_CACHE_SHARE), _MOST_CACHE_BYTES)
    return Order(plan.pack, max(usual, min(need, limit)) + (1 << 20) - 1 >> 20)


def tasks(packs: Iterable[Window], plan: TilePlan, order: Order, readers: int) -> Iterator[Task]:
    """The cores of all packs, as many panels at a time as there are readers, tile by tile in turn; where readers share
    blocks, panel after panel, each tile for whoever is free.

    packs: windows in LR pixels.
    """
    by_panel = sorted(packs, key=lambda w: (w.col // order.panel, w.row, w.col))
    if order.shared_mb:
        yield from (Task(core, None) for pack in by_panel for core in cores(pack, plan))
        return
    panels = groupby(by_panel, key=lambda w: w.col // order.panel)
    waiting = iter([_lane(lane, list(group), plan) for lane, group in panels])
    running: list[Iterator[Task]] = []
    while True:
        while len(running) < readers and (lane := next(waiting, None)) is not None:
            running.append(lane)
        if not running:
            return
        for lane in list(running):
            if (task := next(lane, None)) is None:
                running.remove(lane)
            else:
                yield task


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


def _lane(number: int, packs: list[Window], plan: TilePlan) -> Iterator[Task]:
    return (Task(core, number) for pack in packs for core in cores(pack, plan))


def _order_of_shared_blocks(scene: Scene, plan: TilePlan, readers: int, cache_mb: int, memory: int) -> Order:
    """The widest panels whose rows of packs leave their blocks in the memory that readers share, besides what these
    are at work on."""
    across = -(-scene.grid.width // plan.pack)
    limit = max(cache_mb << 20, int(memory * _SHARED_SHARE))
    # of more packs than two it follows; to ask for a whole row would be to place all of its pixels
    alone, two = (_row_bytes(scene, plan, packs, shared=True) for packs in (1, 2))
    side = (plan.core or plan.pack) + 2 * plan.halo
    first = alone + int(readers * alone * (side / (plan.pack + 2 * plan.halo)) ** 2)
    more = max(1, two - alone)
    wide = max(1, min(across, 1 + (limit - first) // more))
    need = max(cache_mb << 20, min(limit, first + (wide - 1) * more))
    return Order(wide * plan.pack, cache_mb, need + (1 << 20) - 1 >> 20)


def packs_at_once(plan: TilePlan, crew: Crew) -> int:
    """Packs whose tiles suffice for all readers."""
    tiles = -(-plan.pack // (plan.core or plan.pack))
    return -(-crew.readers // tiles**2)


def shared_out(pack: Window, plan: TilePlan, crew: Crew) -> Iterator[Task]:
    """The tiles of a pack for several readers, each of which has the same rows of every pack: neighbours share source
    blocks, and a pack keeps all readers busy. Where readers share all blocks, each tile is for whoever is free."""
    if crew.all_read:
        yield from (Task(core, None) for core in cores(pack, plan))
        return
    lanes: dict[int, list[Task]] = {}
    for core in cores(pack, plan):
        lane = (core.row - pack.row) * crew.readers // pack.height
        lanes.setdefault(lane, []).append(Task(core, lane))
    for together in zip_longest(*lanes.values()):
        yield from (task for task in together if task is not None)


def _row_bytes(scene: Scene, plan: TilePlan, packs: int, *, shared: bool = False) -> int:
    """Decoded blocks behind a row of that many packs with their halo, in the middle of the scene."""
    high, wide = scene.grid.height, scene.grid.width
    height, width = plan.pack + 2 * plan.halo, packs * plan.pack + 2 * plan.halo
    row, col = max(0, (high - height) // 2), max(0, (wide - width) // 2)
    # no tile reads further beyond a scene that is smaller than a pack
    most = Window(0, 0, high, wide).grown(EDGE)
    return scene.cached_bytes(Window(row, col, height, width).shared_with(most), shared=shared)
