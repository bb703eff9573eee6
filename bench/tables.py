"""The report's tables, the same for the page, the Markdown summary and README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.budget import (
    ASSEMBLE,
    MACHINES,
    Machine,
    gpu_model_s,
    measured_costs,
    nation_tiles,
    on,
    predict,
    simulate,
)
from bench.peers.job import DIFFERENCE
from bench.peers.tool import OURS
from bench.results import PEER_HEADER, Row, Run, history, peer_cells
from deeplight.engine.core.markdown import markdown_table

MESH_OVER_WARPED_VRT, WALL_OVER_BARE, MEMORY_RATIO = 3.0, 1.15, 1.1
"""Numbers to reach: mesh against WarpedVRT, engine over bare calls, memory of a scene four times as large."""
NATION_MPIX = 2500


@dataclass(frozen=True)
class Table:
    """header and rows of texts; the first column is a name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        return markdown_table(self.header, self.rows)


@dataclass(frozen=True)
class Target:
    """met: None where it was not measured."""

    name: str
    wanted: str
    measured: str
    met: bool | None


def number(value: float | None, digits: int = 3) -> str:
    """Some digits, in plain notation; "–" for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def summary(run: Run) -> Table:
    """One row a stage: the way that deeplight-infer takes on this machine."""
    chosen = [
        ("decode DMO (zstd, 7 × uint16)", run.find("decode", "zstd")),
        ("normalise", run.find("normalise")),
        ("align (mesh)", run.find("align")),
        ("model (ONNX Runtime)", _at_largest(run, "onnxruntime")),
        ("model (PyTorch)", _at_largest(run, "torch fp32")),
        ("compress (float32, zstd)", run.find("compress", "float32")),
        ("assemble the COG", run.find("assemble", "float32")),
        ("whole engine, GeoTIFF to COG", run.find("engine")),
        ("training step", run.find("training step")),
    ]
    rows = [
        [
            name,
            number(row.rate("hr_mpix_per_s")),
            number(row.rate("km2_per_s")),
            _share(row),
            str(row.threads),
        ]
        for name, row in chosen
        if row
    ]
    return Table(("stage", "HR Mpix/s", "km²/s", "of the machine's limit", "threads"), rows)


def _at_largest(run: Run, variant: str) -> Row | None:
    rows = [r for r in run.rows if r.stage == "model" and r.variant.startswith(variant) and r.batch == 1]
    return max(rows, key=lambda r: r.tile, default=None)


def _share(row: Row) -> str:
    share = row.rate("limit_fraction")
    return "–" if share is None else f"{100 * share:.0f} %"


def stages(run: Run) -> Table:
    """Everything that was measured."""
    header = ("stage", "how", "ms", "HR Mpix/s", "km²/s", "B/HR px", "GFLOP/s", "of the limit", "spread")
    rows = [
        [
            row.stage,
            row.label,
            number(1e3 * row.seconds),
            number(row.rate("hr_mpix_per_s")),
            number(row.rate("km2_per_s")),
            number(row.rate("bytes_per_hr_px")),
            number(row.rate("gflop_per_s")),
            _share(row),
            f"{100 * row.spread:.0f} %",
        ]
        for row in run.rows
    ]
    return Table(header, rows)


def targets(run: Run) -> list[Target]:
    """The numbers to reach that these benchmarks measure."""
    mesh, vrt, engine = run.find("read", "mesh"), run.find("read", "WarpedVRT"), run.find("engine")
    ratio = vrt.seconds / mesh.seconds if mesh and vrt else None
    bare = engine.rate("wall_over_bare") if engine else None
    sizes = [m["peak_memory_bytes"] for m in run.memory]
    # the smallest scene fills neither a row of packs nor the cache of decoded blocks
    grown = sizes[-1] / sizes[-2] if len(sizes) > 1 else None
    found = [
        _at_least("a tile's DMO through the mesh over WarpedVRT", MESH_OVER_WARPED_VRT, ratio),
        _at_most("engine's wall time over bare model calls", WALL_OVER_BARE, bare),
        _at_most("peak memory of a scene 4 times as large", MEMORY_RATIO, grown),
    ]
    ours = [p for p in run.peers if p["tool"].startswith(OURS)]
    for peer in run.peers:
        if ours and peer["tool"] not in [o["tool"] for o in ours]:
            found += _against(ours, peer)
    found += [
        _at_most(f"{o['tool']}: difference / range", DIFFERENCE, o["difference"], "{:.1e}") for o in ours
    ]
    return found


def _against(ours: Sequence[Mapping[str, Any]], peer: Mapping[str, Any]) -> list[Target]:
    """Faster and smaller than a tool, for each of our settings."""
    found = []
    for own in ours:
        setting = own["tool"].removeprefix(OURS).strip()
        for name, field in (("wall time", "seconds"), ("peak memory", "peak_memory_bytes")):
            share = own[field] / peer[field]
            found.append(_at_most(f"{name} over {peer['tool']} ({setting})", 1.0, share))
    return found


def _at_least(name: str, limit: float, value: float | None) -> Target:
    met = None if value is None else value >= limit
    return Target(name, f"≥ {limit:g}", "–" if value is None else f"{value:.2f}", met)


def _at_most(name: str, limit: float, value: float | None, form: str = "{:.2f}") -> Target:
    met = None if value is None else value <= limit
    return Target(name, f"≤ {limit:g}", "–" if value is None else form.format(value), met)


def budget(run: Run) -> dict[str, Any] | None:
    """Predicted against measured, and other machines; None where a stage was not measured."""
    costs = measured_costs(run)
    if costs is None:
        return None
    cores = int(run.machine["cpus"])
    here = Machine(f"this machine, {cores} cores", cores)
    found = predict(costs, here)
    engine = run.find("engine")
    sentence = (
        f"From the stages' rates this machine should do {found.hr_mpix_per_s:.2f} HR Mpix/s, held up by "
        f"{found.bottleneck}."
    )
    if engine:
        measured = engine.rate("hr_mpix_per_s") or 0.0
        sentence += (
            f" Measured: {measured:.2f} HR Mpix/s ({measured / found.hr_mpix_per_s:.0%} of it), held up by "
            f"{_stage_name(str(engine.facts['bottleneck']))}."
        )
    seconds = [
        [name, f"{1e3 * s:.1f}", f"{100 * s * found.hr_mpix_per_s:.0f} %"]
        for name, s in found.seconds.items()
    ]
    rows = []
    for machine in (here, *MACHINES):
        there = on(costs, machine, cores)
        steady, simulated = predict(there, machine), simulate(there, machine, list(nation_tiles()))
        alone = _duration(NATION_MPIX / steady.hr_mpix_per_s)
        row = [machine.name, number(steady.hr_mpix_per_s), steady.bottleneck, alone]
        rows.append([*row, _duration(simulated.seconds), simulated.bottleneck])
    header = ("machine", "HR Mpix/s", "held up by", "2.5 Gpix, by formula", "nation, simulated", "held up by")
    computed, skipped = simulated.tiles
    note = (
        f"Computed, not measured, from this run's stage rates: cores are taken to scale, {ASSEMBLE} runs alone on "
        f"one. Model on an H200: {gpu_model_s()[1]}. The nation is a grid of 80,000 × 60,000 HR pixels with 2.5 Gpix "
        "of data in an ellipse, simulated with the readers (a quarter of the cores) and writers (two a process) that "
        f"the engine starts; {computed} tiles of 256 LR pixels touch it and are computed whole, {skipped} are skipped."
    )
    return {
        "sentence": sentence,
        "stages": Table(("stage", "ms per HR Mpix", "of the time"), seconds),
        "what_if": Table(header, rows),
        "note": note,
    }


def _stage_name(name: str) -> str:
    """run.json's name of a stage in the budget's words."""
    return {"infer": "model"}.get(name, name)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def peers(run: Run) -> Table:
    """The tools side by side."""
    return Table(PEER_HEADER, peer_cells(run.peers))


def past(runs: Sequence[Run], columns: int = 6) -> Table:
    """The last stored runs of the newest one's machine: rate and change of each stage."""
    newest = max(runs, key=lambda r: r.date)
    mine = [(run, changes) for run, changes in history(runs) if run.machine_key == newest.machine_key][
        -columns:
    ]
    header = ["stage", *(run.date[:16].replace("T", " ") for run, _ in mine)]
    rows = [
        [f"{row.stage}: {row.label}", *(_cell(run, changes, row) for run, changes in mine)]
        for row in newest.rows
    ]
    rows.append(["control", *_control_cells([run for run, _ in mine])])
    return Table(header, rows)


