"""A stored run (JSON of pytest-benchmark) as rows with medians over the laps, one row for each measurement."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import Limits
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.markdown import markdown_table

Key = tuple[str, str, int, int]
"""Stage, variant, batch, tile."""


@dataclass(frozen=True)
class Row:
    """seconds: median over the laps of each lap's median call. spread: (slowest − fastest lap) / median. facts: what
    else the benchmark stored: the median over the laps for numbers, the last value for all else."""

    stage: str
    variant: str
    seconds: float
    batch: int = 1
    tile: int = 0
    spread: float = 0.0
    threads: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What identifies the row in another run."""
        return self.stage, self.variant, self.batch, self.tile

    @property
    def label(self) -> str:
        """Return the name of the row in tables and plots."""
        shape = f" {self.batch}×{self.tile}²" if self.tile and self.stage == "model" else ""
        return f"{self.variant}{shape}"

    def rate(self, name: str) -> float | None:
        """Return a rate of `rates.rates`; None where the benchmark does not have it."""
        value = self.facts.get(name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class BenchRun:
    """One run of the benchmarks. date: ISO, UTC. peers: rows of the group of tools. memory: of three scenes."""

    date: str
    machine: Mapping[str, Any]
    limits: Limits
    control: Mapping[str, float]
    laps: int
    rows: Sequence[Row]
    peers: Sequence[Mapping[str, Any]] = ()
    memory: Sequence[Mapping[str, Any]] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def find(self, stage: str, variant: str = "", **shape: int) -> Row | None:
        """The first row of a stage whose variant starts with a text. shape: batch and tile."""
        for row in self.rows:
            named = row.stage == stage and row.variant.startswith(variant)
            if named and all(getattr(row, name) == value for name, value in shape.items()):
                return row
        return None

    @property
    def machine_key(self) -> str:
        """The key of the machine: runs with the same key may be compared."""
        return f"{self.machine.get('cpu')}, {self.machine.get('cpus')} CPUs, GPU {self.machine.get('gpu')}"


def load(path: Path) -> BenchRun:
    """Read a run from pytest-benchmark's JSON. Raises InputError where the file is not one of `make bench`."""
    try:
        d = json.loads(path.read_text())
        own, machine = d["deeplight"], d["machine_info"]["deeplight"]
        entries = d["benchmarks"]
        _check(own, machine, entries)
        return BenchRun(
            date=d["datetime"][:19],
            machine=machine,
            limits=Limits(**own["limits"]),
            control=own["control_s"],
            laps=own["laps"],
            rows=_rows(e for e in entries if "work" in e["extra_info"]),
            peers=_peers(e["extra_info"]["peer"] for e in entries if "peer" in e["extra_info"]),
            memory=sorted(
                (e["extra_info"] for e in entries if "scene_hr_mpix" in e["extra_info"]),
                key=lambda m: m["scene_hr_mpix"],
            ),
            skipped=own["skipped"],
        )
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): give the JSON of `make bench`") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path} is not a result of `make bench` ({type(e).__name__}: {e}); give its JSON"
        ) from e


def _check(own: Mapping[str, Any], machine: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise an error, of which `load` makes a sentence, where numbers are missing that the report needs."""
    needed = [machine["load"], machine["cpus"]]
    if own["control_s"]:
        needed += [own["control_s"][name] for name in ("median", "least", "most")]
    for value in needed:
        float(value)
    if not any(entry["extra_info"] for entry in entries):
        raise ValueError("it has no benchmarks")


def _rows(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    laps: dict[Key, list[Mapping[str, Any]]] = {}
    for entry in entries:
        work = entry["extra_info"]["work"]
        laps.setdefault((work["stage"], work["variant"], work["batch"], work["tile"]), []).append(entry)
    rows = []
    for (stage, variant, batch, tile), each in laps.items():
        times = [e["stats"]["median"] for e in each]
        middle = statistics.median(times)
        facts = _merged([e["extra_info"] for e in each])
        threads = each[0]["extra_info"]["work"]["threads"]
        spread = (max(times) - min(times)) / middle
        rows.append(Row(stage, variant, middle, batch, tile, spread, threads, facts))
    return rows


def _merged(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of numbers; of anything else the last value."""
    merged = dict(each[-1])
    for name, value in each[-1].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            merged[name] = statistics.median(e[name] for e in each if name in e)
    return merged


def _peers(each: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    laps: dict[str, list[Mapping[str, Any]]] = {}
    for peer in each:
        laps.setdefault(peer["tool"], []).append(peer)
    return [_merged(found) for found in laps.values()]


def peer_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of a tool: name, wall time, its ratio to ours, CPU time, peak memory, difference."""
    ours = next((r["seconds"] for r in rows if r["tool"].startswith("deeplight-infer")), None)
    cells = []
    for row in rows:
        far = row.get("difference")
        over = f"{row['seconds'] / ours:.2f}" if ours else "–"
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f}"
        wall, cpu = f"{row['seconds']:.2f}", f"{row['cpu_s']:.2f}"
        cells.append([row["tool"], wall, over, cpu, memory, "–" if far is None else f"{far:.1e}"])
    return cells


PEER_HEADER = ("tool", "wall, s", "over ours", "CPU, s", "peak, MB", "difference / range")


def peer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of all tools. "over ours": ratio of wall time to that of deeplight-infer with the tile of the others."""
    return markdown_table(PEER_HEADER, peer_cells(rows))
