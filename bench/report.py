"""python -m bench.report turns a run of `make bench` into a page of Markdown.

Run it from the root of the repository. Without a file it takes the newest run in bench/out and compares its rates with
those of the previous run there on the same machine. `--readme README.md` also writes the summary between the marks in
that file, and keeps its data in bench/results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import asked, tables
from bench.results import BenchRun, load
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.terminal import run_cli

HOME = Path(__file__).parent
OUT = HOME / "out"
STORED = HOME / "results"
"""The folder of results that are committed: those of GPUs and those in README."""
SUMMARY = STORED / "summary.json"
"""Data of README's table, committed with it."""
BEGIN = "<!-- bench:begin, written by python -m bench.report --readme README.md -->"
END = "<!-- bench:end -->"
BUSY_LOAD = 0.75
"""From this load per CPU on, at the start of the benchmarks, other work is said to have held them up."""
DRIFT = 1.3
"""From this ratio of the slowest control to the median on, a run is said to have been disturbed."""
NOISE = (
    "Laps are interleaved: everything is measured once, then everything again, and the median over the laps counts, so "
    "that a busy minute of the machine meets all alike. A control (a checksum of 64 MB on one thread) runs before each "
    "benchmark; {control}. Trust ratios before rates."
)
PEERS_NOTE = (
    "Each tool is a process of its own on the same GeoTIFFs with the same weights and threads; seconds from the first "
    "read to the closed file, without imports. Windows of {core} LR pixels with the network's halo for all but “auto” "
    "and whole-image. The difference is from whole-image PyTorch, away from the scene's edge by the halo. "
    "MONAI and terratorch hold all layers in memory as one HR image."
)
LIMIT_NOTE = (
    "“Of the limit”: share of what this machine did at best in the same run: a large matrix product for the model, a "
    "copy for what moves pixels, plain zstandard for decoding; with as many threads as the stage uses. Spread: slowest "
    "minus fastest lap, over the median. Where the control's rate changed too, the machine did."
)


def noise(run: BenchRun) -> str:
    """A paragraph about how noise is handled, and how much of it there was."""
    if not run.control:
        return NOISE.format(control="it was not measured in this run")
    c = run.control
    took = f"it took {1e3 * c['median']:.1f} ms, {1e3 * c['least']:.1f} at least and {1e3 * c['most']:.1f} at most"
    return NOISE.format(control=took)


def loaded(run: BenchRun) -> bool:
    """Return whether the machine did other work when the benchmarks began."""
    return float(run.machine["load"]) >= BUSY_LOAD * int(run.machine["cpus"])


def busy(run: BenchRun) -> str:
    """Return a warning where the machine did other work, else ""."""
    drifted = bool(run.control) and run.control["most"] > DRIFT * run.control["median"]
    if loaded(run):
        load, cpus = run.machine["load"], run.machine["cpus"]
        return (
            f"The machine did other work meanwhile (load {load:.1f} on {cpus} CPUs before the benchmarks): rates are "
            "too low, and ratios less certain than the spread says."
        )
    return (
        "The control moved during the run: ratios are less certain than the spread says." if drifted else ""
    )


def peers_note(run: BenchRun) -> str:
    """A paragraph about the comparison with other tools; "" where it was not made."""
    return PEERS_NOTE.format(core=f"{run.peers[0]['core']:g}") if run.peers else ""


