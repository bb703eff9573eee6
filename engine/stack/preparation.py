"""Before any raster of a stack is surveyed: what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import mention
from deeplight.engine.output.parts import Mode, check_writable
from deeplight.engine.output.stac import COLLECTION, item_path
from deeplight.engine.run.preparation import check_raster, check_request
from deeplight.engine.stack.nights import Night
from deeplight.engine.stack.options import REPORT, VRT, StackOptions, is_map
from deeplight.engine.stack.report import earlier_report


def is_stack(options: StackOptions, nights: Sequence[Night]) -> bool:
    """Whether a folder is written: for several dates, or where a folder is named for one whose date is known. Raises
    InputError where several dates are to go into one file."""
    out = options.run.out
    folder = out.is_dir() or not out.suffix
    if len(nights) == 1:
        return folder and bool(nights[0].name)
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{out} is a file, and the maps of {len(nights)} dates go into a folder: choose another name for it"
        )
    if is_map(out) and not folder:
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
    if run.shard is not None:
        raise InputError(
            f"`shard` is a part of one map and there are {len(nights)} dates: run each date as a job of its own, or in "
            "shards of its own"
        )
    check_writable(options.report, (".json",))
    complete = []
    for night in nights:
        own = replace(options.of(night), report=run.report, events=run.events, page=run.page)
        complete.append(check_request(own))
        if complete[-1]:
            check_raster(own.out)
    made = [options.folder / VRT, options.report]
    made += [options.folder / COLLECTION] if run.stac else []
    made += [item_path(options.of(night).out) for night in nights if run.stac]
    # what a resumed run finds is its own where the report is that of a stack
    reports = (options.report, options.folder / REPORT)
    begun = run.mode is Mode.RESUME and any(earlier_report(path) is not None for path in reports)
    for path in made:
        if run.mode is not Mode.OVERWRITE and not begun and (path.exists() or path.is_symlink()):
            raise InputError(f"{path} exists: use `overwrite=True` to replace it, or choose another folder")
    return complete
