"""How a scene is cut: the --tiles request, tiles that fit the memory, packs, windows a model accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deeplight.engine.artifact import Manifest
from deeplight.engine.errors import InputError
from deeplight.engine.spec import INPUTS, SCALE
from deeplight.engine.tiles import Window, core_share, split

LEAST_SHARE = 0.6
"""`auto` keeps at least this share of the computed pixels, memory allowing."""
_AUTO_CORES = (256, 512, 1024)
"""`auto` takes the first that keeps the share: larger ones gain little, and stages overlap less."""
_LEAST_AUTO_CORE = 8
_LEAST_PACK = 256
"""LR pixels; a pack's side is this times a power of two (512·2^k HR pixels, k ≥ 2)."""
_UNKNOWN_MODEL_BYTES = 300_000
"""Working bytes per LR pixel of a tile assumed for a model that does not say: a wide network's."""
_SLACK = 1.1
"""A runtime's allocator takes memory in growing steps and keeps it: peaks of tiled runs were fitted with this."""
_INPUT_BYTES = 4 * sum(s.channels * (SCALE * SCALE if s.hr else 1) for s in INPUTS if s.hr is not None)
"""Bytes of the input tensors per LR pixel of a tile."""
_TILES_IN_FLIGHT, _TILES_PER_READER = 4, 3
"""Input tensors in memory at once: those that are ready or computed; and those of a tile that is being read (raw,
physical and resampled)."""
_CPUS_PER_READER = 4
_FIXED_BYTES = 576 << 20
"""Interpreter, libraries, the raster library's full block cache of 256 MB: measured peaks of `tiny` in tiles of 64 and
128, extrapolated to no tile."""
_PACKS_IN_FLIGHT = 3
_MEMORY_SHARE = 0.7
"""Share of the available memory that a run may plan with: other programs breathe, estimates err."""


@dataclass(frozen=True)
class TileRequest:
    """What --tiles asked for, in LR pixels. core None: automatic. halo None: the model's."""

    core: int | None = None
    halo: int | None = None

    def __str__(self) -> str:
        if self.core is None:
            return "auto"
        return str(self.core) if self.halo is None else f"{self.core}+{self.halo}"


@dataclass(frozen=True)
class TilePlan:
    """How a scene is cut, in LR pixels. core None: the whole scene in one piece."""

    core: int | None
    halo: int
    pack: int
    estimate: int

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
) -> TilePlan:
    """Choose core, halo and pack for a scene of height × width LR pixels.

    request: None runs the scene in one piece. memory: bytes available. A CORE given is used as it is. Raises
    InputError for a HALO below the model's, and where not even the smallest choice fits the memory.
    """
    halo = manifest.halo_lr
    if request is not None and request.halo is not None:
        if request.halo < halo:
            raise InputError(
                f"--tiles {request}: the halo is below the {halo} LR pixels that {manifest.name} needs; "
                f"give {request.core}+{halo}, or leave the halo out"
            )
        halo = request.halo
    usable = int(memory * _MEMORY_SHARE)
    if request is None:
        return _whole_scene(manifest, height, width, halo, bands, usable)
    core = request.core or _auto_core(manifest, height, width, halo, bands, usable, readers)
    estimate = _tiled_bytes(manifest, height, width, core, halo, bands, readers)
    return TilePlan(core, halo, pack_side(core), estimate)


def pack_side(core: int) -> int:
    """Smallest 64·2^k LR pixels with k ≥ 2 that hold a core."""
    side = _LEAST_PACK
    while side < core:
        side *= 2
    return side


def cores(pack: Window, plan: TilePlan) -> Iterator[Window]:
    """The cores of one pack, from its origin, row by row."""
    return split(pack, plan.core or max(pack.height, pack.width))


def tile_window(core: Window, halo: int, manifest: Manifest) -> Window:
    """The LR pixels to compute for a core: grown by the halo, then to what the model's shape rules accept.

    The origin is a multiple of `multiple_lr` in the scene: the model's lattice does not move with tiles.
    """
    m = manifest.multiple_lr
    w = core.grown(halo)
    row, col = w.row // m * m, w.col // m * m
    height = _round_up(max(w.row + w.height - row, manifest.min_lr), m)
    width = _round_up(max(w.col + w.width - col, manifest.min_lr), m)
    return Window(row, col, height, width)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _model_bytes(manifest: Manifest) -> int:
    return manifest.bytes_per_lr_px or _UNKNOWN_MODEL_BYTES


def _output_bytes(bands: int) -> int:
    """Per LR pixel of finished output."""
    return 4 * bands * SCALE * SCALE


def _tiled_bytes(
    manifest: Manifest, height: int, width: int, core: int, halo: int, bands: int, readers: int
) -> int:
    """Peak memory of a tiled run. The scene's size only enters where it is smaller than a tile or a pack."""
    h, w = min(core, height), min(core, width)
    tile = (h + 2 * halo) * (w + 2 * halo)
    side = pack_side(core)
    pack = min(side, height) * min(side, width)
    per_tile = int(_model_bytes(manifest) * _SLACK) + _output_bytes(bands) * _TILES_IN_FLIGHT
    per_tile += _INPUT_BYTES * (_TILES_IN_FLIGHT + readers * _TILES_PER_READER)
    return _FIXED_BYTES + tile * per_tile + pack * _PACKS_IN_FLIGHT * _output_bytes(bands)


def _whole_scene(manifest: Manifest, height: int, width: int, halo: int, bands: int, usable: int) -> TilePlan:
    tile = (height + 2 * halo) * (width + 2 * halo)
    per_px = _model_bytes(manifest) + 2 * _INPUT_BYTES + 3 * _output_bytes(bands)
    estimate = _FIXED_BYTES + tile * per_px
    if estimate > usable:
        raise InputError(
            f"the scene of {height}×{width} LR pixels in one piece needs about {_gb(estimate)} and "
            f"{_gb(usable)} can be used: use --tiles"
        )
    return TilePlan(None, halo, _LEAST_PACK, estimate)


def _auto_core(
    manifest: Manifest, height: int, width: int, halo: int, bands: int, usable: int, readers: int
) -> int:
    """The largest core that fits the memory and cuts a pack into equal parts, so that no tile is a sliver."""
    start = next((c for c in _AUTO_CORES if core_share(c, halo) >= LEAST_SHARE), _AUTO_CORES[-1])
    for parts in range(1, start // _LEAST_AUTO_CORE + 1):
        core = -(-start // parts)
        need = _tiled_bytes(manifest, height, width, core, halo, bands, readers)
        if need <= usable:
            return core
    raise InputError(
        f"the smallest tile of {manifest.name} needs about {_gb(need)} and {_gb(usable)} can be used: "
        f"free memory or use a smaller model"
    )


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
