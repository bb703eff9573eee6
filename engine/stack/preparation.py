"""Checks that refuse a stack before any of its rasters is surveyed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import counted, mention
from deeplight.engine.output.packs import required_bytes
from deeplight.engine.output.parts import Mode, check_writable, parts_folder, readable, stored_record
from deeplight.engine.output.stac import COLLECTION, item_path
from deeplight.engine.output.vrt import VRT
from deeplight.engine.run.preparation import (
    check_complete,
    check_raster,
    check_request,
    plan_run,
    valid_share,
)
from deeplight.engine.stack.nights import Night
from deeplight.engine.stack.options import OFFSET_FILE, REPORT, StackOptions, is_ending, is_group, is_map
from deeplight.engine.stack.report import earlier_report

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.lights import OpenLights
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.engine import Engine
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.runtime.backends.base import Backend


@dataclass(frozen=True)
class Date:
    """One date, ready to be computed. options: of its own run. complete: a resumed run has found its map finished."""

    night: Night
    lights: OpenLights
    scene: Scene
    options: RunOptions
    spec: OutputSpec
    complete: bool


def is_stack(options: StackOptions, nights: Sequence[Night]) -> bool:
    """Whether the output is a folder: for several dates, and for one whose date is known if `out` names a folder.
    Raises InputError where several dates should go into one file."""
    out = options.run.out
    if is_ending(out):
        raise InputError(
            f"{out} is an ending without a name: put a name before it, as in "
            f"{mention(out=str(out.with_name('lights' + out.name)))}"
        )
    if is_group(out):
        if not nights[0].name:
            raise InputError(
                f"{out} has a time axis, and nothing says when {nights[0].scene.ntl} was taken: give `dates`"
            )
        return True
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


def check_split(options: StackOptions, nights: Sequence[Night]) -> None:
    """Raise InputError where several dates, or a Zarr group, should be written in regions."""
    out = options.run.out
    if len(nights) > 1:
        raise InputError(
            f"`split` writes one map in regions and the lights are of {len(nights)} dates: run each date by itself, "
            "into a folder of its own, or leave it out"
        )
    if is_group(out):
        raise InputError(
            f"`split` writes regions as GeoTIFFs and {out} is a Zarr group, which is stored in chunks anyway: leave it "
            f"out, or give the name of a folder, as in {mention(out=str(out.with_suffix('')))}"
        )


def check_stack(options: StackOptions, nights: Sequence[Night]) -> list[bool]:
    """Refuse, with InputError, what can be refused before a raster is surveyed. Returns the dates that a resumed run
    finds finished. The folder must exist."""
    run = options.run
    group = is_group(run.out)
    if run.quicklook is not None:
        raise InputError(
            f"`quicklook` is a picture of one map and {run.out} is for those of dates: leave it out, or use `page`, "
            "which shows them all"
        )
    if run.shard is not None:
        raise InputError(
            f"`shard` is a part of one map and {run.out} is for those of dates: run each date as a job of its own, or "
            "in shards of its own"
        )
    if run.workers is not None:
        raise InputError(
            f"`workers` compute one map and {run.out} is for those of dates: run each date by itself, or leave it out"
        )
    check_writable(options.report, (".json",))
    complete = []
    for night in nights:
        own = replace(options.of(night), report=run.report, events=run.events, page=run.page)
        complete.append(check_request(own))
        if complete[-1]:
            check_raster(own.out)
    made = [options.folder / VRT, options.report] if not group else [run.report] if run.report else []
    if options.offset == "stack" and not group:
        made.append(options.folder / OFFSET_FILE)
    if run.stac and not group:
        made += [options.folder / COLLECTION, *(item_path(options.of(night).out) for night in nights)]
    elif run.stac and not (run.mode is Mode.RESUME and run.out.exists()):
        made.append(item_path(run.out))
    # maps that a resumed run finds are its own if the report there is that of a stack
    reports = (options.report, options.folder / REPORT)
    begun = run.mode is Mode.RESUME and any(earlier_report(path) is not None for path in reports)
    for path in made:
        if run.mode is not Mode.OVERWRITE and not begun and (path.exists() or path.is_symlink()):
            raise InputError(f"{path} exists: use `overwrite=True` to replace it, or choose another folder")
    return complete


def check_offset(options: StackOptions, lights: Sequence[OpenLights], backend: Backend) -> None:
    """Raise InputError where dates cannot share an alignment."""
    scene = options.run.scene
    if scene.dmo is None and not scene.dmo_files and scene.dem is None:
        raise InputError(
            '`offset="stack"` is how daytime bands and elevation lie against the lights and there are none: leave it '
            "out, or give `dmo` or `dem`"
        )
    if not backend.takes_offset:
        raise InputError(
            f'backend {backend.name} estimates the alignment of each date by itself: leave out `offset="stack"`, or '
            f"use {mention(backend='onnxruntime')} or {mention(backend='torch')}"
        )
    first, *others = (date.layer.raster for date in lights)
    other = next((raster for raster in others if raster.grid != first.grid), None)
    if other is not None:
        raise InputError(
            f'{first.what} and {other.what} are on different grids, and `offset="stack"` is one alignment for all '
            "dates: leave it out, or give dates on one grid"
        )


def check_same(date: Date, engine: Engine) -> None:
    """Raise InputError where a finished map, or packs of one, belong to another run."""
    options = date.options
    if date.complete:
        check_complete(options.out, date.spec)
        return
    earlier = stored_record(options.out) if options.mode is Mode.RESUME else None
    if earlier is not None:
        record, _ = plan_run(
            options, date.scene, engine.artifact, engine.backend, engine.threads, engine.core
        )
        record.check_same(earlier, options.out)


def check_all_space(options: StackOptions, dates: Sequence[Date]) -> None:
    """Raise InputError where the maps of all dates do not fit on the disk together.

    dates: the dates to be computed. Files that their maps replace count as free space.
    """
    group, folder = is_group(options.run.out), options.folder
    waiting = [date for date in dates if not date.complete]
    # a finished map takes half of what it needs together with its packs
    sizes = [int(required_bytes(date.spec)[1] * valid_share(date.scene)) // 2 for date in waiting]
    if not sizes:
        return
    needed = sum(sizes) + max(sizes) * (2 if group else 1)
    old = [file for date in waiting for file in _files(date.options.out)]
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in old)
    if needed > free:
        raise InputError(
            f"{options.run.out} needs about {readable(needed)} for {counted(len(sizes), 'dates')} "
            f"and {readable(free)} are free: free some space or choose another disk"
        )


def _files(out: Path) -> Iterator[Path]:
    """Files that count as free space: a map that is to be replaced, and the packs of a stopped run."""
    yield from (path for path in (out, *parts_folder(out).rglob("*")) if path.is_file())