def markdown(run: BenchRun, before: BenchRun | None) -> str:
    """Return the page. before: the previous run on the same machine."""
    parts = [
        f"# DeepLight throughput, {run.date[:10]}",
        f"{run.machine_key}; laps: {run.laps}.",
        busy(run),
        noise(run),
    ]
    parts += ["## How fast", asked.table(run, STORED).markdown(), asked.NOTE]
    parts += ["## Stages", tables.summary(run).markdown(), "## Targets", target_table(run)]
    if run.peers:
        parts += ["## Other tools, same job", tables.peers(run).markdown(), peers_note(run)]
    parts += ["## All stages", tables.stages(run, before).markdown(), LIMIT_NOTE]
    parts += ["## Machine", tables.machine(run).markdown()]
    if run.skipped:
        parts += ["## Left out", *(f"- {name}: {why}" for name, why in run.skipped.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def target_table(run: BenchRun) -> str:
    """Return a table of the targets and whether they were reached."""
    words = {True: "reached", False: "not reached", None: "not measured"}
    rows = [[t.name, t.wanted, t.measured, words[t.met]] for t in tables.targets(run)]
    return tables.Table(("target", "wanted", "measured", ""), rows).markdown()


def readme_data(run: BenchRun) -> dict[str, Any]:
    """Return the numbers in the table of README."""
    return {
        "date": run.date[:10],
        "machine": run.machine_key,
        "busy": busy(run),
        "asked": asdict(asked.table(run, STORED)),
        "summary": asdict(tables.summary(run)),
        "peers": asdict(tables.peers(run)) if run.peers else None,
    }


def readme_section(data: dict[str, Any] | None) -> str:
    """The section of README with its marks, from `readme_data`; from None if nothing was measured yet."""
    if data is None:
        return "\n".join([BEGIN, "Not yet measured on a quiet machine.", END])
    lines = [BEGIN, f"Measured on {data['date']} ({data['machine']})."]
    if data["busy"]:
        lines[-1] += f" {data['busy']}"
    if "asked" in data:  # older stored runs do not have it
        lines += ["", tables.Table(**data["asked"]).markdown(), "", asked.NOTE]
    lines += ["", tables.Table(**data["summary"]).markdown()]
    if data["peers"]:
        lines += ["", "The same job through other tools:", "", tables.Table(**data["peers"]).markdown()]
    return "\n".join([*lines, END])


def with_section(text: str, section: str) -> str:
    """Return `text` with a new section between its marks. Raises InputError where it has no marks."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"the file has no marks: put the lines {BEGIN} and {END} where the table shall be")
    return pattern.sub(lambda _: section, text)


def stored_runs(folder: Path) -> list[Path]:
    """The results of `make bench` in a folder, the oldest first. Their names are dates."""
    return sorted(folder.glob("bench-*.json"))


def run_before(stored: Sequence[Path], path: Path, run: BenchRun) -> BenchRun | None:
    """The newest stored run on the same machine that is older than `run`, whose file is `path`. Files that are not runs
    are named and left out."""
    found = []
    for other in stored:
        if other.resolve() == path.resolve():
            continue
        try:
            found.append(load(other))
        except InputError as error:
            print(f"left out of the comparison: {error}", file=sys.stderr)
    earlier = [r for r in found if r.date < run.date and r.machine_key == run.machine_key]
    return max(earlier, key=lambda r: r.date, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the file with the marks") from error


def program(argv: Sequence[str] | None = None) -> None:
    """Read the command line and write the files. Raises InputError where there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="JSON of a run; else the newest in bench/out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of report.md [bench/out]")
    parser.add_argument("--history", type=Path, default=OUT, help="folder of stored runs [bench/out]")
    parser.add_argument("--readme", type=Path, help="file whose table shall be written anew")
    parser.add_argument("--busy", action="store_true", help="write it even from a run on a busy machine")
    given = parser.parse_args(argv)
    stored = stored_runs(given.history)
    if given.file is None and not stored:
        raise InputError(f"there is no run in {given.history}: make one with `make bench`, or name its JSON")
    path = given.file or stored[-1]
    run = load(path)
    if given.readme and not given.busy and loaded(run):
        raise InputError(
            f"{path} was measured while the machine did other work (load {run.machine['load']:.1f} before it), so its "
            "rates are too low for README: run `make bench` on a quiet machine, or give --busy"
        )
    page = with_section(_text(given.readme), readme_section(readme_data(run))) if given.readme else ""
    given.out.mkdir(parents=True, exist_ok=True)
    write_file(given.out / "report.md", [markdown(run, run_before(stored, path, run)).encode()])
    print(given.out / "report.md")
    if given.readme:
        SUMMARY.parent.mkdir(exist_ok=True)
        data = json.dumps(readme_data(run), indent=1, ensure_ascii=False) + "\n"
        write_file(SUMMARY, [data.encode()])
        write_file(given.readme, [page.encode()])
        print(given.readme)


if __name__ == "__main__":
    sys.exit(run_cli(program))
