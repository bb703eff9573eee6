"""The messages between the process that leads a run and its workers, besides the names of packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deeplight.engine.core.windows import Window
from deeplight.engine.output.hands import Piece, Published
from deeplight.engine.output.parts import Record
from deeplight.engine.run.contents import Seen
from deeplight.engine.run.workers.relay import Message
from deeplight.engine.run.workers.segments import Key


@dataclass(frozen=True)
class Trouble:
    """What went wrong. refused: the worker cannot take part. fatal: the run cannot go on."""

    sentence: str
    refused: bool
    fatal: bool


@dataclass(frozen=True)
class Proposal:
    """How a worker would carry out the run. tiles: the plan of the tiles in words. areas: pack → its HR pixels, row by
    row. digests: of inputs that the worker has read, for others on its host. at_once: packs that its readers need to
    have one tile each."""

    record: Record
    tiles: str
    areas: Mapping[Key, int]
    digests: Mapping[Seen, str]
    at_once: int = 1


@dataclass(frozen=True)
class Made:
    """What became of a pack. error: None where it is stored. final: another try would not help. seconds: from the pack
    before it, or from when it was asked for; None where it had no data, or was there before."""

    error: str | None = None
    final: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Computed:
    """What became of the packs of a call, in its order. messages: for the user, since the last ones."""

    packs: Sequence[Made]
    messages: list[Message]


@dataclass(frozen=True)
class SharedWork:
    """What workers do for the one that assembles the output. pieces: of the job, done in any order, perhaps twice."""

    job: Published
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Told:
    """What a worker has done. device: that computed, with its address on the PCI bus where that is known. cpus: that it
    ran on; "" where the system chose. packs, counts: as PackFiller.counts and Tally.counts. stages: name → (threads,
    busy seconds). meter: of the device path, as Meter.numbers; None on the host's. read: as Scene.bytes_read. moved:
    bytes (read, written). cpu_s: of all its threads. retried: tiles that were tried again, and why."""

    worker: str
    device: str
    cpus: str
    packs: Mapping[str, int]
    counts: Mapping[str, float]
    stages: Mapping[str, tuple[int, float]]
    meter: Mapping[str, Any] | None
    read: Sequence[int]
    moved: tuple[int, int] | None
    cpu_s: float
    peak_memory_bytes: int
    retried: list[tuple[Window, str]]


@dataclass(frozen=True)
class Done:
    """What became of the packs. told: by workers; lost: why others told nothing. kept: packs that an earlier run had
    finished. stream_s: seconds that packs were computed for."""

    told: Sequence[Told]
    lost: Sequence[str]
    kept: int
    stream_s: float
