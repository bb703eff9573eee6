"""Measures one GPU in five minutes, or --seconds: stages that run in processes of their own, then a table of what they
found.

python -m bench.gpu --out DIR [--only STAGE,…] [--seconds S] [--device cuda|cpu] [--side N] [--strip HxW]
                    [--presets tiny,base] [--dtypes fp16,bf16,fp32] [--default-configs] [--max-autotune]

Each stage writes DIR/STAGE.json as it goes; a stage that fails or takes too long does not stop the next. The table is
DIR/table.md. Exit status: 0, 1 where a stage failed, 2 where there is nothing to measure on. What was left out for want
of packages or of time does not change it: the last lines and the table say so.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from bench.gpu.engine import usual_strip
from bench.gpu.stage import SCRATCH, StageSettings
from bench.gpu.table import load, table
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.network.compiled import use_cache_folder
from deeplight.engine.network.config import PRESETS
from deeplight.kernels.variants import DTYPES

SECONDS = {
    # the start of CUDA and two copies
    "facts": 12,
    # 41 programs of about 2 s of a core each, on all of 16, for the operations and the launches that decide; then 274
    # more, most of them configurations to choose from, as far as there is time
    "kernels": 45,
    # four networks are compiled for what targets ask for, in order of importance; what there is no time for is left out
    "network": 73,
    # the first process: imports, Inductor, and 22 s of Triton on one core (H200) where the kernels stage has not run;
    # then those that find all in the caches, with about 10 s of start and 537 HR Mpix each on 16 cores; writing both
    # scenes, 22 s on 2 virtual cores; the device path, whose programs are in the caches, too; what remains is left out
    "engine": 115,
    # one command, which took 24 to 40 s on 2 CPUs without a GPU; on one it compares three precisions more, one compiled
    "export": 55,
}
"""Stage → when it is ended; 300 in all. With --seconds each has the same share of those. What a stage leaves over goes
to those after it."""
PATIENCE = 8
"""How many times longer a stage may take with --max-autotune, where --seconds does not say."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse ends with status 2 and says what is accepted."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' files")
    parser.add_argument("--only", default=",".join(SECONDS), help=f"of {', '.join(SECONDS)}")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the stages out"
    )
    parser.add_argument(
        "--side", type=int, default=StageSettings.side, help="LR pixels of a tile, a multiple of 8"
    )
    parser.add_argument(
        "--strip",
        help="LR pixels of the engine's scenes; else eight tiles of 256 for each CPU, as the disk allows",
    )
    parser.add_argument("--seconds", type=float, help="for all stages named, in place of their 300 in all")
    parser.add_argument("--presets", default=",".join(StageSettings.presets))
    parser.add_argument("--dtypes", default=",".join(StageSettings.dtypes), help="the first is measured most")
    parser.add_argument(
        "--default-configs", action="store_true", help="only the kernels' usual configurations"
    )
    parser.add_argument(
        "--max-autotune", action="store_true", help="torch.compile's slow search; far over 5 min"
    )
    # in this process, which was started at that time.time()
    parser.add_argument("--here", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    for name, known in (("only", SECONDS), ("presets", PRESETS), ("dtypes", DTYPES)):
        chosen = tuple(getattr(given, name).split(","))
        for one in chosen:
            if one not in known:
                parser.error(f"--{name}: {one!r} is none of {', '.join(known)}")
        setattr(given, name, chosen)
    if given.side < 8 or given.side % 8:
        parser.error(f"--side must be a multiple of 8, not {given.side}")
    if given.seconds is not None and not 0 < given.seconds < math.inf:
        parser.error(f"--seconds must be a positive number, not {given.seconds}")
    sides = (given.strip or "8x8").split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 8 for side in sides):
        parser.error(f"--strip must be rows and columns such as 1024x1536, not {given.strip!r}")
    given.strip = tuple(map(int, sides)) if given.strip else None
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"PyTorch {torch.__version__} finds no CUDA GPU on this machine, so there is nothing to measure"
        )
    return given


def settings_of(given: argparse.Namespace, stage: str) -> StageSettings:
    """The settings of a stage."""
    strip = given.strip or usual_strip(available_cpus(), shutil.disk_usage(given.out).free)
    return StageSettings(
        out=given.out,
        device=given.device,
        side=given.side,
        strip=strip,
        seconds=_limit(given, stage),
        presets=given.presets,
        dtypes=given.dtypes,
        configs=not given.default_configs,
        max_autotune=given.max_autotune,
        started=time.monotonic() - (time.time() - given.here),
    )


def _limit(given: argparse.Namespace, stage: str) -> float:
    """A stage's share of the seconds for all that run, if those before it take all of theirs."""
    if given.seconds is None:
        return SECONDS[stage] * (PATIENCE if given.max_autotune else 1)
    return SECONDS[stage] * float(given.seconds) / sum(SECONDS[name] for name in given.only)


def run_stage(command: list[str], seconds: float) -> str:
    """What went wrong with a stage's process, in a few words; "" where nothing did.

    A group of its own: what it started must not go on using the device when the stage is ended.
    """
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
    return f"exit status {status}" if status else ""


def failed_rows(out: Path, stage: str) -> str:
    """How many of a stage's measurements failed, in a few words; "" where none did."""
    count = sum(isinstance(row.get("error"), str) or bool(row.get("exit")) for row in load(out, stage))
    return f"{count} measurements failed" if count else ""


def lacking(out: Path, stage: str) -> str:
    """The packages for want of which a stage was left out, by comma; "" where it ran."""
    return ", ".join(name for row in load(out, stage) for name in row.get("lacks", ()))


def main(argv: list[str] | None = None) -> int:
    """Run the stages; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    given = parse(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.here is not None:
        use_cache_folder()  # one cache for all: what the kernels stage compiles on all cores, the next ones find
        for stage in given.only:
            import_module(f"bench.gpu.{stage}").measure(settings_of(given, stage))
        return 0
    failed, lacks = [], []
    shutil.rmtree(given.out / SCRATCH, ignore_errors=True)  # of a run that was killed
    try:
        begin, whole = time.monotonic(), sum(_limit(given, stage) for stage in given.only)
        for number, stage in enumerate(given.only):
            print(f"== {stage}", flush=True)
            # an older run's must not stand for a failed one
            (given.out / f"{stage}.json").unlink(missing_ok=True)
            left = whole - (time.monotonic() - begin)
            share = SECONDS[stage] / sum(SECONDS[other] for other in given.only[number:])
            limit = max(1.0, round(left * share, 1))
            own = ["--only", stage, "--seconds", str(limit), "--here", str(time.time())]
            problem = run_stage([sys.executable, "-m", "bench.gpu", *argv, *own], limit)
            problem = problem or failed_rows(given.out, stage)
            if problem:
                failed.append(f"{stage} ({problem})")
            if missing := lacking(given.out, stage):
                lacks.append(f"{stage} ({missing})")
    finally:
        shutil.rmtree(given.out / SCRATCH, ignore_errors=True)
    text = table(given.out, failed, lacks)
    (given.out / "table.md").write_text(text)
    print(text)
    if lacks:
        print(f"NOT MEASURED for want of packages: {', '.join(lacks)}. Give their wheels with --wheels DIR.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
