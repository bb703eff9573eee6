"""A run whose output is a folder of regions: the request, and the folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import mention
from deeplight.engine.output.folders import made_folder
from deeplight.engine.output.vrt import VRT
from deeplight.engine.run.tiling import pack_side

if TYPE_CHECKING:
    from deeplight.engine.run.options import RunOptions

_FILES = (".tif", ".tiff", ".vrt", ".zarr")


@contextlib.contextmanager
def in_folder(options: RunOptions) -> Iterator[RunOptions]:
    """The run, or, where it is to be split, that into the VRT of the folder `options.out`, which is there while the
    block runs, and stays if something was written into it. Raises InputError where it cannot be made."""
    if options.split is None:
        yield options
        return
    check_folder_name(options)
    check_side(options)
    with made_folder(options.out):
        yield replace(options, out=options.out / VRT)


def check_folder_name(options: RunOptions) -> None:
    """Raise InputError where `out` is the name of a file."""
    out = options.out
    if out.suffix.lower() in _FILES and not out.is_dir():
        raise InputError(
            f"`split` writes a folder of regions and {out} is the name of a file: give that of a folder, as in "
            f"{mention(out=str(out.with_suffix('')))}"
        )


def check_side(options: RunOptions, pack: int | None = None) -> None:
    """Raise InputError where a region is not made of whole packs. pack: their side in LR pixels, None: the smallest
    that these tiles may have."""
    given = options.tiles.core if options.tiles is not None else None
    side = pack_side(given or 1) if pack is None else pack
    if options.split is None or options.split % side == 0:
        return
    nearest = max(side, (options.split + side // 2) // side * side)
    raise InputError(
        f"`split={options.split}` is not a multiple of {side}, the LR pixels of a pack's side with these tiles: give "
        f"one, such as {nearest}"
    )
