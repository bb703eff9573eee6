"""The stages' files as one page of Markdown."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.network import WAYS
from deeplight.engine.core.markdown import markdown_table

Row = dict[str, Any]
RATIOS = {
    "stream_over_decoding_of_all_threads": "streaming over decoding alone",
    "stream_over_decoding_of_each_block_once": "over decoding each block once",
    "stream_with_halo_over_alone": "with halo over the device alone",
}
"""Of the engine's streaming, and their heads."""
LONGEST = 12
"""Kernels of a profile that are shown."""


def table(folder: Path, failed: Sequence[str] = (), lacks: Sequence[str] = ()) -> str:
    """What the stages in a folder found; stages without a file are left out. failed, and lacks, those left out for want
    of packages: to be named at the top."""
    parts = [f"Failed: {', '.join(failed)}."] if failed else []
    parts += [f"Left out for want of packages: {', '.join(lacks)}."] if lacks else []
    copy = next((r["tb_per_s"] for r in load(folder, "facts") if _is(r, "elementwise copy", "tb_per_s")), 0.0)
    writers = {
        "facts": _facts,
        "kernels": lambda rows: _kernels(rows, copy),
        "network": _network,
        "export": _export,
        "engine": _engine,
    }
    for stage, write in writers.items():
        rows = load(folder, stage)
        if rows:
            lines = [f"## {stage.replace('_', ' ').capitalize()}", "", *write(rows)]
            notes = [f"- left out: {r['left_out']}" for r in rows if "left_out" in r]
            notes += [f"- {_name(r)}: {r['error']}" for r in rows if isinstance(r.get("error"), str)]
            parts.append("\n".join([*lines, *([""] if notes else []), *notes]))
    return "\n\n".join(parts) + "\n"


def load(folder: Path, stage: str) -> list[Row]:
    """The rows of a stage; none where it wrote no file."""
    file = folder / f"{stage}.json"
    return json.loads(file.read_text()) if file.is_file() else []


def _is(row: Row, what: str, *keys: str) -> bool:
    return row.get("what") == what and all(key in row for key in keys)


def _name(row: Row) -> str:
    keys = ("what", "op", "way", "preset", "dtype", "scene", "caches")
    return " ".join(str(row[key]) for key in keys if key in row)


def _grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return markdown_table(head, [list(map(str, row)) for row in rows]).splitlines()


def _facts(rows: list[Row]) -> list[str]:
    machine = next((r for r in rows if r.get("what") == "machine"), {})
    said = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "what")
    return [f"{said}.", "", *(f"- {r['what']}: {r['tb_per_s']:.3f} TB/s" for r in rows if "tb_per_s" in r)]


def _kernels(rows: list[Row], copy: float) -> list[str]:
    """A line for each launch: its fastest configuration of those that are right, and how many are not."""
    launches: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        if r.get("what") == "launch":
            launches[r["preset"], r["dtype"], r["kernel"], r["launch"]].append(r)
    lines: list[list[object]] = []
    for (preset, dtype, kernel, _), tried in launches.items():
        right = [r for r in tried if "ms" in r]
        wrong = f"{len(tried) - len(right)} of {len(tried)}"
        best = min(right, key=lambda r: r["ms"], default=None)
        if best is None:
            lines.append([kernel, preset, dtype, "none", "", "", wrong])
            continue
        config = f"{best['block']}, {best['warps']}, {best['stages']}"
        lines.append([kernel, preset, dtype, config, f"{best['ms']:.4f}", _of_copy(best, "ms", copy), wrong])
    found = _grid(("launch", "preset", "type", "block, warps, stages", "ms", "of copy", "not right"), lines)
    ways = ("reference_ms", "compiled_ms", "kernel_ms")
    times = [
        [
            *(r[key] for key in ("op", "preset", "dtype")),
            *(f"{r[way]:.4f}" if way in r else "" for way in ways),
            _of_copy(r, "kernel_ms", copy),
        ]
        for r in rows
        if _is(r, "operation", "kernel_ms")
    ]
    head = ("operation", "preset", "type", "reference, ms", "compiled", "kernel", "of copy")
    return [*_grid(head, times), "", *found]


