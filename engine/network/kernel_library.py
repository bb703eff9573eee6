"""Compile the presets' kernels ahead of time; kernels/native/CMakeLists.txt makes libdeeplight_kernels of it.

    python -m deeplight.engine.network.kernel_library --out DIR [--archs 80,90] [--presets tiny,base]
                                                      [--dtypes fp16,bf16,fp32] [--jobs N]

writes kernels.bin and kernels.inc. Not under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import launch as launching
from deeplight.kernels.compile import ARCHS, build
from deeplight.kernels.variants import DTYPES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplight.engine.network.kernel_library", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True)
    for name, known in (
        ("archs", list(map(str, ARCHS))),
        ("presets", list(PRESETS)),
        ("dtypes", list(DTYPES)),
    ):
        parser.add_argument(f"--{name}", type=_listed(known), default=known, help=f"of {','.join(known)}")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (by default all cores)"
    )
    options = parser.parse_args(argv)
    if not launching.TRITON:
        parser.error("Triton is not installed")
    if launching.interpreting():
        parser.error("the interpreter is on: unset TRITON_INTERPRET")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")
    return options


def _listed(known: list[str]) -> Callable[[str], list[str]]:
    """Parser of names between commas or semicolons, all of them known."""

    def parsed(text: str) -> list[str]:
        names = re.split("[,;]", text)
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parsed


def main(argv: list[str] | None = None) -> None:
    """Command line of the module."""
    options: Any = parse(argv)
    networks = [PRESETS[name] for name in options.presets]
    count = build(options.out, list(map(int, options.archs)), networks, options.dtypes, options.jobs)
    print(f"{count} cubins in {options.out / 'kernels.bin'}")


if __name__ == "__main__":
    main()
