"""What a table by region is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import Quality
from deeplight.engine.output.acquired import Span

LIT = 1.0
"""nW/cm²/sr, or DN: from it on a pixel counts as lit. About twice the noise of one VIIRS night (0.45, the largest of
the products in engine/raster/products.py), three times that of DMSP's whole numbers (0.29)."""
TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class ZonalOptions:
    """One table.

    maps: a raster for each date. dates: theirs, None where names and metadata say them. by: the column with the
    regions' names. layer: of the file of regions. threshold: see LIT. without: pixels with one of these flags in the
    quality band count as missing. map_band, map_scale (factor, offset), map_unit, map_nodata: of the maps, in place of
    what the files say.
    """

    maps: Sequence[str]
    regions: Path
    dates: Sequence[Span] | None = None
    by: str | None = None
    layer: str | None = None
    threshold: float = LIT
    without: Quality = field(default=Quality(0))
    map_band: int | None = None
    map_scale: tuple[float, float] | None = None
    map_unit: str | None = None
    map_nodata: float | None = None
    allow_remote: bool = False


def parse_flags(text: str) -> Quality:
    """`SATURATED_LR,DMO_MISSING` or `any` → the flags. Raises ValueError in one sentence."""
    flags = Quality(0)
    for name in (part.strip() for part in text.split(",")):
        if name.lower() == "any":
            return ~Quality(0)
        if name.upper() not in Quality.__members__:
            raise ValueError(f"{name!r} is no flag: choose from any, {', '.join(Quality.__members__)}")
        flags |= Quality[name.upper()]
    return flags


def check_output(path: Path | None, endings: tuple[str, ...], option: str, overwrite: bool) -> None:
    """Raises InputError for a file to write whose name ends in another way, that is there already, or whose folder is
    not."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise InputError(
            f"{option} {path} does not end in {' or '.join(endings)}: give it one of these endings"
        )
    if not path.parent.is_dir():
        raise InputError(
            f"{option} {path} is in a folder that does not exist: make it first, or choose another"
        )
    if path.exists() and not overwrite:
        raise InputError(f"{option} {path} exists: choose another name, or replace it with `overwrite=True`")
