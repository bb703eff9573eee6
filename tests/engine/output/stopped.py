"""A run that was stopped, for tests of what a resumed one does with its parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run.options import RunOptions


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A run stopped with all but one of its packs stored, and the bytes it has to end with."""

    request: RunOptions
    expected: bytes
    packs: dict[str, bytes]

    @property
    def ntl(self) -> Path:
        return Path(self.request.scene.ntl)

    @property
    def folder(self) -> Path:
        return parts_folder(self.request.out)
