"""The options of a stack, and the names of files in its folder. Only the standard library is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deeplight.engine.output.acquired import Span
from deeplight.engine.output.parts import parts_folder
from deeplight.engine.output.vrt import VRT
from deeplight.engine.run.options import RunOptions

if TYPE_CHECKING:
    from deeplight.engine.stack.nights import Night

REPORT, OFFSET_FILE = "run.json", "offset.tif"
"""Names of files in the folder, beside {date}.tif and what is asked for."""
Offset = Literal["own", "stack"]
_MAPS, _GROUP = (".tif", ".tiff"), ".zarr"


@dataclass(frozen=True)
class StackOptions:
    """A run over one date or several. ntl: files, patterns or dataset names of the lights. dates: given by the user;
    they replace those in the files. run: all other options; its `scene.ntl` is the first of `ntl`, and its `out` is a
    folder or a Zarr group if there are several dates. offset: of the layers, each date's "own" or, for all of them,
    that of the "stack": see alignment."""

    ntl: tuple[str, ...]
    run: RunOptions
    dates: Sequence[Span] | None = None
    offset: Offset = "own"

    @property
    def folder(self) -> Path:
        """The folder for the maps of several dates; if they go into a Zarr group, until they are in it."""
        return parts_folder(self.run.out) if is_group(self.run.out) else self.run.out

    @property
    def report(self) -> Path:
        """The file of the report on several dates."""
        return self.run.report or self.folder / REPORT

    def written(self) -> list[Path]:
        """The files, or the folder, that a finished run leaves for people to look at."""
        from deeplight.engine.output.stac import COLLECTION, item_path

        run = self.run
        item = run.out / COLLECTION if run.out.is_dir() and not is_group(run.out) else item_path(run.out)
        out = run.out if run.split is None else run.out / VRT
        asked = (out, run.quicklook, run.page, run.report, item if run.stac else None)
        return [path for path in asked if path is not None and path.exists()]

    def single(self, night: Night) -> RunOptions:
        """The options of a run over the single date."""
        return replace(self.run, scene=night.scene, when=night.when if night.told else None)

    def of(self, night: Night) -> RunOptions:
        """The options of the run over one of several dates: it writes the map, and the stack writes everything else."""
        out = self.folder / f"{night.name}.tif"
        return replace(self.single(night), out=out, report=None, events=None, page=None, stac=False)


def is_map(out: Path) -> bool:
    """Whether a name is that of one map."""
    return out.suffix.lower() in _MAPS


def is_ending(out: Path) -> bool:
    """Whether a name is nothing but the ending that a map or a group has, which counts as no ending."""
    return out.name.lower() in (*_MAPS, _GROUP)


def is_group(out: Path) -> bool:
    """Whether a name is that of a Zarr group."""
    return out.suffix.lower() == _GROUP
