"""What a stack is asked to do, and what its folder holds. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.output.acquired import Span
from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run.options import RunOptions

if TYPE_CHECKING:
    from deeplight.engine.stack.nights import Night

VRT, REPORT = "lights.vrt", "run.json"
"""Names in the folder, beside {date}.tif and what is asked for."""
_MAPS, _GROUP = (".tif", ".tiff"), ".zarr"


@dataclass(frozen=True)
class StackOptions:
    """A run over one date or several. ntl: files, patterns or dataset names of the lights. dates: what the user says,
    in place of what the files do. run: everything else; its `scene.ntl` is the first of `ntl`, and its `out` a folder
    or a Zarr group where there are several dates."""

    ntl: tuple[str, ...]
    run: RunOptions
    dates: Sequence[Span] | None = None

    @property
    def folder(self) -> Path:
        """Where the maps of several dates go; those of a Zarr group until they are in it."""
        return parts_folder(self.run.out) if is_group(self.run.out) else self.run.out

    @property
    def report(self) -> Path:
        """Where the report of several dates goes."""
        return self.run.report or self.folder / REPORT

    def written(self) -> list[Path]:
        """Files, or the folder, that a finished run has written and a person would look at."""
        from deeplight.engine.output.stac import COLLECTION, item_path

        run = self.run
        item = run.out / COLLECTION if run.out.is_dir() else item_path(run.out)
        asked = (run.out, run.quicklook, run.page, run.report, item if run.stac else None)
        return [path for path in asked if path is not None and path.exists()]

    def single(self, night: Night) -> RunOptions:
        """One date as its own run."""
        return replace(self.run, scene=night.scene, when=night.when if night.told else None)

    def of(self, night: Night) -> RunOptions:
        """One date of several: its map in the folder, all else written by the stack."""
        out = self.folder / f"{night.name}.tif"
        return replace(self.single(night), out=out, report=None, events=None, page=None, stac=False)


def is_map(out: Path) -> bool:
    """Whether a name is that of one map."""
    return out.suffix.lower() in _MAPS


def is_group(out: Path) -> bool:
    """Whether a name is that of a Zarr group."""
    return out.suffix.lower() == _GROUP
