"""What a device path measures of itself, for run.json."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

STAGES = ("decode", "upload", "compute", "download", "encode", "host")


@dataclass
class Meter:
    """Seconds and bytes over all tiles of a run, added from any thread.

    decode, encode: of threads, without waiting for slots or for the device. upload, compute, download: between events
    on the device, of a copy, or of a program. host: of the thread that launches, for tiles made outside the path.
    alone: HR pixels of a tile, halo included, and the seconds that it took before the run, with nothing
    beside it. host_tiles: that the backend made outside the path. tried: side of a tile in LR pixels → HR Mpix/s of
    such tiles' cores, alone. devices: that it is of; the others add up over them.
    """

    decode: float = 0.0
    upload: float = 0.0
    compute: float = 0.0
    download: float = 0.0
    encode: float = 0.0
    host: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    alone_px: int = 0
    alone_s: float = 0.0
    host_tiles: int = 0
    tried: dict[int, float] = field(default_factory=dict)
    devices: int = 1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **more: float) -> None:
        """Add to some of the fields."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def numbers(self) -> dict[str, Any]:
        """All fields by name, to send elsewhere."""
        with self._lock:
            return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def sum(cls, each: Sequence[Mapping[str, Any]]) -> Meter:
        """Of several, as `numbers`; the rates of tiles that were tried are those of the last."""
        total = cls(devices=0)
        for numbers in each:
            total.tried |= numbers["tried"]
            total.add(**{name: value for name, value in numbers.items() if name != "tried"})
        return total

    def seconds(self, readers: int, writers: int) -> dict[str, float]:
        """Of each of STAGES, what an average one of its threads, or its stream, was busy. readers, writers: of each
        device."""
        workers = {"decode": readers, "encode": writers}
        return {name: getattr(self, name) / workers.get(name, 1) / self.devices for name in STAGES}

    def facts(self, stream_s: float) -> dict[str, Any]:
        """For the report. stream_s: wall time of the tiles."""
        return {
            "count": self.devices,
            "busy": round(self.compute / stream_s / self.devices, 4) if stream_s > 0 else 0.0,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "host_tiles": self.host_tiles,
            "tiles_tried": dict(self.tried),
            "alone_hr_mpix_per_s": round(self.alone_px / 1e6 / self.alone_s, 1) if self.alone_s > 0 else None,
        }
