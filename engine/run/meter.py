"""What a device path measures of itself, for run.json."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

STAGES = ("decode", "upload", "compute", "download", "encode")


@dataclass
class Meter:
    """Seconds and bytes over all tiles of a run, added from any thread.

    decode, encode: of threads, without waiting for slots or for the device. upload, compute, download: between events
    on the device. alone: HR pixels of a tile, halo included, and the seconds that it took before the run, with nothing
    beside it. tried: side of a tile in LR pixels → HR Mpix/s of such tiles' cores, alone.
    """

    decode: float = 0.0
    upload: float = 0.0
    compute: float = 0.0
    download: float = 0.0
    encode: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    alone_px: int = 0
    alone_s: float = 0.0
    tried: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **more: float) -> None:
        """Add to some of the fields."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def seconds(self, readers: int, writers: int) -> dict[str, float]:
        """Of each of STAGES, what an average one of its threads, or its stream, was busy."""
        workers = {"decode": readers, "encode": writers}
        return {name: getattr(self, name) / workers.get(name, 1) for name in STAGES}

    def facts(self, stream_s: float) -> dict[str, Any]:
        """For the report. stream_s: wall time of the tiles."""
        return {
            "busy": round(self.compute / stream_s, 4) if stream_s > 0 else 0.0,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "tiles_tried": dict(self.tried),
            "alone_hr_mpix_per_s": round(self.alone_px / 1e6 / self.alone_s, 1) if self.alone_s > 0 else None,
        }
