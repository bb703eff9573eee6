"""What a stack is asked to do, and what its folder holds. Standard library only, until files are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import mention
from deeplight.engine.output.acquired import Span
from deeplight.engine.output.parts import Mode, check_writable
from deeplight.engine.output.stac import COLLECTION, item_path
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.preparation import check_request
from deeplight.engine.stack.nights import Night

VRT, REPORT = "lights.vrt", "run.json"
"""Names in the folder, beside {date}.tif and COLLECTION."""
_MAPS = (".tif", ".tiff")


@dataclass(frozen=True)
class StackOptions:
    """A run over one date or several. ntl: files, patterns or dataset names of the lights. dates: what the user says,
    in place of what the files do. run: everything else; its `scene.ntl` is the first of `ntl`, and its `out` a folder
    where there are several dates."""

    ntl: tuple[str, ...]
    run: RunOptions
    dates: Sequence[Span] | None = None

    @property
    def folder(self) -> Path:
        """Where the maps of several dates go."""
        return self.run.out

    @property
    def report(self) -> Path:
        """Where the report of several dates goes."""
        return self.run.report or self.folder / REPORT

    def written(self) -> list[Path]:
        """Files, or the folder, that a finished run has written and a person would look at."""
        run = self.run
        item = self.folder / COLLECTION if run.out.is_dir() else item_path(run.out)
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


def is_stack(options: StackOptions, nights: Sequence[Night]) -> bool:
    """Whether a folder is written: for several dates, or where a folder is named for one whose date is known. Raises
    InputError where several dates are to go into one file."""
    out = options.run.out
    folder = out.is_dir() or not out.suffix
    if len(nights) == 1:
        return folder and bool(nights[0].name)
    if is_map(out) or (out.exists() and not out.is_dir()):
        named = ", ".join(night.name for night in nights[:3]) + (", …" if len(nights) > 3 else "")
        raise InputError(
            f"the lights are of {len(nights)} dates ({named}) and {out} is the name of one file: give the name of a "
            f"folder, as in {mention(out=str(out.with_suffix('')))}, or the lights of one date"
        )
    return True


def check_stack(options: StackOptions, nights: Sequence[Night]) -> list[bool]:
    """What can be refused before a raster is surveyed, for all dates. Returns which of them a resumed run finds
    finished. The folder is there. Raises InputError."""
    run = options.run
    if run.quicklook is not None:
        raise InputError(
            f"`quicklook` is a picture of one map and there are {len(nights)} dates: leave it out, or use `page`, "
            "which shows them all"
        )
    check_writable(options.report, (".json",))
    complete = []
    for night in nights:
        own = replace(options.of(night), report=run.report, events=run.events, page=run.page)
        complete.append(check_request(own))
    made = [options.folder / VRT, options.report]
    made += [options.folder / COLLECTION] if run.stac else []
    made += [item_path(options.of(night).out) for night in nights if run.stac]
    for path in made:
        if run.mode is Mode.NEW and (path.exists() or path.is_symlink()):
            raise InputError(f"{path} exists: use `overwrite=True` to replace it, or choose another folder")
    return complete
