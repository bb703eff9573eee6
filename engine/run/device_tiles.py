"""How large tiles on a device are, where nobody asked for a size: which are compared, and where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deeplight.engine.core.spec import SCALE
from deeplight.engine.run.device_path import TileShape
from deeplight.engine.run.slots import page_locked
from deeplight.engine.run.tiling import Crew, device_bytes, pack_side

LARGEST = 1024
"""LR pixels. Of tiles of 512 and a halo of 20 the core is 86 % of what is computed, of 1024 it is 93 %."""
FASTER = 1.03
"""A larger tile must be so many times faster: less is what two measurements differ by, and it takes more memory."""
PAYS = 20.0
"""A run must take so many times longer than comparing, so that this costs it 5 % at most."""
DEARER = 4.0
"""A size is taken to be so many times dearer to try than the dearest before it: it has so many times the pixels and
bytes. What is traced and compiled does not grow, which leaves room for a program that is compiled anew where those
before were found in caches; nobody can tell beforehand."""
DECODED = 2e8
"""HR pixels a second that a run is taken to reach where the device alone is faster: 16 cores decoded 1.9e8."""
TILES_A_SLOT = 2
"""So many tiles for each that is on its way at once: with fewer, threads would have nothing to do at the end."""


@dataclass(frozen=True)
class DeviceTiles:
    """Tiles that were tried. core: their side in LR pixels. need: host memory in bytes. room: bytes of a slot, each
    way. rate: HR pixels of cores a second, of a tile alone. seconds: that it took to make their program and to time it.
    """

    core: int
    need: int
    shape: TileShape
    room: tuple[int, int]
    rate: float
    seconds: float


def larger_cores(core: int) -> list[int]:
    """Sizes to compare a core with, in order."""
    return [core << k for k in range(1, LARGEST.bit_length()) if core << k <= LARGEST]


def host_bytes(core: int, room: tuple[int, int], crew: Crew, size: tuple[int, int], pixel: int) -> int:
    """Peak host memory of a run in such tiles over `size` LR pixels. room: bytes of a slot, each way. pixel: see
    tiling.device_bytes."""
    pack = pack_side(core)
    # tiles on their way are neighbours, and all of a pack come one after the other
    lanes = min(crew.readers, -(-crew.tiles // (pack // core) ** 2) + 1)
    return device_bytes(crew.tiles, sum(map(page_locked, room)), lanes, pack, *size, pixel)


def worth_trying(tried: Sequence[DeviceTiles], core: int, size: tuple[int, int], slots: int) -> bool:
    """Whether a scene of `size` LR pixels is large enough to make the program of another size, and is still cut into
    enough tiles by it. tried: the first size and larger ones that were faster, in order; what these took counts, too,
    but the first is made in any case."""
    height, width = size
    tiles = -(-height // core) * -(-width // core)
    run_s = height * width * SCALE**2 / min(tried[-1].rate, DECODED)
    seconds = [each.seconds for each in tried]
    comparing_s = sum(seconds[1:]) + DEARER * max(seconds)
    return tiles >= TILES_A_SLOT * slots and run_s >= PAYS * comparing_s
