"""The index of a clip tree: one row a clip, and the check that no split leaks into another."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.raster.grid import Grid

INDEX, RECORD = "index.csv", "tree.json"
_KM_PER_DEGREE = 111.195
"""Of latitude, on a sphere of 6371 km."""
_LARGEST = 1e15
"""Numbers beyond are no pixels, degrees or lights; whole ones below are exact as floats."""


@dataclass(frozen=True)
class ClipRow:
    """What the index says of one clip.

    clip: its folder inside the tree, split/name. place, date: where and when, as given; date may be empty. lattice:
    names the LR grid that row, col, height and width (LR px) count on, see `lattice_of`. block: that of the split.
    west … north: degrees. crs, left … top: the clip's own. layers: names of its rasters, separated by blanks. unit: of
    NTL. buffer: LR px that were kept to other splits; pixel_km: the longer side of an LR pixel. valid, lit: shares of
    LR pixels, of valid LR pixels; cloud: share of HR pixels, 0 where no mask was given. sum_lights: of the valid LR
    pixels.
    """

    clip: str
    place: str
    date: str
    split: str
    lattice: str
    row: int
    col: int
    height: int
    width: int
    block: str
    west: float
    south: float
    east: float
    north: float
    crs: str
    left: float
    bottom: float
    right: float
    top: float
    layers: str
    unit: str
    buffer: int
    pixel_km: float
    valid: float
    cloud: float
    lit: float
    sum_lights: float


COLUMNS = tuple(field.name for field in fields(ClipRow))


def lattice_of(grid: Grid) -> str:
    """Return a short name of a grid's CRS and transform. Rows and columns of grids with equal names can be compared."""
    told = f"{grid.crs.to_wkt()} {[f'{v:.12g}' for v in grid.transform[:6]]}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def read_index(tree: Path) -> list[ClipRow]:
    """Read the rows of a tree. Raises InputError where the index is missing or cannot be understood."""
    path = tree / INDEX
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{tree} has no {INDEX}; give a clip tree, which deeplight-data clip makes"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); make the tree again") from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; docs/data.md lists the columns")
    return [_row(line, values, path) for line, values in enumerate(reader, start=2)]


def _row(line: int, values: Mapping[str, str | None], path: Path) -> ClipRow:
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    given: dict[str, Any] = {}
    for field in fields(ClipRow):
        text = values[field.name]
        try:
            given[field.name] = kinds[str(field.type)](text if text is not None else "")
            usable = field.type == "str" or abs(given[field.name]) <= _LARGEST  # false for NaN too
        except ValueError:
            usable = False
        if not usable:
            raise InputError(
                f"{path}, line {line}: {field.name} is {reprlib.repr(text)} and must be a number; correct it, or "
                "make the tree again"
            )
    row = ClipRow(**given)
    parts = Path(row.clip).parts
    if len(parts) != 2 or ".." in parts or Path(row.clip).is_absolute():
        raise InputError(
            f"{path}, line {line}: clip {row.clip!r} is not SPLIT/NAME inside the tree; correct it"
        )
    if min(row.height, row.width) < 1:
        raise InputError(f"{path}, line {line}: the clip has {row.height}x{row.width} LR pixels; correct it")
    if min(row.buffer, row.pixel_km) < 0:
        raise InputError(
            f"{path}, line {line}: buffer {row.buffer} and pixel_km {row.pixel_km} must not be negative; correct them"
        )
    return row