def _of_copy(row: Row, time: str, copy: float) -> str:
    """The share of the copy's bandwidth at which a row's bytes are moved."""
    return f"{row['bytes'] / row[time] * 1e-7 / copy:.0f} %" if copy else ""


def _network(rows: list[Row]) -> list[str]:
    """ms and HR Mpix/s of each way; what was captured; then the longest kernels of each profile."""
    cells: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for r in rows:
        if _is(r, "network", "ms"):
            cells[r["preset"], r["dtype"]][r["way"]] = r
    lines = [
        [
            *key,
            *(f"{way[w]['ms']:.2f} ({way[w]['hr_mpix_per_s']:.0f})" if w in way else "" for w in WAYS),
            f"{way['compiled']['ms'] / way['both']['ms']:.2f}" if {"both", "compiled"} <= way.keys() else "",
        ]
        for key, way in cells.items()
    ]
    head = ("preset", "type", *(f"{way}, ms (HR Mpix/s)" for way in WAYS), "compiled over both")
    found = _grid(head, lines)
    captured = _numbers([r for r in rows if _is(r, "capture")])
    found += ["", *captured] if captured else []
    for r in rows:
        if _is(r, "profile", "kernels"):
            found += ["", f"{r['preset']} {r['dtype']}, {r['total_ms']:.2f} ms on the device:", ""]
            longest = [
                [f"{ms:.3f}", f"{calls:.0f}", f"`{name}`"] for ms, calls, name in r["kernels"][:LONGEST]
            ]
            found += _grid(("ms", "calls", "kernel"), longest)
    return found


def _export(rows: list[Row]) -> list[str]:
    """The command; the comparison that came nearest to its limit; what was not compared."""
    lines = [f"- {r['what']}: {r['seconds']} s, exit status {r['exit']}" for r in rows if "exit" in r]
    for r in rows:
        if _is(r, "parity", "found"):
            compared = r["found"]["rows"]
            worst = max(compared, key=_share_of_limit)
            lines.append(
                f"- parity: {len(compared)} comparisons, nearest to its limit {worst['precision']} on "
                f"{worst['backend']} in {worst['case']!r}: relative L2 error {worst['relative_l2']:.1e} of at most "
                f"{worst['tolerance']:.1e}"
            )
            lines += [f"- {note}" for note in r["found"]["not_run"]]
    return lines


def _share_of_limit(compared: Row) -> tuple[bool, float]:
    """A NaN is worse than any number."""
    return math.isnan(compared["relative_l2"]), compared["relative_l2"] / compared["tolerance"]


def _engine(rows: list[Row]) -> list[str]:
    """The rates of each run and what they are compared with; then all numbers."""
    found = {r["scene"]: r for r in rows if _is(r, "ratio", "scene")}
    lines = []
    for r in rows:
        if _is(r, "deeplight-infer", "hr_mpix_per_s_of_stream"):
            ratios = found.get(r["scene"], {}) if r["caches"] == "filled caches" else {}
            rates = (r[f"hr_mpix_per_s_of_{part}"] for part in ("stream", "process"))
            lines.append([r["scene"], r["caches"], *rates, *(ratios.get(name, "") for name in RATIOS)])
    head = ("scene", "process with", "streaming, HR Mpix/s", "from start to end", *RATIOS.values())
    return [*(_grid(head, lines) if lines else []), "", *_numbers(rows)]


def _numbers(rows: list[Row]) -> list[str]:
    """One line for each row, with its numbers and those of its parts."""
    lines = []
    for r in rows:
        numbers = [f"{key} {n:.4g}" for key, n in _parts(r).items()]
        if numbers:
            lines.append(f"- {_name(r)}: {', '.join(numbers)}")
    return lines


def _parts(row: Row) -> dict[str, float]:
    """The numbers of a row, those of its parts after the row's own."""
    own = {key: n for key, n in row.items() if isinstance(n, float | int)}
    for key, of in row.items():
        if isinstance(of, dict):
            own |= {f"{part} of {key}": n for part, n in _parts(of).items()}
    return own
