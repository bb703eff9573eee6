"""python -m bench.peers: one job with DeepLight and with tools that a user might choose instead, as a table."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import machine_facts
from bench.peers.job import WHOLE, PeerJob, difference, interpreter, make_job, run_tool
from bench.results import peer_table

OUT = Path(__file__).parent.parent / "out"


def compared(
    job: PeerJob, folder: Path, laps: int, checkpoint: Path | None, tools: list[str]
) -> list[dict[str, Any]]:
    """A row for each tool with medians over the laps, in which the tools take turns."""
    home = make_job(job, folder / "job", OUT, checkpoint)
    halo = json.loads((home / "job.json").read_text())["halo"]
    present = [tool for tool in tools if interpreter(tool)]
    took: dict[str, list[dict[str, Any]]] = {tool: [] for tool in present}
    for _ in range(laps):
        for tool in present:
            took[tool].append(run_tool(tool, home, folder / f"{tool.replace(' ', '-')}.tif"))
            print(f"{tool}: {took[tool][-1]['seconds']:.2f} s", flush=True)
    rows = []
    for tool, each in took.items():
        row = {
            name: statistics.median(e[name] for e in each)
            for name in ("seconds", "cpu_s", "peak_memory_bytes")
        }
        whole = folder / f"{WHOLE.replace(' ', '-')}.tif"
        far = difference(folder / f"{tool.replace(' ', '-')}.tif", whole, halo) if WHOLE in took else None
        rows.append({"tool": tool, **row, "difference": far, "versions": each[0]["versions"]})
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="run of deeplight-train; else seeded random weights")
    parser.add_argument("--size", type=int, default=PeerJob.size, help="LR pixels of the scene's side")
    parser.add_argument(
        "--core", type=int, default=PeerJob.core, help="LR pixels of a tile's side, without halo"
    )
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--tools", help="names, separated by commas")
    parser.add_argument("--folder", type=Path, help="for files; kept")
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args()
    job = PeerJob(given.size, given.core)
    tools = given.tools.split(",") if given.tools else job.tools()
    with tempfile.TemporaryDirectory() as scratch:
        rows = compared(job, given.folder or Path(scratch), given.laps, given.checkpoint, tools)
    if given.out:
        given.out.write_text(json.dumps({"machine": machine_facts(), "job": vars(given) | {"out": None}, "rows": rows},
                                        indent=1, default=str))  # fmt: skip
    print(peer_table(rows))


if __name__ == "__main__":
    main()
