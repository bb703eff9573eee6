"""The first table of the report, for what users ask: the rate of each runtime, and how long a large scene takes.

It has a row for every runtime that was measured, and for every GPU whose stages are in a folder of bench/results.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.results import BenchRun
from bench.tables import Table, number
from deeplight.engine.runtime.backends import BACKENDS

SCENE_HR_MPIX = 2500.0
"""The size of a large scene, which is a country."""
HEADER = (
    "machine",
    "runtime",
    "network, HR Mpix/s",
    "of the limit",
    "engine, HR Mpix/s",
    "minutes for 2.5 Gpix",
)
NOTE = (
    "Network: the model alone on its largest tile. Engine: from GeoTIFF to COG. Of the limit: of the network, on a CPU "
    "the share of a large matrix product, on a GPU that of an elementwise copy. Minutes: 2.5 billion HR pixels at the "
    "engine's rate (computed); “–” is not measured."
)
_GPU_WAY = "both"
"""How the engine runs the network on a GPU, see bench.gpu.network.WAYS."""
_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def table(run: BenchRun, stored: Path) -> Table:
    """stored: a folder with the results of `bench/gpu.sh` in its folders gpu-*."""
    return Table(
        HEADER, [*_of_run(run), *(row for folder in sorted(stored.glob("gpu-*")) for row in _of_gpu(folder))]
    )


def _of_run(run: BenchRun) -> Iterator[list[str]]:
    """The runtimes in the order in which they were measured; those of the network alone come first."""
    found = dict.fromkeys(r.variant for stage in ("model", "engine") for r in run.rows if r.stage == stage)
    for variant in found:
        of_variant = [r for r in run.rows if r.variant == variant]
        tiles = [r for r in of_variant if r.stage == "model" and r.batch == 1]
        network = max(tiles, key=lambda r: r.tile, default=None)
        engine = next((r for r in of_variant if r.stage == "engine"), None)
        yield _row(
            _machine(run, variant),
            variant,
            network and network.rate("hr_mpix_per_s"),
            network and network.rate("limit_fraction"),
            engine and engine.rate("hr_mpix_per_s"),
        )


def _machine(run: BenchRun, variant: str) -> str:
    """The device on which a runtime ran; the GPU, if no other device is named."""
    cpu, gpu = (str(run.machine.get(name)) for name in ("cpu", "gpu"))
    on_gpu = BACKENDS[variant.split()[0]].devices[0] == "cuda"
    return f"{gpu if on_gpu else cpu}, {run.machine.get('cpus')} CPUs"


def _of_gpu(folder: Path) -> Iterator[list[str]]:
    """Rows of `tiny` in every precision. The engine's rate is that of its slower scene, in the precision used, of a
    process that need not compile."""
    # they import PyTorch, which a report without a GPU does not need
    from bench.gpu.table import load
    from bench.traffic import network_bytes

    facts, network, engine = (load(folder, stage) for stage in ("facts", "network", "engine"))
    machine = next(
        (f"{r['device']}, {r['cpus']} CPUs" for r in facts if r.get("what") == "machine"), folder.name
    )
    copy = next(
        (r["tb_per_s"] for r in facts if r.get("what") == "elementwise copy" and "tb_per_s" in r), None
    )
    runs = [r for r in engine if r.get("what") == "deeplight-infer" and r.get("caches") != "empty caches"]
    rates = [r["hr_mpix_per_s"] for r in runs if "hr_mpix_per_s" in r]
    networks = {r["dtype"]: r["hr_mpix_per_s"] for r in network if _is_tiny(r)}
    for dtype in dict.fromkeys((*networks, *(("fp16",) if rates else ()))):
        rate = networks.get(dtype)
        moved = network_bytes("tiny", _ITEM_BYTES[dtype], "fused")
        share = rate * moved * 1e-6 / copy if rate and copy else None
        yield _row(
            machine, f"torch {dtype}", rate, share, min(rates, default=None) if dtype == "fp16" else None
        )


def _is_tiny(row: dict[str, Any]) -> bool:
    named = (row.get("what"), row.get("preset"), row.get("way")) == ("network", "tiny", _GPU_WAY)
    return named and "hr_mpix_per_s" in row


def _row(
    machine: str, runtime: str, network: float | None, share: float | None, engine: float | None
) -> list[str]:
    limit = "–" if share is None else f"{100 * share:.0f} %"
    minutes = number(SCENE_HR_MPIX / engine / 60) if engine else "–"
    return [machine, runtime, number(network), limit, number(engine), minutes]
