"""What a run leaves when it went through its tiles: what the report is made of."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deeplight.engine.output.facts import Facts
from deeplight.engine.run.executor import Outcome, Quarantined
from deeplight.engine.run.ordering import Order
from deeplight.engine.run.stream import Stage
from deeplight.engine.run.tiling import Crew, TilePlan

if TYPE_CHECKING:
    from deeplight.engine.run.meter import Meter
    from deeplight.engine.run.seams import VerifiedSeams


@dataclass
class Tally:
    """Counts over the tiles of this run, from any thread."""

    tiles: int = 0
    skipped_tiles: int = 0
    core_px: int = 0
    computed_px: int = 0
    area_km2: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def counts(self) -> dict[str, float]:
        """All counts by name."""
        names = ("tiles", "skipped_tiles", "core_px", "computed_px", "area_km2")
        with self._lock:
            return {name: getattr(self, name) for name in names}

    def skip(self) -> None:
        """A tile without data."""
        with self._lock:
            self.skipped_tiles += 1

    def add(self, core_px: int, computed_px: int, area_km2: float) -> None:
        """A finished tile: LR pixels of its core, those computed for it, and the ground that has data."""
        with self._lock:
            self.tiles += 1
            self.core_px += core_px
            self.computed_px += computed_px
            self.area_km2 += area_km2


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    plan, order, crew, threads: how it went about. tally: of this run's tiles; facts: of the whole output, packs of
    earlier runs included; packs: how many were kept and written. stages, seconds: what took how long, "total", "stream"
    and "assemble" among them. retried: failures that were answered by another try; quarantined: tiles that were
    given up. seams: None unless they were verified. meter: of the device path; None on the host's. uncompiled: tile
    shapes that ran so although a compiler was asked, and why. moved_before: `bytes_moved` when the run began. workers:
    what each process told that computed packs for the run. regions: of the output → bytes, 0 where there is no data;
    None where it is one file.
    """

    plan: TilePlan
    order: Order
    crew: Crew
    threads: int
    tally: Tally
    facts: Facts
    packs: Mapping[str, int]
    stages: Sequence[Stage]
    seconds: Mapping[str, float]
    retried: Sequence[Outcome]
    quarantined: Sequence[Quarantined]
    seams: VerifiedSeams | None
    meter: Meter | None
    uncompiled: Mapping[str, str]
    moved_before: tuple[int, int] | None
    workers: Sequence[Mapping[str, Any]] = ()
    regions: Mapping[tuple[int, int], int] | None = None