def write_index(tree: Path, rows: Iterable[ClipRow]) -> None:
    """Write the index, sorted by clip, durably and in one step."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda r: r.clip):
        writer.writerow([_text(getattr(row, name)) for name in COLUMNS])
    write_file(tree / INDEX, [buffer.getvalue().encode()])


def _text(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def check_leaks(rows: Sequence[ClipRow], where: str) -> None:
    """Raise InputError where clips of different splits overlap, or lie nearer to each other than their buffer.

    On one lattice that is counted in LR px; between lattices in km between bounding boxes in longitude and latitude,
    which are never smaller than the clips.
    """
    by_split = {
        name: list(group) for name, group in itertools.groupby(sorted(rows, key=_split_of), key=_split_of)
    }
    for one, other in itertools.combinations(by_split.values(), 2):
        few, many = sorted((one, other), key=len)
        columns = _Columns(many)
        for row in few:
            # what cannot be compared counts as a leak
            gap = np.nan_to_num(columns.shortfall(row), nan=np.inf)
            worst = int(np.argmax(gap))
            if gap[worst] > 0:
                _refuse(row, many[worst], where)


def _split_of(row: ClipRow) -> str:
    return row.split


def _refuse(row: ClipRow, other: ClipRow, where: str) -> None:
    if row.lattice == other.lattice:
        apart = int(_pixels_apart(row, other))
        told = f"overlap by {-apart} LR pixels" if apart < 0 else f"are {apart} LR pixels apart"
        told += f" (buffer {max(row.buffer, other.buffer)})"
    else:
        kept = max(row.buffer * row.pixel_km, other.buffer * other.pixel_km)
        told = f"are nearer than their buffer of {kept:.2g} km"
    raise InputError(
        f"the splits of {where} leak: clips {row.clip} and {other.clip} {told}; cut again with one `block` and `seed`, "
        "or hold out whole places"
    )


def _pixels_apart(a: ClipRow, b: ClipRow) -> int:
    down = max(a.row - (b.row + b.height), b.row - (a.row + a.height))
    across = max(a.col - (b.col + b.width), b.col - (a.col + a.width))
    return max(down, across)


class _Columns:
    """Rows as arrays, to compare one row with all of them at once."""

    def __init__(self, rows: Sequence[ClipRow]) -> None:
        def numbers(name: str) -> NDArray[np.float64]:
            return np.array([getattr(row, name) for row in rows], np.float64)

        codes = {name: code for code, name in enumerate(dict.fromkeys(row.lattice for row in rows))}
        self.codes, self.lattice = codes, np.array([codes[row.lattice] for row in rows])
        self.row, self.col, self.height, self.width = map(numbers, ("row", "col", "height", "width"))
        self.bottom, self.right = self.row + self.height, self.col + self.width
        self.west, self.south, self.east, self.north = map(numbers, ("west", "south", "east", "north"))
        self.buffer = numbers("buffer")
        self.buffer_km = self.buffer * numbers("pixel_km")

    def shortfall(self, a: ClipRow) -> NDArray[np.float64]:
        """By how much (> 0: a leak) each row is nearer to `a` than the larger of their buffers; in px, or km."""
        same = self.lattice == self.codes.get(a.lattice, -1)
        if same.all():
            return self._pixels(a)
        return np.where(same, self._pixels(a), self._km(a)) if same.any() else self._km(a)

    def _pixels(self, a: ClipRow) -> NDArray[np.float64]:
        down = np.maximum(a.row - self.bottom, self.row - (a.row + a.height))
        across = np.maximum(a.col - self.right, self.col - (a.col + a.width))
        # clips that touch are 0 apart, those that overlap less: they leak whatever the buffer
        return np.asarray(np.maximum(self.buffer, a.buffer) - np.maximum(down, across), np.float64)

    def _km(self, a: ClipRow) -> NDArray[np.float64]:
        lat = np.maximum(a.south - self.north, self.south - a.north) * _KM_PER_DEGREE
        turn = np.mod((self.west + self.east - a.west - a.east) / 2 + 180.0, 360.0) - 180.0
        apart = np.abs(turn) - (self.east - self.west + a.east - a.west) / 2
        here = max(abs(a.south), abs(a.north))
        highest = np.maximum(np.maximum(np.abs(self.south), np.abs(self.north)), here)
        lon = apart * _KM_PER_DEGREE * np.cos(np.radians(np.minimum(highest, 90.0)))
        kept = np.maximum(self.buffer_km, a.buffer * a.pixel_km)
        return np.asarray(kept - np.maximum(lat, lon), np.float64)


def pixel_km(grid: Grid) -> float:
    """Return the longer side of the pixel in the middle of a grid, in km, right to a few parts in a thousand."""
    t = grid.transform
    if not grid.crs.is_geographic:
        unit = grid.crs.linear_units_factor[1] / 1000.0
        return float(max(math.hypot(t.a, t.d), math.hypot(t.b, t.e)) * unit)
    latitude = t.d * grid.width / 2 + t.e * grid.height / 2 + t.f
    east = math.hypot(t.a, t.b) * math.cos(math.radians(min(90.0, abs(latitude))))
    return float(max(east, math.hypot(t.d, t.e)) * _KM_PER_DEGREE)
