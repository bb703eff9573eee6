"""How a scene is cut: the request for tiles, tiles that fit the memory, packs, windows a model accepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.core.windows import Window, core_share, split
from deeplight.engine.runtime.manifest import Manifest

LEAST_SHARE = 0.6
"""`auto` keeps at least this share of the computed pixels, memory allowing."""
EDGE = 4
"""LR pixels beyond the scene that a model is shown, as nodata. With its whole halo, of 20, a scene of 40² would be 80²
to compute in place of 48², and nothing would change: on eight synthetic countries the error in the outermost LR
pixel, and in the three within, was the same to three digits with 4, 8 and 20; with 0 it was 9 % and 4 % larger."""
AUTO_STREAMS = 2
"""Tiles computed at once where memory allows and threads suffice (Backend.threads_a_stream): with ONNX Runtime on two
CPUs that is a thread each, and neither waits for the other."""
_AUTO_CORES = (256, 512, 1024)
"""`auto` takes the first that keeps the share: larger ones gain little, and stages overlap less."""
_SMALL_SCENE = 1.5
"""A scene of at most so many of these cores a side takes halves of them. One to four tiles leave nothing to read and
write beside the model, and take memory as if there were more: 256² and 320² LR pixels took 0.75 to 0.95 times the time
in tiles of 128, 384² 0.9 to 1, with a third to two thirds of the memory; 512² took up to 1.1 times the CPU time."""
_LEAST_AUTO_CORE = 8
_LEAST_PACK = 256
"""LR pixels; a pack's side is this times a power of two (512·2^k HR pixels, k ≥ 2)."""
_UNKNOWN_MODEL_BYTES = 300_000
"""Working bytes per LR pixel of a tile assumed for a model that does not say: a wide network's."""
_SLACK = 1.1
"""A runtime's allocator takes memory in growing steps and keeps it: peaks of tiled runs were fitted with this."""
_MOST_PROGRAMS = 2.0
"""Where a runtime compiles for each tile shape, what it keeps has at most so many times the pixels of the largest tile
(openvino_programs.HELD)."""
_INPUT_BYTES = 4 * sum(s.channels * (SCALE * SCALE if s.hr else 1) for s in INPUTS if s.hr is not None)
"""Bytes of the input tensors per LR pixel of a tile."""
_OUTPUTS_IN_FLIGHT = 4
"""Finished tiles in memory: computed, waiting, and in the hands of two writers."""
_CPUS_PER_READER = 4
_FIXED_BYTES = 512 << 20
"""Interpreter, libraries, the raster library's full block cache of 256 MB: measured peaks of `tiny` in tiles of 64 and
128, extrapolated to no tile, and rounded up."""
_PACKS_IN_FLIGHT = 3
_MEMORY_SHARE = 0.7
"""Share of the available memory that a run may plan with: other programs breathe, estimates err."""


@dataclass(frozen=True)
class TileRequest:
    """What `tiles` asks for, in LR pixels. core None: automatic. halo None: the model's."""

    core: int | None = None
    halo: int | None = None

    def __str__(self) -> str:
        if self.core is None:
            return "auto"
        return str(self.core) if self.halo is None else f"{self.core}+{self.halo}"


AUTOMATIC = TileRequest()


@dataclass(frozen=True)
class TilePlan:
    """How a scene is cut, in LR pixels. core None: the whole scene in one piece. streams: tiles computed at once.

    estimate: peak memory in bytes. chosen: nobody asked for this core, so a device may take another.
    """

    core: int | None
    halo: int
    pack: int
    estimate: int
    streams: int = 1
    chosen: bool = False

    def describe(self) -> str:
        """For the log and the report."""
        return "whole scene" if self.core is None else f"{self.core}+{self.halo}"


def parse_tiles(text: str) -> TileRequest:
    """`auto`, `CORE` or `CORE+HALO` in LR pixels. Raises ValueError in one sentence."""
    if text == "auto":
        return TileRequest()
    match = re.fullmatch(r"(\d{1,6})(?:\+(\d{1,5}))?", text)
    if match is None or int(match[1]) < 1:
        raise ValueError(
            f"{text!r} is not a tile size: give auto, CORE or CORE+HALO in LR pixels, as in 128+16"
        )
    return TileRequest(int(match[1]), None if match[2] is None else int(match[2]))


