"""Cutting one place into the clips of a tree: look at each planned window, write it or count why not, then index."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import DISK, disk_errors, write_file
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.dataset_names import matching
from deeplight.engine.raster.extents import lonlat_bounds
from deeplight.engine.raster.grid import Grid
from deeplight.train.clips.coarsen import make_coarse
from deeplight.train.clips.degrade import Degradation, place_seed
from deeplight.train.clips.degrade import told as sensor_of
from deeplight.train.clips.files import write_clip
from deeplight.train.clips.index import (
    INDEX,
    RECORD,
    ClipRow,
    check_leaks,
    lattice_of,
    pixel_km,
    read_index,
    write_index,
)
from deeplight.train.clips.place import Place, PlaceOptions
from deeplight.train.clips.plan import BlockIndex, ClipPlanOptions, Planned, part_of, plan_clips
from deeplight.train.clips.samples import Sample

SCHEMA = 1


@dataclass(frozen=True)
class Rules:
    """Which clips are good enough.

    min_valid: least share of valid NTL pixels, and of valid HR lights where there are any. max_cloud: most of the HR
    pixels that may be cloudy. min_lit: least share of the valid LR pixels that are brighter than `lit`.
    """

    min_valid: float = 0.9
    max_cloud: float = 0.3
    min_lit: float = 0.01
    lit: float = 0.5


@dataclass(frozen=True)
class ClipRequest:
    """One place to cut. degradation: how LR lights are made where files.scene.ntl is "" and only HR ones are given.
    unit: in place of the file's own, or ""."""

    out: Path
    place: str
    files: PlaceOptions
    date: str = ""
    plan: ClipPlanOptions = field(default_factory=ClipPlanOptions)
    rules: Rules = field(default_factory=Rules)
    degradation: Degradation | None = None
    unit: str = ""
    mode: Mode = Mode.NEW


@dataclass(frozen=True)
class CutReport:
    """clips: written, by split. rejected: windows that were not, by reason."""

    clips: Mapping[str, int]
    rejected: Mapping[str, int]

    def lines(self) -> Iterator[str]:
        """Return what the log says of the report, line by line."""
        made = ", ".join(f"{count} {split}" for split, count in self.clips.items()) or "none"
        yield f"clips: {made}"
        if self.rejected:
            yield "rejected: " + ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())


def cut_place(request: ClipRequest, progress: Progress) -> CutReport:
    """Cut one place into request.out and add it to its index.

    A clip appears whole or not at all, and in the index when all of the place are there. Until then RESUME goes on.
    Raises InputError where the rasters cannot be used, where the place is already in the tree, where the splits would
    leak, and where no clip is good enough; DeepLightError where the disk refuses.
    """
    others = _others(request)
    work = request.out / f".{_stem(request)}.work"
    with disk_errors(request.out):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with Place(_with_lights(request, work, progress)) as place:

            def good(window: Window) -> bool:
                return not judge_lights(*_lights(place, window), request.rules)[1]

            planned = plan_clips(
                place.grid, request.place, good, request.plan, _known_blocks(others, place.grid)
            )
            rows = [_planned_row(request, place, clip) for clip in planned]
            check_leaks([*others, *(row for row in rows if row.split)], f"{request.out} with {request.place}")
            _begin(request, others)
            kept, rejected = _cut_all(request, place, rows, progress)
        if not kept:
            with disk_errors(request.out):
                DISK.remove(_state(request))
            raise InputError(_nothing(request, rejected))
    finally:
        with disk_errors(work):
            DISK.remove_tree(work)
        with contextlib.suppress(OSError):
            request.out.rmdir()  # only where nothing came of it
    report = CutReport(Counter(row.split for row in kept), rejected)
    _record(request, report)
    write_index(request.out, [*_others(replace(request, mode=Mode.OVERWRITE)), *kept])
    with disk_errors(request.out):
        DISK.remove(_state(request))
    return report


def _known_blocks(rows: Sequence[ClipRow], grid: Grid) -> dict[BlockIndex, str]:
    """The splits of blocks that other dates on this grid have decided."""
    lattice = lattice_of(grid)
    found = {}
    for row in rows:
        if row.lattice == lattice:
            down, across = row.block.split()
            found[int(down), int(across)] = row.split
    return found


