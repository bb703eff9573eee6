"""The report's pictures, as SVG in data URIs so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bench.results import Row, Run, history

BLUE, ORANGE, GREY, GREEN = "#2b6cb0", "#c05621", "#718096", "#2f855a"
COLOURS = (BLUE, ORANGE, GREEN, "#6b46c1", "#b7791f", "#319795", GREY)
_STYLE = {"fontsize": 9}


def throughput(run: Run) -> str:
    """Bars of HR Mpix/s, one for each stage and way of doing it, grouped by stage."""
    rows = [r for r in run.rows if r.rate("hr_mpix_per_s")]
    stages = list(dict.fromkeys(r.stage for r in rows))
    rows.sort(key=lambda r: stages.index(r.stage))
    figure, axes = _figure(8.6, 0.6 + 0.21 * len(rows))
    values = [r.rate("hr_mpix_per_s") or 0.0 for r in rows]
    colours = [COLOURS[stages.index(r.stage) % len(COLOURS)] for r in rows]
    places = range(len(rows))
    axes.barh(places, values, color=colours)
    axes.set_yticks(places, [f"{r.stage}: {r.label}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.5, max(values) * 3)
    for place, value in zip(places, values, strict=True):
        axes.text(value * 1.05, place, f"{value:.3g}", va="center", fontsize=7.5)
    axes.set_xlabel("HR Mpix/s (logarithmic)", **_STYLE)
    return _uri(figure)


def roofline(run: Run) -> str:
    """GFLOP/s against FLOP per byte, under what the machine's memory and arithmetic allow."""
    rows = [r for r in run.rows if r.rate("flop_per_byte") and r.rate("gflop_per_s")]
    figure, axes = _figure(8.2, 4.6)
    peak, copy = run.limits.matmul / 1e9, run.limits.copy / 1e9
    ridge = peak / copy
    low, high = 0.05, max(100.0, 4 * ridge)
    axes.plot([low, ridge, high], [low * copy, peak, peak], color="black", lw=1.2)
    axes.text(high, peak * 1.1, f"matrix product, float32: {peak:.0f} GFLOP/s", ha="right", fontsize=8)
    axes.text(low * 1.1, low * copy * 2.6, f"copy: {copy:.1f} GB/s", fontsize=8, rotation=28)
    for number, stage in enumerate(dict.fromkeys(r.stage for r in rows)):
        own = [r for r in rows if r.stage == stage]
        x, y = [r.rate("flop_per_byte") for r in own], [r.rate("gflop_per_s") for r in own]
        axes.plot(
            x, y, "os^DvPX*"[number % 8], ms=6, color=COLOURS[number % len(COLOURS)], label=stage, alpha=0.8
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte moved (from the table of docs/kernels.md)", **_STYLE)
    axes.set_ylabel("GFLOP/s", **_STYLE)
    axes.legend(fontsize=8, loc="lower right")
    return _uri(figure)


def latency(run: Run) -> str:
    """Milliseconds of a call: left against the tile's side at batch 1, right against the batch of the smallest tile."""
    rows = [r for r in run.rows if r.stage == "model"]
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    smallest = min((r.tile for r in rows), default=0)
    for number, variant in enumerate(dict.fromkeys(r.variant for r in rows)):
        colour = COLOURS[number % len(COLOURS)]
        own = [r for r in rows if r.variant == variant]
        _line(left, [(r.tile, r.seconds) for r in own if r.batch == 1], colour, variant)
        _line(right, [(r.batch, r.seconds) for r in own if r.tile == smallest], colour, variant)
    left.set_xlabel("tile, LR pixels a side (halo included), batch 1", **_STYLE)
    right.set_xlabel(f"batch of {smallest}² tiles", **_STYLE)
    for axes in (left, right):
        axes.set_ylabel("ms a call", **_STYLE)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return _uri(figure)


def memory(run: Run) -> str:
    """Peak memory of the engine against the scene's size, and of the tools at the size of their job."""
    figure, axes = _figure(8.2, 3.6)
    places = [(m["scene_hr_mpix"], m["peak_memory_bytes"] / 1e6) for m in run.memory]
    if places:
        axes.plot(
            *zip(*places, strict=True),
            "o-",
            color=BLUE,
            label="engine in tiles of 128, model of next to no memory",
        )
    for number, peer in enumerate(run.peers):
        size = (8 * peer["size"]) ** 2 / 1e6
        marker, colour = "s^DvPX*"[number % 7], COLOURS[(number + 1) % len(COLOURS)]
        axes.plot(size, peer["peak_memory_bytes"] / 1e6, marker, color=colour, label=peer["tool"])
    axes.set_xscale("log")
    sizes = sorted({round(m["scene_hr_mpix"], 1) for m in run.memory})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("scene, HR Mpix (logarithmic)", **_STYLE)
    axes.set_ylabel("peak memory, MB", **_STYLE)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _uri(figure)


def peers(run: Run) -> str:
    """Wall time and peak memory of the tools side by side."""
    figure = Figure(figsize=(8.6, 0.9 + 0.3 * len(run.peers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [p["tool"] for p in run.peers]
    colours = [BLUE if name.startswith("deeplight") else GREY for name in names]
    for axes, values, label in (
        (left, [p["seconds"] for p in run.peers], "wall, s"),
        (right, [p["peak_memory_bytes"] / 1e6 for p in run.peers], "peak memory, MB"),
    ):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values], fontsize=8, padding=2)
        axes.margins(x=0.15)
        axes.set_xlabel(label, **_STYLE)
        axes.tick_params(labelsize=8)
    left.invert_yaxis()
    return _uri(figure)


def timeline(runs: Sequence[Run]) -> str:
    """Rates of the stages over the stored runs of the latest run's machine, each relative to its first."""
    mine = [run for run, _ in history(runs) if run.machine_key == max(runs, key=lambda r: r.date).machine_key]
    figure, axes = _figure(8.6, 3.8)
    latest = [
        row
        for row in mine[-1].rows
        if row.stage in ("decode", "align", "compress", "assemble", "engine", "model")
    ]
    for number, row in enumerate(_one_a_stage(latest)):
        found = [
            (i, other.seconds) for i, run in enumerate(mine) for other in run.rows if other.key == row.key
        ]
        first = found[0][1]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            [i for i, _ in found],
            [first / s for _, s in found],
            "o-",
            color=colour,
            label=f"{row.stage}: {row.label}",
        )
    controls = [(i, run.control["median"]) for i, run in enumerate(mine) if run.control]
    if controls:
        base = controls[0][1]
        axes.plot([i for i, _ in controls], [base / s for _, s in controls], "k--", lw=1, label="control")
    axes.set_xticks(range(len(mine)), [run.date[:16].replace("T", "\n") for run in mine], fontsize=7.5)
    axes.set_ylabel("rate over that of the first run", **_STYLE)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _uri(figure)


def _one_a_stage(rows: Sequence[Row]) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.stage, row)
    return list(found.values())


def _line(axes: Axes, points: list[tuple[int, float]], colour: str, label: str) -> None:
    points.sort()
    if points:
        axes.plot([x for x, _ in points], [1e3 * s for _, s in points], "o-", color=colour, label=label)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _uri(figure: Figure) -> str:
    """data:image/svg+xml;base64,…"""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
