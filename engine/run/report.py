"""run.json: what was done, how fast, what held it up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.files import write_file
from deeplight.engine.core.machine import bytes_moved, peak_memory
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.wording import counted
from deeplight.engine.raster.units import shown

if TYPE_CHECKING:
    from deeplight.engine.core.windows import Window
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.run.result import RunResult
    from deeplight.engine.runtime.artifact import Artifact
    from deeplight.engine.runtime.backends.base import Backend


@dataclass(frozen=True)
class RunReport:
    """Everything that run.json holds. Rates are over the wall time, busy seconds over a stage's workers.

    status: "complete", or "incomplete" where tiles are in quarantine. retried: tries that failed and were answered by
    another. device: of the device path, None on the host's: how many GPUs, the share of the wall time that they
    computed, bytes that went up and down, and HR Mpix/s of a tile alone, halo included; workers' own together.
    bytes_read of an input: by this run's reads, so over its bytes the number of times that its blocks were decoded.
    lights, clamped_pixels and share_of_output of an input are over the whole output, packs of earlier runs included;
    tiles, seconds, rates, load and bytes are this run's. workers: what each process told that computed packs for it, of
    those that were lost that they were; counts, busy seconds and bytes of the run include theirs, peak_memory_bytes is
    of the process that assembled the output. regions: None where the output is one file; their side in LR pixels, how
    many have a file, and those (row, column) that have none because there is no data.
    """

    output: str
    status: str
    model: Mapping[str, Any]
    backend: Mapping[str, Any]
    device: Mapping[str, Any] | None
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]
    grid: Mapping[str, Any]
    tiles: Mapping[str, Any]
    retried: Sequence[Mapping[str, Any]]
    quarantined: Sequence[Mapping[str, Any]]
    seams: Mapping[str, Any] | None
    packs: Mapping[str, int]
    lights: Mapping[str, Any]
    clamped_pixels: int
    seconds: Mapping[str, float]
    load: Mapping[str, float]
    bottleneck: str
    hr_mpix_per_s: float
    km2_per_s: float
    peak_memory_bytes: int
    bytes_read: int | None
    bytes_written: int | None
    versions: Mapping[str, str]
    workers: Sequence[Mapping[str, Any]] = ()
    regions: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The text of run.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str) + "\n"

    def summary(self) -> dict[str, Any]:
        """The run in a few numbers, for the event stream."""
        names = (
            "hr_mpix_per_s",
            "km2_per_s",
            "bottleneck",
            "peak_memory_bytes",
            "bytes_read",
            "bytes_written",
        )
        counts = {"tiles": self.tiles["computed"], "skipped": self.tiles["skipped"]}
        return counts | {"seconds": self.seconds["total"]} | {name: getattr(self, name) for name in names}

    def headline(self) -> str:
        """The run in one line."""
        t, s = self.tiles, self.seconds
        moved = ""
        if self.bytes_read is not None and self.bytes_written is not None:
            moved = f"read {self.bytes_read / 1e6:.0f} MB, wrote {self.bytes_written / 1e6:.0f} MB, "
        return (
            f"{counted(t['computed'], 'tiles')} ({t['skipped']} skipped) in {s['total']:.1f} s: "
            f"{self.hr_mpix_per_s:.2f} HR Mpix/s, {self.km2_per_s:.0f} km²/s, "
            f"peak memory {self.peak_memory_bytes / 1e9:.2f} GB, "
            f"{moved}bottleneck {self.bottleneck} ({self.load.get(self.bottleneck, 0):.0%} busy)"
        )


def make_report(
    options: RunOptions, artifact: Artifact, backend: Backend, scene: Scene, result: RunResult
) -> RunReport:
    """What there is to tell of a run that went through all its tiles."""
    from deeplight.engine.run.provenance import pixel_options, versions

    tally, seconds, facts = result.tally, result.seconds, result.facts
    wall = seconds["total"]
    each = {s.name: s.busy_s / s.workers for s in result.stages}
    busy = {f"{s.name}_busy": s.busy_s for s in result.stages}
    if result.meter is not None:  # the executor's stages wait for the device in their own time
        each = result.meter.seconds(result.crew.readers, result.crew.writers)
        busy = {f"{name}_busy": getattr(result.meter, name) for name in each}
    load, bottleneck = stage_load(each, seconds["stream"], seconds["assemble"])
    now, before = bytes_moved(), result.moved_before
    return RunReport(
        output=str(options.out),
        status="incomplete" if result.quarantined else "complete",
        model=_model(artifact, options.precision),
        backend={
            "name": backend.name,
            "device": backend.device,
            "threads": result.threads,
            "uncompiled": dict(result.uncompiled),
        },
        device=None if result.meter is None else result.meter.facts(seconds["stream"]),
        options=pixel_options(options, scene, backend)
        | {"tiles": str(options.tiles or "whole"), "mode": options.mode.value},
        inputs=facts.merged(scene.describe()),
        grid={
            "lr": [scene.grid.height, scene.grid.width],
            "hr": [scene.hr_grid.height, scene.hr_grid.width],
        },
        tiles=_tiles(result),
        retried=[_failure(o.task.core, str(o.error), [o.worker]) for o in result.retried],
        quarantined=[_failure(q.core, q.reason, q.workers) for q in result.quarantined],
        seams=None if result.seams is None else asdict(result.seams),
        packs=result.packs,
        lights=facts.lights(shown(scene.unit)),
        clamped_pixels=facts.clamped,
        seconds={k: round(v, 3) for k, v in {**seconds, **busy}.items()},
        load=load,
        bottleneck=bottleneck,
        hr_mpix_per_s=round(tally.core_px * SCALE**2 / 1e6 / wall, 4),
        km2_per_s=round(tally.area_km2 / wall, 3),
        peak_memory_bytes=peak_memory(),
        bytes_read=now[0] - before[0] if now and before else None,
        bytes_written=now[1] - before[1] if now and before else None,
        versions=versions(backend),
        workers=result.workers,
        regions=None if result.regions is None else _regions(options, result.regions),
    )


def _model(artifact: Artifact, precision: str) -> dict[str, Any]:
    m = artifact.manifest
    return {"name": m.name, "preset": m.preset, "sha256": artifact.digest, "precision": precision}


def _regions(options: RunOptions, found: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    empty = sorted(list(piece) for piece, size in found.items() if not size)
    return {"side": options.split, "files": len(found) - len(empty), "without_data": empty}


def _failure(core: Window, reason: str, workers: Sequence[str]) -> dict[str, Any]:
    place = {"row": core.row, "col": core.col, "height": core.height, "width": core.width}
    return {**place, "reason": reason, "workers": list(workers)}


def _tiles(result: RunResult) -> dict[str, Any]:
    plan, tally = result.plan, result.tally
    return {
        "plan": plan.describe(),
        "core": plan.core,
        "halo": plan.halo,
        "computed": tally.tiles,
        "skipped": tally.skipped_tiles,
        "core_share": round(tally.core_px / tally.computed_px, 4) if tally.computed_px else None,
        "memory_estimate_bytes": plan.estimate,
        "streams": plan.streams,
        "readers": result.crew.readers,
        "panel": result.order.panel,
        "block_cache_mb": result.order.cache_mb,
        "shared_blocks_mb": result.order.shared_mb,
    }


def stage_load(each: Mapping[str, float], stream_s: float, assemble_s: float) -> tuple[dict[str, float], str]:
    """Busy share of each stage while the stream ran, and the name of what held the run up most.

    each: stage → seconds that an average worker of it was busy. The finaliser runs alone after the stream, so it is
    the bottleneck where it took longer than any stage.
    """
    load = {name: round(s / stream_s, 4) if stream_s > 0 else 0.0 for name, s in each.items()}
    total = stream_s + assemble_s
    load["assemble"] = round(assemble_s / total, 4) if total > 0 else 0.0
    seconds = {**each, "assemble": assemble_s}
    return load, max(seconds, key=lambda name: seconds[name])


def write_report(report: RunReport, path: Path) -> None:
    """Write run.json durably. Raises DeepLightError where the disk refuses."""
    write_file(path, [report.to_json().encode()])
