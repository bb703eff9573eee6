"""Measure launch configurations on this machine's GPU and write them to kernels/measured.json:

    python -m deeplight.engine.network.kernel_tuning [--seconds N]

Needs a CUDA GPU and Triton. A row of the table serves every preset, fp16 and bf16, so all of their launches are
measured together. Every configuration is compared with the definition on random data before it is timed. Rows of other
architectures in the file are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import torch

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import tune
from deeplight.kernels.launch import Launch
from deeplight.kernels.table import BUCKETS, MEASURED_FILE, measured
from deeplight.kernels.variants import DTYPES, variants

SIDES = (*BUCKETS, 2 * BUCKETS[-1])
"""One width of each bucket; the widest is that of a tile of 256 LR pixels at ×8."""

TYPES = ("fp16", "bf16")
"""Of two bytes: the table's rows are theirs together."""


def launches() -> Iterator[tuple[int, Launch]]:
    """(width, meta launch) of all presets."""
    for side, widths, dtype in product(SIDES, PRESETS.values(), TYPES):
        for ready in variants(widths, DTYPES[dtype], side=side):
            yield side, ready


def main(argv: list[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplight.engine.network.kernel_tuning", description=__doc__
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="what is not measured by then is left out"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU to measure on")
    device = torch.device("cuda", torch.cuda.current_device())
    found = tune.tune(launches(), device, options.seconds, lambda line: print(line, flush=True))
    tune.write(tune.merged(measured(), found), MEASURED_FILE)


if __name__ == "__main__":
    main()
