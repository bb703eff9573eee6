"""Measure the presets' launch configurations on this machine's GPU and write them to kernels/measured.json:

    python -m deeplight.engine.network.kernel_tuning [--preset tiny|base] [--dtype fp16|bf16] [--seconds N]

Needs a CUDA GPU and Triton. Every configuration is compared with the definition on random data before it is timed.
Rows of other architectures in the file are kept.
"""

from __future__ import annotations

import argparse

import torch

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import tune
from deeplight.kernels.table import BUCKETS, MEASURED_FILE, measured
from deeplight.kernels.variants import DTYPES, variants


def main(argv: list[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplight.engine.network.kernel_tuning", description=__doc__
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="what is not measured by then is left out"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU to measure on")
    widths, dtype = PRESETS[options.preset], DTYPES[options.dtype]
    launches = [(side, ready) for side in BUCKETS for ready in variants(widths, dtype, side=side)]
    device = torch.device("cuda", torch.cuda.current_device())
    rows = tune.tune(launches, device, options.seconds, lambda line: print(line, flush=True))
    tune.write({**measured(), **rows}, MEASURED_FILE)


if __name__ == "__main__":
    main()
