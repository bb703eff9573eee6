"""Launch configurations: measured ones for GPUs that were there, REASONED ones for all others.

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
    """block: pixels of a program (of upsample_epilogue: values). warps: warps of a program. stages: stages of its
    software pipeline."""

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
    # Gathers. With at least as many pixels as threads, the place of a pixel is computed once, not again by each thread
    # that loads some of its channels.
    ("align", 8): Config(128, 4),
    ("align", 16): Config(128, 4),
    ("align", 2): Config(128, 4),
    ("align", 4): Config(128, 4),
    # a thread has two pixels, and registers for six rows of each
    ("refine_narrow", 8): Config(256, 4),
    ("refine_narrow", 16): Config(128, 4),
    ("refine", 16): Config(128, 4, 3),
    ("refine", 32): Config(64, 4, 3),
    ("refine", 64): Config(64, 4, 3),
    ("refine", 128): Config(32, 4, 3),
    # a thread has 8 pixels of each of two rows
    ("finish", 0): Config(1024, 4),
    # 16 pixels and a window of 15 fill 32. A program is small, so that many run on one multiprocessor.
    ("residuals", 0): Config(16, 4),
    ("posterior", 32): Config(16, 8),
    ("posterior", 64): Config(16, 8),
    # A thread has a column, with seven sums and 56 weights, as in `believe` and `look`. Ten LR columns a program are
    # enough for a large GPU.
    ("observe", 0): Config(128, 4),
    ("start", 0): Config(512, 4),
    ("believe", 0): Config(128, 4),
    ("look", 0): Config(128, 4),
    ("decide", 0): Config(128, 4),
    ("settle", 0): Config(512, 4),
    # a thread holds the 32 channels of one of 128 pixels
    ("suggest", 32): Config(8, 4),
    ("suggest", 64): Config(8, 4),
}
"""From (kernel, channels as a power of two) to the configuration for every architecture and width."""

WIDE: dict[tuple[str, int], Config] = {
    # float32 takes twice the registers, and three TF32 products need three copies of their inputs
    ("fuse", 16): Config(128, 4, 1),
    ("fuse", 32): Config(64, 4, 1),
    ("fuse", 64): Config(32, 8, 1),
    ("fuse", 128): Config(32, 8, 1),
    ("refine", 64): Config(32, 8),
    ("refine_narrow", 8): Config(64, 8),
    ("refine_narrow", 16): Config(64, 8),
}
"""Configurations of REASONED that differ for features of four bytes."""

BUCKETS = (64, 256, 1024)
"""The largest width of each bucket of widths; wider rows belong to bucket 0."""


def bucket(width: int) -> int:
    """The bucket of widths to which a row of `width` pixels belongs."""
    return next((b for b in BUCKETS if width <= b), 0)


def configuration(kernel: str, arch: int, channels: int, width: int, itemsize: int) -> Config:
    """The measured configuration for features of two bytes where there is one, else the reasoned one.

    arch: compute capability (90 for 9.0), 0 where none is known. channels: a power of two, 0 where it does not matter.
    width: pixels of a row. itemsize: bytes of a feature.
    """
    key = kernel, channels
    if itemsize > 2:
        return WIDE.get(key) or REASONED.get(key) or Config(32, 8)
    return measured().get((kernel, arch, channels, bucket(width))) or REASONED.get(key) or Config(32, 4)


def digest(arch: int) -> str:
    """A digest of all configurations that GPUs of a compute capability may get: the order of sums depends on them."""
    here = {key: config for key, config in measured().items() if key[1] == arch}
    text = "\n".join(sorted(f"{row}" for rows in (REASONED, WIDE, here) for row in rows.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def measured() -> dict[tuple[str, int, int, int], Config]:
    """From (kernel, arch, channels, bucket of widths) to the configuration, as read from measured.json."""
    if not MEASURED_FILE.exists():
        return {}
    rows = json.loads(MEASURED_FILE.read_text())
    return {
        (r["kernel"], r["arch"], r["channels"], r["bucket"]): Config(r["block"], r["warps"], r["stages"])
        for r in rows
    }