@dataclass(frozen=True)
class Crew:
    """How many threads read and write, and how many finished tiles may wait between the model and the writers.
    all_read: reading is most of the work, so that readers share what they decode."""

    readers: int
    writers: int
    ahead: int = 1
    all_read: bool = False

    @property
    def tiles(self) -> int:
        """Tiles that they hold together at most, with the one that is being computed."""
        return self.readers + 1 + self.ahead + self.writers


def reader_count(threads: int) -> int:
    """Readers beside a model that has `threads` threads on the same CPUs: reading takes a small part of it.

    Few, because each has a cache of decoded blocks of its own.
    """
    return max(1, threads // _CPUS_PER_READER)


def plan_tiles(
    request: TileRequest | None,
    manifest: Manifest,
    height: int,
    width: int,
    bands: int,
    memory: int,
    readers: int = 1,
    streams: int | None = 1,
    reach: int = 0,
    beside: int = 1,
    few_shapes: bool = False,
    model_memory: float = 1.0,
    takes: Callable[[int, int], bool] = lambda core, halo: True,
) -> TilePlan:
    """Choose core, halo and pack for a scene of height × width LR pixels.

    request: None runs the scene in one piece. reach: LR pixels that the halo must have beyond the model's, for what is
    done with its output. memory: bytes available. streams: tiles computed at once; None: two where memory allows and
    there is more than one tile. beside: workers that share the host's memory, of which `memory` is one's. few_shapes:
    windows have the sides of `common_sides`. model_memory: of the backend, see Backend.memory. takes: whether the
    backend takes tiles of a core and a halo, of which automatic tiles are. A CORE given is used as it is. Raises
    InputError for a HALO below what is needed, and where not even the smallest choice fits the memory.
    """
    halo = manifest.halo_lr + reach
    if request is not None and request.halo is not None:
        if request.halo < halo:
            raise InputError(
                f'`tiles="{request}"`: the halo is below the {halo} LR pixels that {manifest.name} '
                f"{'with `conserve_radiance=True` ' if reach else ''}needs; "
                f"give {request.core}+{halo}, or leave the halo out"
            )
        halo = request.halo
    usable = usable_memory(memory)
    if request is None:
        return _whole_scene(manifest, height, width, halo, bands, usable, model_memory)
    job = _Job(manifest, height, width, halo, bands, readers, few_shapes, model_memory)
    core = request.core or _auto_core(job, usable, streams or 1, beside, lambda core: takes(core, halo))
    if streams is None:
        several = core < max(height, width) and job.tiled_bytes(core, AUTO_STREAMS) <= usable
        streams = AUTO_STREAMS if several else 1
    chosen = request.core is None
    return TilePlan(core, halo, pack_side(core), job.tiled_bytes(core, streams), streams, chosen)


def usable_memory(memory: int) -> int:
    """What a run may plan with, of the bytes that are available."""
    return int(memory * _MEMORY_SHARE)


def device_cores(plan: TilePlan) -> list[int]:
    """Cores to try on a device, the best first: as large as `auto` takes, then halves of it; or the one asked for."""
    assert plan.core is not None
    if not plan.chosen:
        return [plan.core]
    start = next((c for c in _AUTO_CORES if core_share(c, plan.halo) >= LEAST_SHARE), _AUTO_CORES[-1])
    return [start >> k for k in range(start.bit_length()) if start >> k >= _LEAST_AUTO_CORE]


def device_bytes(slots: int, slot: int, lanes: int, pack: int, height: int, width: int, pixel: int) -> int:
    """Peak host memory of a run over the device path: `slots` of so many bytes, and a pack of side `pack` that is being
    filled for each of `lanes`, besides those that are written. pixel: bytes of an HR pixel in a pack."""
    pixels = min(pack, height) * min(pack, width)
    packs = min(lanes, -(-width // pack) * -(-height // pack)) + _PACKS_IN_FLIGHT
    return _FIXED_BYTES + slots * slot + packs * pixels * pixel * SCALE * SCALE


def pack_side(core: int) -> int:
    """Smallest 64·2^k LR pixels with k ≥ 2 that hold a core."""
    side = _LEAST_PACK
    while side < core:
        side *= 2
    return side


def cores(pack: Window, plan: TilePlan) -> Iterator[Window]:
    """The cores of one pack, from its origin, row by row."""
    return split(pack, plan.core or max(pack.height, pack.width))


def tile_window(core: Window, halo: int, manifest: Manifest, size: tuple[int, int] | None = None) -> Window:
    """The LR pixels to compute for a core: grown by the halo, cut off EDGE beyond the scene, then grown to what the
    model's shape rules accept.

    size: (height, width) of the scene; None: it has no end. The origin is a multiple of `multiple_lr` in the scene: the
    model's lattice does not move with tiles. Every tile whose halo reaches beyond the edge ends in the same place
    there, so all of them see the same.
    """
    height, width = size or (None, None)
    row, rows = _span(core.row, core.height, halo, manifest, height)
    col, cols = _span(core.col, core.width, halo, manifest, width)
    return Window(row, col, rows, cols)


def fixed_window(core: Window, side: int, halo: int, manifest: Manifest, size: tuple[int, int]) -> Window:
    """As `tile_window` of a scene, and of one size for all cores of at most `side` LR pixels: where it would leave the
    scene, and for smaller cores, it moves inwards. A scene smaller than it is shown whole."""
    m = manifest.multiple_lr
    length = max(_round_up(side + 2 * halo, m) + (m if m > 1 else 0), _round_up(manifest.min_lr, m))
    edge = min(halo, EDGE)
    spans = []
    for start, scene in ((core.row, size[0]), (core.col, size[1])):
        lowest, highest = -edge // m * m, _round_up(scene + edge, m)
        first = max(lowest, min((start - halo) // m * m, highest - length))
        least = max(min(length, highest - first), _round_up(manifest.min_lr, m))
        spans.append((first, least))
    (row, height), (col, width) = spans
    return Window(row, col, height, width)


def common_sides(
    plan: TilePlan, manifest: Manifest, size: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heights and widths in LR pixels that suffice for the windows of a plan for a scene of `size`: along each axis
    that of the largest `tile_window`, and before it the largest of those less than half as long, if there are any."""
    found = []
    for scene in size:
        lengths = _lengths(plan, manifest, scene)
        short = [length for length in lengths if 2 * length < max(lengths)]
        found.append((max(short), max(lengths)) if short else (max(lengths),))
    return found[0], found[1]


def _lengths(plan: TilePlan, manifest: Manifest, scene: int) -> list[int]:
    """Length of the `tile_window` of each core along an axis of `scene` LR pixels."""
    assert plan.core is not None
    found = []
    for begin in range(0, scene, plan.pack):
        end = min(begin + plan.pack, scene)
        for first in range(begin, end, plan.core):
            core = min(plan.core, end - first)
            found.append(_span(first, core, plan.halo, manifest, scene)[1])
    return found


def _common(length: int, sides: tuple[int, ...]) -> int:
    """The next of `sides`; the length itself where it is larger, or less than half of that: then it is of no tile."""
    return next((side for side in sides if length <= side <= 2 * length), length)


def window_of_sides(
    window: Window,
    sides: tuple[tuple[int, ...], tuple[int, ...]],
    halo: int,
    manifest: Manifest,
    size: tuple[int, int],
) -> Window:
    """A `tile_window` of a scene of `size`, grown to the next of `sides`, inwards where it would end beyond all others.

    A window of another place than a tile, larger or much smaller, stays as it is. The origin stays a multiple of
    `multiple_lr`.
    """
    spans = []
    for start, length, lengths, scene in zip(
        (window.row, window.col), window.shape, sides, size, strict=True
    ):
        first, all_of_it = _span(0, scene, halo, manifest, scene)
        side = _common(length, lengths)
        spans.append((max(first, min(start, first + all_of_it - side)), side))
    (row, height), (col, width) = spans
    return Window(row, col, height, width)


def _span(start: int, length: int, halo: int, manifest: Manifest, scene: int | None) -> tuple[int, int]:
    """First pixel and length of `tile_window` along one axis. scene: its length."""
    m = manifest.multiple_lr
    first, end = (start - halo) // m * m, _round_up(start + length + halo, m)
    if scene is not None:
        edge = min(halo, EDGE)
        lowest, highest = -edge // m * m, _round_up(scene + edge, m)
        first, end = max(first, lowest), min(end, highest)
        # inside the scene there is room for a model's least side without showing it more of what lies beyond
        first = max(lowest, min(first, (end - manifest.min_lr) // m * m))
    return first, _round_up(max(end - first, manifest.min_lr), m)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _model_bytes(manifest: Manifest) -> int:
    return manifest.bytes_per_lr_px or _UNKNOWN_MODEL_BYTES


def _output_bytes(bands: int) -> int:
    """Per LR pixel of finished output."""
    return 4 * bands * SCALE * SCALE


@dataclass(frozen=True)
class _Job:
    """What decides how much memory a tile takes."""

    manifest: Manifest
    height: int
    width: int
    halo: int
    bands: int
    readers: int
    few_shapes: bool = False
    model_memory: float = 1.0

    def computed(self, core: int) -> int:
        """LR pixels of all tiles together, where these have the sides of `common_sides`."""
        plan, size = self._plan(core), (self.height, self.width)
        pixels = 1
        for scene, sides in zip(size, common_sides(plan, self.manifest, size), strict=True):
            pixels *= sum(_common(length, sides) for length in _lengths(plan, self.manifest, scene))
        return pixels

    def _programs(self, core: int) -> float:
        """A runtime's memory over the manifest's: some keep programs for short tiles beside those of the others."""
        if not self.few_shapes:
            return self.model_memory
        rows, cols = common_sides(self._plan(core), self.manifest, (self.height, self.width))
        return self.model_memory * min(_MOST_PROGRAMS, sum(rows) / rows[-1] * sum(cols) / cols[-1])

    def _plan(self, core: int) -> TilePlan:
        return TilePlan(core, self.halo, pack_side(core), 0)

    def tiled_bytes(self, core: int, streams: int) -> int:
        """Peak memory of a tiled run. The scene's size only enters where it is smaller than a tile or a pack."""
        edge = min(self.halo, EDGE)
        h, w = (min(core + 2 * self.halo, side + 2 * edge) for side in (self.height, self.width))
        side = pack_side(core)
        pack = min(side, self.height) * min(side, self.width)
        output = _output_bytes(self.bands)
        # inputs: of the tiles that are computed, of those that wait (see LocalExecutor), of those that are read
        inputs = streams + (streams - 1) + self.readers
        per_px = (
            streams * int(_model_bytes(self.manifest) * _SLACK * self._programs(core)) + _INPUT_BYTES * inputs
        )
        per_px += output * (_OUTPUTS_IN_FLIGHT + streams - 1)
        return _FIXED_BYTES + h * w * per_px + pack * _PACKS_IN_FLIGHT * output


def _whole_scene(
    manifest: Manifest, height: int, width: int, halo: int, bands: int, usable: int, model_memory: float
) -> TilePlan:
    edge = min(halo, EDGE)
    tile = (height + 2 * edge) * (width + 2 * edge)
    per_px = int(_model_bytes(manifest) * model_memory) + 2 * _INPUT_BYTES + 3 * _output_bytes(bands)
    estimate = _FIXED_BYTES + tile * per_px
    if estimate > usable:
        raise InputError(
            f"the scene of {height}×{width} LR pixels in one piece needs about {_gb(estimate)} and "
            f"{_gb(usable)} can be used: leave out `tiles=None`"
        )
    return TilePlan(None, halo, _LEAST_PACK, estimate)


def _auto_core(job: _Job, usable: int, streams: int, beside: int, takes: Callable[[int], bool]) -> int:
    """The largest core that fits the memory and cuts a pack into equal parts, so that no tile is a sliver, half of it
    for a small scene; where tiles are to have few shapes, that one for which the fewest pixels are computed."""
    start = next((c for c in _AUTO_CORES if core_share(c, job.halo) >= LEAST_SHARE), _AUTO_CORES[-1])
    if max(job.height, job.width) <= _SMALL_SCENE * start:
        start //= 2
    cores = [-(-start // parts) for parts in range(1, start // _LEAST_AUTO_CORE + 1)]
    cores = [core for core in cores if takes(core)] or cores[-1:]
    fitting = [core for core in cores if job.tiled_bytes(core, streams) <= usable]
    if fitting:
        return min(fitting, key=job.computed) if job.few_shapes else fitting[0]
    need = job.tiled_bytes(cores[-1], streams)
    remedy = "free memory or use a smaller model" if streams == 1 else f"use fewer `streams` than {streams}"
    if beside > 1:
        remedy = f"use fewer `workers` than {beside} a host"
    raise InputError(
        f"the smallest tile of {job.manifest.name} needs about {_gb(need)} and {_gb(usable)} can be used: {remedy}"
    )


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