def _stem(request: ClipRequest) -> str:
    """What the names of the place's clips begin with."""
    return f"{request.place}_{request.date}" if request.date else request.place


def _state(request: ClipRequest) -> Path:
    """The file that is there while the place's clips are not all in the index."""
    return request.out / f".{_stem(request)}.json"


def _others(request: ClipRequest) -> list[ClipRow]:
    """The rows of other places. Raises InputError where what is there of this one does not fit the mode."""
    out, state = request.out, _state(request)
    if not out.exists():
        return []
    if not out.is_dir():
        raise InputError(f"{out} is not a folder; choose another `out`")
    rows = read_index(out) if (out / INDEX).exists() else []
    if not rows and any(not path.name.startswith(".") for path in out.iterdir()) and not _begun(out):
        raise InputError(
            f"{out} holds files and is no clip tree; choose an empty folder, or one that is not there yet"
        )
    others = [row for row in rows if (row.place, row.date) != (request.place, request.date)]
    if request.mode is Mode.OVERWRITE:
        return others
    if len(others) < len(rows):
        raise InputError(
            f"{out} already holds {_stem(request)}; give `overwrite=True` to cut it again, or another `place` or `date`"
        )
    if state.exists() and request.mode is Mode.NEW:
        raise InputError(
            f"{out} holds an unfinished run of {_stem(request)}; give `resume=True` or `overwrite=True`"
        )
    if state.exists() and state.read_text(encoding="utf-8") != _fingerprint(request):
        raise InputError(
            f"the unfinished run of {_stem(request)} in {out} had other rasters or options; repeat them, or give "
            "`overwrite=True`"
        )
    return others


def _begin(request: ClipRequest, others: Sequence[ClipRow]) -> None:
    """From here on a stopped run can be resumed; what is to be replaced goes."""
    if request.mode is Mode.OVERWRITE and (request.out / INDEX).exists():
        write_index(request.out, others)
    if request.mode is not Mode.RESUME or not _state(request).exists():
        _remove_clips(request)
    write_file(_state(request), [_fingerprint(request).encode()])


def _begun(out: Path) -> bool:
    """Whether a run of any place was begun here."""
    return any(out.glob(".*.json")) or (out / RECORD).exists()


def _remove_clips(request: ClipRequest) -> None:
    pattern = re.compile(rf"\.?{re.escape(_stem(request))}-r\d+c\d+(\.tmp)?")
    with disk_errors(request.out):
        for folder in sorted(request.out.glob("*/*")):
            if folder.is_dir() and pattern.fullmatch(folder.name):
                DISK.remove_tree(folder)


def _fingerprint(request: ClipRequest) -> str:
    """What a resumed run must find unchanged, as text: options, and size and time of each file."""
    told = asdict(replace(request, mode=Mode.NEW, out=Path()))
    told["mode"] = told["out"] = None
    names = [*request.files.scene.files().values(), request.files.ntl_hr,
             request.files.isp, request.files.qa, request.files.cloud_mask]  # fmt: skip
    for name in [file for given in names if given for file in matching(given) or [given]]:
        if Path(name).is_file():
            stat = Path(name).stat()
            told[f"file {name}"] = [stat.st_size, stat.st_mtime_ns]
    return json.dumps(told, sort_keys=True, default=str)


def _with_lights(request: ClipRequest, work: Path, progress: Progress) -> PlaceOptions:
    """The rasters to cut from: with LR lights made from the HR ones where those alone are given."""
    files = request.files
    if files.scene.ntl:
        if request.degradation is not None:
            raise InputError(
                "`degrade` makes LR lights from HR ones and `ntl` gives them: leave one of them out"
            )
        return files
    if request.degradation is None or files.ntl_hr is None:
        raise InputError("there are no LR lights: give `ntl`, or `ntl_hr` with `degrade`")
    progress.log("making the LR lights")
    seed = place_seed(request.plan.seed, request.place)
    with progress:
        return make_coarse(files, request.degradation, seed, request.unit, work, progress)


