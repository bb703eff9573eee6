"""Launch configurations: MEASURED where a GPU was there, REASONED elsewhere.

`python -m deeplight.engine.network.kernel_tuning` rewrites measured.json beside this file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MEASURED_FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Config:
    """block: pixels (upsample_epilogue: values) a program. warps: of a program. stages: of the software pipeline."""

    block: int
    warps: int
    stages: int = 2


REASONED: dict[tuple[str, int], Config] = {
    # A thread holds BLOCK · channels / (32 · warps) values of a tile: 8 of them make 16 bytes of fp16, and four tiles
    # of at most 32 stay below 255 registers.
    ("fuse", 16): Config(128, 4),
    ("fuse", 32): Config(64, 4),
    ("fuse", 64): Config(32, 4),
    ("fuse", 128): Config(32, 4, 1),
    ("upsample_epilogue", 0): Config(2048, 4),
    ("upsample_conv", 16): Config(128, 4, 3),
    ("upsample_conv", 32): Config(128, 4, 3),
    ("upsample_conv", 64): Config(128, 4, 3),
    ("upsample_conv", 128): Config(64, 4, 3),
    # gathers: at least as many pixels as threads, so that a pixel's place is computed once and not by every thread
    # that loads some of its channels
    ("align", 8): Config(128, 4),
    ("align", 16): Config(128, 4),
    ("align", 2): Config(128, 4),
    ("align", 4): Config(128, 4),
    # two pixels a thread share its registers with six rows
    ("refine_narrow", 8): Config(256, 4),
    ("refine_narrow", 16): Config(128, 4),
    ("refine", 16): Config(128, 4, 3),
    ("refine", 32): Config(64, 4, 3),
    ("refine", 64): Config(64, 4, 3),
    ("refine", 128): Config(32, 4, 3),
    # 8 pixels of two rows a thread
    ("finish", 0): Config(1024, 4),
    # 16 pixels and a window of 15 fill 32; a program is small, so many share a processor
    ("residuals", 0): Config(16, 4),
    ("posterior", 32): Config(16, 8),
    ("posterior", 64): Config(16, 8),
    # 16 rows of sums are 8 registers of a thread; ten LR columns a program keep all processors busy
    ("observe", 0): Config(128, 8),
    ("rescale", 0): Config(512, 4),
    # 128 pixels, whose 32 channels are 32 registers of a thread
    ("suggest", 32): Config(8, 4),
    ("suggest", 64): Config(8, 4),
}
"""(kernel, channels as a power of two) → configuration for every architecture and width."""

WIDE: dict[tuple[str, int], Config] = {
    # float32 doubles the registers of a tile, and three TF32 products need three copies of their inputs
    ("fuse", 16): Config(128, 4, 1),
    ("fuse", 32): Config(64, 4, 1),
    ("fuse", 64): Config(32, 8, 1),
    ("fuse", 128): Config(32, 8, 1),
    ("refine", 64): Config(32, 8),
    ("refine_narrow", 8): Config(64, 8),
    ("refine_narrow", 16): Config(64, 8),
}
"""REASONED for four-byte features, where it differs."""

BUCKETS = (64, 256, 1024)
"""Upper ends of the width buckets; wider rows are bucket 0."""


def bucket(width: int) -> int:
    """The width bucket of a row of `width` pixels."""
    return next((b for b in BUCKETS if width <= b), 0)


def configuration(kernel: str, arch: int, channels: int, width: int, itemsize: int) -> Config:
    """The measured configuration of two-byte features, else the reasoned one.

    arch: compute capability (90 for 9.0), 0 where none is known. channels: a power of two, 0 where it does not matter.
    width: pixels of a row. itemsize: bytes of a feature.
    """
    key = kernel, channels
    if itemsize > 2:
        return WIDE.get(key) or REASONED.get(key) or Config(32, 8)
    return measured().get((kernel, arch, channels, bucket(width))) or REASONED.get(key) or Config(32, 4)


def digest(arch: int) -> str:
    """Changes with any configuration that a GPU of this compute capability may get, and so with the order of sums."""
    here = {key: config for key, config in measured().items() if key[1] == arch}
    text = "\n".join(sorted(f"{row}" for rows in (REASONED, WIDE, here) for row in rows.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def measured() -> dict[tuple[str, int, int, int], Config]:
    """(kernel, arch, channels, width bucket) → configuration, from measured.json."""
    if not MEASURED_FILE.exists():
        return {}
    rows = json.loads(MEASURED_FILE.read_text())
    return {
        (r["kernel"], r["arch"], r["channels"], r["bucket"]): Config(r["block"], r["warps"], r["stages"])
        for r in rows
    }
