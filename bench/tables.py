"""The tables of the report and of README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers.job import allowed
from bench.peers.tool import OURS
from bench.results import PEER_HEADER, BenchRun, Row, peer_cells
from deeplight.engine.core.markdown import markdown_table

MESH_OVER_WARPED_VRT, WALL_OVER_BARE, MEMORY_RATIO = 3.0, 1.15, 1.1
"""Numbers to reach: mesh against WarpedVRT, engine over bare calls, memory of a scene four times as large."""


@dataclass(frozen=True)
class Table:
    """A table of texts: its header and its rows. The first column is a name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown_table(self.header, self.rows)


@dataclass(frozen=True)
class Target:
    """A number to reach. met: whether it was reached; None where it was not measured."""

    name: str
    wanted: str
    measured: str
    met: bool | None


def number(value: float | None, digits: int = 3) -> str:
    """A number with a few digits in plain notation; "–" for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def summary(run: BenchRun) -> Table:
    """One row for each stage, measured in the way that deeplight-infer works on this machine."""
    chosen = [
        ("decode DMO (zstd, 7 × uint16)", run.find("decode", "zstd")),
        ("normalise", run.find("normalise")),
        ("align (mesh)", run.find("align")),
        ("model (ONNX Runtime)", _at_largest(run, "onnxruntime")),
        ("model (OpenVINO)", _at_largest(run, "openvino fp32")),
        ("model (OpenVINO, bf16)", _at_largest(run, "openvino bf16")),
        ("model (PyTorch)", _at_largest(run, "torch fp32")),
        ("compress (float32, zstd)", run.find("compress", "float32")),
        ("assemble the COG", run.find("assemble", "float32")),
        ("whole engine, GeoTIFF to COG", run.find("engine", "onnxruntime")),
        ("whole engine (OpenVINO, bf16)", run.find("engine", "openvino bf16")),
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


def _at_largest(run: BenchRun, variant: str) -> Row | None:
    rows = [r for r in run.rows if r.stage == "model" and r.variant.startswith(variant) and r.batch == 1]
    return max(rows, key=lambda r: r.tile, default=None)


def _share(row: Row) -> str:
    share = row.rate("limit_fraction")
    return "–" if share is None else f"{100 * share:.0f} %"


def stages(run: BenchRun, before: BenchRun | None) -> Table:
    """All measurements. before: an earlier run on this machine, with which the rates are compared."""
    header = ["stage", "how", "ms", "HR Mpix/s", "km²/s", "B/HR px", "GFLOP/s", "of the limit", "spread"]
    old = {row.key: row.seconds for row in before.rows} if before else {}
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
            _change(old.get(row.key), row.seconds),
        ]
        for row in run.rows
    ]
    control, earlier = run.control.get("median"), before.control.get("median") if before else None
    if control:
        rows.append(["control", "", number(1e3 * control), *["–"] * 6, _change(earlier, control)])
    return Table((*header, f"rate since {before.date[:10]}" if before else "change"), rows)


def _change(before: float | None, now: float) -> str:
    """The change of a rate in percent, from seconds before and now."""
    return f"{100 * (before / now - 1):+.0f} %" if before else "–"


def targets(run: BenchRun) -> list[Target]:
    """The numbers to reach that these benchmarks measure."""
    mesh, vrt, engine = (
        run.find("read", "mesh"),
        run.find("read", "WarpedVRT"),
        run.find("engine", "onnxruntime"),
    )
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
    return found + [
        _at_most(f"{p['tool']}: difference / range", allowed(p["tool"]), p["difference"], "{:.1e}")
        for p in run.peers
        if p["tool"].startswith(OURS)
    ]


def _at_least(name: str, limit: float, value: float | None) -> Target:
    met = None if value is None else value >= limit
    return Target(name, f"≥ {limit:g}", "–" if value is None else f"{value:.2f}", met)


def _at_most(name: str, limit: float, value: float | None, form: str = "{:.2f}") -> Target:
    met = None if value is None else value <= limit
    return Target(name, f"≤ {limit:g}", "–" if value is None else form.format(value), met)


def peers(run: BenchRun) -> Table:
    """A table of all tools."""
    return Table(PEER_HEADER, peer_cells(run.peers))


def machine(run: BenchRun) -> Table:
    """A table of the machine's facts and limits."""
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