def _planned_row(request: ClipRequest, place: Place, clip: Planned) -> ClipRow:
    """The row of a clip whose pixels have not been looked at."""
    w, grid = clip.window, part_of(place.grid, clip.window)
    box = lonlat_bounds(grid)
    left, bottom, right, top = grid.bounds_xy
    west, south, east, north = box if box is not None else (0.0, 0.0, 0.0, 0.0)
    return ClipRow(
        clip=f"{clip.split}/{_stem(request)}-r{w.row:05d}c{w.col:05d}", place=request.place, date=request.date,
        split=clip.split, lattice=lattice_of(place.grid), row=w.row, col=w.col, height=w.height, width=w.width,
        block=f"{clip.block[0]} {clip.block[1]}", west=west, south=south, east=east, north=north,
        crs=grid.crs.to_string(), left=left, bottom=bottom, right=right, top=top, layers=" ".join(place.layers),
        unit=request.unit or place.unit, buffer=request.plan.buffer, pixel_km=pixel_km(grid), valid=0.0, cloud=0.0,
        lit=0.0, sum_lights=0.0,
    )  # fmt: skip


def _cut_all(
    request: ClipRequest, place: Place, rows: Sequence[ClipRow], progress: Progress
) -> tuple[list[ClipRow], dict[str, int]]:
    """Rows of the clips that are good enough, now written, and the others by reason."""
    kept, rejected = [], Counter[str]()
    with progress:
        progress.start(sum(row.height * row.width for row in rows) * SCALE**2)
        for row in rows:
            found = _cut_one(request, place, Window(row.row, row.col, row.height, row.width), row)
            if isinstance(found, str):
                rejected[found] += 1
            else:
                kept.append(found)
            progress.advance(row.height * row.width * SCALE**2)
    return kept, dict(rejected)


def _cut_one(request: ClipRequest, place: Place, window: Window, row: ClipRow) -> ClipRow | str:
    """Write one clip; the reason where it is not good enough. One that a stopped run wrote is kept."""
    folder, rules = request.out / row.clip, request.rules
    facts, reason = judge_lights(*_lights(place, window), rules)
    if reason or not row.split:
        return reason
    sample, cloud = place.read_with_clouds(window)
    reason = _judge_layers(sample, cloud, place.layers, rules)
    if reason:
        return reason
    if request.degradation is not None:
        psf, limits = sensor_of(request.degradation)
        sample = replace(sample, psf=psf, limits=limits)
    if not folder.exists():
        write_clip(folder, part_of(place.grid, window), sample, place.layers, row.unit)
    return replace(row, cloud=cloud, **facts)  # type: ignore[arg-type]  # the names are those of floats


def _lights(place: Place, window: Window) -> tuple[Floats, Floats]:
    values, valid = place.scene.read_ntl(window)
    return values, valid.astype(np.float32)


def judge_lights(values: Floats, valid: Floats, rules: Rules) -> tuple[dict[str, float], str]:
    """Return what the index says of NTL (h, w) with its mask, and why it is not good enough ("" where it is)."""
    seen = values[valid != 0].astype(np.float64)
    lit = float(np.mean(seen > rules.lit)) if seen.size else 0.0
    facts = {"valid": seen.size / values.size, "lit": lit, "sum_lights": float(seen.sum())}
    if facts["valid"] < rules.min_valid:
        return facts, "with too much NTL nodata"
    return facts, "too dark" if lit < rules.min_lit else ""


def _judge_layers(sample: Sample, cloud: float, layers: Sequence[str], rules: Rules) -> str:
    if "ntl_hr" in layers and float(sample.ntl_hr_valid.mean()) < rules.min_valid:
        return "with too much HR NTL nodata"
    return "too cloudy" if cloud > rules.max_cloud else ""


def _nothing(request: ClipRequest, rejected: Mapping[str, int]) -> str:
    if not rejected:
        return (
            f"{request.place} holds no clip of {request.plan.clip_min} LR pixels a side inside its blocks; use a "
            "smaller `clip`"
        )
    why = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    return f"no clip of {request.place} is good enough ({why}); relax `min_valid`, `max_cloud` or `min_lit`"


def _record(request: ClipRequest, report: CutReport) -> None:
    """Add the place, its options and counts to tree.json."""
    path = request.out / RECORD
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:  # a record for people: what is damaged is begun anew
        held = {}
    options: dict[str, Any] = json.loads(_fingerprint(request))
    told = {"options": options, "clips": dict(report.clips), "rejected": dict(report.rejected)}
    places = {**held.get("places", {}), _stem(request): told}
    text = json.dumps({"schema": SCHEMA, "places": places}, indent=2, ensure_ascii=False) + "\n"
    write_file(path, [text.encode()])