def _cell(run: Run, changes: Mapping[Any, float], row: Row) -> str:
    found = next((r for r in run.rows if r.key == row.key), None)
    if found is None:
        return "–"
    change = f" ({changes[row.key]:+.0f} %)" if row.key in changes else ""
    rate = found.rate("hr_mpix_per_s")
    return (number(rate) if rate else f"{1e3 * found.seconds:.3g} ms") + change


def _control_cells(runs: Sequence[Run]) -> list[str]:
    cells, before = [], None
    for run in runs:
        now = run.control.get("median")
        change = f" ({100 * (before / now - 1):+.0f} %)" if now and before else ""
        cells.append(f"{1e3 * now:.1f} ms{change}" if now else "–")
        before = now or before
    return cells


def machine(run: Run) -> Table:
    """Facts and limits."""
    limits = run.limits
    rows = [[name.replace("_", " "), _fact(name, value)] for name, value in run.machine.items()]
    rows += [
        [
            "matrix product, float32",
            f"{limits.matmul / 1e9:.0f} GFLOP/s ({limits.matmul_one / 1e9:.0f} of one thread)",
        ],
        [
            "matrix product, bfloat16",
            f"{limits.matmul_bf16 / 1e9:.0f} GFLOP/s" if limits.matmul_bf16 else "–",
        ],
        ["copy", f"{limits.copy / 1e9:.1f} GB/s ({limits.copy_one / 1e9:.1f} of one thread)"],
        ["zstandard, decoded", f"{limits.decode_one / 1e9:.2f} GB/s of one thread"],
    ]
    if run.control:
        middle, least, most = (1e3 * run.control[name] for name in ("median", "least", "most"))
        rows.append(["control", f"{middle:.1f} ms (least {least:.1f}, most {most:.1f})"])
    return Table(("machine", ""), rows)


def _fact(name: str, value: Any) -> str:
    if name == "memory_bytes":
        return f"{value / 1e9:.1f} GB available"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
