"""Compiles kernels and prints a report of each as a line of JSON. Run in a process of its own, without the interpreter:

python -m tests.kernels.aot_report ARCHS PRESETS DTYPE all|one|KERNEL
"""

from __future__ import annotations

import json
import sys

from deeplight.engine.network.config import PRESETS
from deeplight.kernels.launch import Launch
from deeplight.kernels.variants import DTYPES, variants
from tests.kernels.compiling import compile_launch, instructions, loops


def chosen(preset: str) -> list[Launch]:
    """All variants, those of one kernel, or one of each kernel: that at ×8, and for `align` that of 8 bands."""
    every = list(variants(PRESETS[preset], DTYPES[sys.argv[3]]))
    if sys.argv[4] == "all":
        return every
    if sys.argv[4] != "one":
        return [v for v in every if v.kernel == sys.argv[4]]
    last = {v.kernel: v for v in every}
    last["align"] = next(v for v in every if v.kernel == "align")
    return list(last.values())


def main() -> None:
    archs = [int(a) for a in sys.argv[1].split(",")]
    for preset in sys.argv[2].split(","):
        for launch in chosen(preset):
            for arch in archs:
                c = compile_launch(launch, arch)
                row = {
                    "kernel": launch.kernel,
                    "constants": launch.constants,
                    "arch": arch,
                    "registers": c.registers,
                    "stack": c.stack,
                    "local": c.local,
                    "shared": c.shared,
                    "widths": c.widths,
                    "block": launch.config.block,
                    "threads": 32 * launch.config.warps,
                    "instructions": instructions(c.cubin),
                    "loops": loops(c.cubin),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
