"""How large tiles on a device are, where nobody asked for a size: which are compared, and where that pays."""

from __future__ import annotations

from dataclasses import dataclass

from deeplight.engine.core.spec import SCALE
from deeplight.engine.run.device_path import TileShape

LARGEST = 1024
"""LR pixels. Of tiles of 512 and a halo of 20 the core is 86 % of what is computed, of 1024 it is 93 %."""
FASTER = 1.03
"""A larger tile must be so many times faster: less is what two measurements differ by, and it takes more memory."""
PAYS = 20.0
"""A run must take so many times longer than the program of another size, so that comparing costs it 5 % at most."""
DECODED = 2e8
"""HR pixels a second that a run is taken to reach where the device alone is faster: 16 cores decoded 1.9e8."""
TILES_A_SLOT = 2
"""So many tiles for each that is on its way at once: with fewer, threads would have nothing to do at the end."""


@dataclass(frozen=True)
class DeviceTiles:
    """Tiles that were tried. core: their side in LR pixels. need: host memory in bytes. rate: HR pixels of cores a
    second, of a tile alone. seconds: that it took to make their program and to time it."""

    core: int
    need: int
    shape: TileShape
    rate: float
    seconds: float


def larger_cores(core: int) -> list[int]:
    """Sizes to compare a core with, in order."""
    return [core << k for k in range(1, LARGEST.bit_length()) if core << k <= LARGEST]


def worth_trying(first: DeviceTiles, core: int, size: tuple[int, int], slots: int) -> bool:
    """Whether a scene of `size` LR pixels is large enough to make the program of another size, which takes what the
    first one took, and is still cut into enough tiles by it."""
    height, width = size
    tiles = -(-height // core) * -(-width // core)
    run_s = height * width * SCALE**2 / min(first.rate, DECODED)
    return tiles >= TILES_A_SLOT * slots and run_s >= PAYS * first.seconds
