"""An output in regions: a COG for each square of packs, which are assembled side by side, and a VRT over them.

A region is assembled in the folder of the packs and gets its name in the output's folder in one step. So a process
that wakes up when its run is over cannot put a region into a later one: the folder of its packs is gone. A note beside
the packs says that a region is finished.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import (
    DISK,
    Disk,
    disk_errors,
    remove_leftovers,
    remove_sidecars,
    replacing,
    write_file,
)
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import counted
from deeplight.engine.output.cog import check_packs, check_storable, write_cog
from deeplight.engine.output.hands import Hands, Piece
from deeplight.engine.output.pack_format import DamagedPack, overview_levels
from deeplight.engine.output.packs import PATIENCE_S, PAUSE_S, OutputSpec, PackStore
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.stac import COLLECTION
from deeplight.engine.output.vrt import VrtSource, vrt_band, vrt_text

SPLIT_TAG = "DEEPLIGHT_OPTION_SPLIT"
"""A tag that regions and their VRT have, and no other file."""
_NAME = re.compile(
    r"lights_r(\d{4,})_c(\d{4,})\.(tif|stac\.json)(\.(msk|ovr|aux\.xml|msk\.ovr|msk\.aux\.xml))?"
)
_NOTE = ".region"


def region_name(piece: Piece) -> str:
    """The name of the file of a region, by its row and column."""
    return f"lights_r{piece[0]:04d}_c{piece[1]:04d}.tif"


def piece_of(name: str) -> Piece:
    """Row and column of a region, by the name of its file. Raises ValueError where it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no region")
    return int(match[1]), int(match[2])


def region_window(piece: Piece, side: int, spec: OutputSpec) -> Window:
    """The HR pixels of a region of so many pixels a side."""
    full = Window(piece[0] * side, piece[1] * side, side, side)
    return full.clipped(spec.grid.height, spec.grid.width)


@dataclass(frozen=True)
class MapRegions:
    """The regions of an output: a job whose pieces are their rows and columns.

    folder: of the output. side: of a region, in packs. told: is advanced by each region.
    """

    store: PackStore
    folder: Path
    side: int
    told: Progress = field(default_factory=Silent)
    disk: Disk = DISK

    @property
    def levels(self) -> int:
        """Overview levels of each region, those at the edges included: they are those of the whole output."""
        side = self.side * self.store.side
        return min(self.store.spec.levels, overview_levels(side, side, self.store.spec.block))

    def pieces(self) -> list[Piece]:
        """All regions, row by row."""
        rows, cols = (-(-length // self.side) for length in self.store.lattice)
        return [(row, col) for row in range(rows) for col in range(cols)]

    def window(self, piece: Piece) -> Window:
        """The HR pixels of a region."""
        return region_window(piece, self.side * self.store.side, self.store.spec)

    def path(self, piece: Piece) -> Path:
        """The file of a region."""
        return self.folder / region_name(piece)

    def do(self, piece: Piece, stop: threading.Event | None = None) -> None:
        """Make a region unless it is finished; one without data has no file.

        Raises DamagedPack, InputError where a file that is no region has its name, DeepLightError where the disk
        is full or the run is over.
        """
        if stop is not None and stop.is_set():
            return
        note = self._note(piece)
        if self._noted(note) is None:
            size = self._make(piece)
            write_file(note, [json.dumps({"bytes": size}).encode()], disk=self.disk)
        self.told.advance(1)

    def _make(self, piece: Piece) -> int:
        """Assemble a region and return the bytes of its file, 0 where there is no data."""
        rows, cols = self.store.lattice
        packs = Window(piece[0] * self.side, piece[1] * self.side, self.side, self.side).clipped(rows, cols)
        store, out = self.store.part(packs, self.levels), self.path(piece)
        try:
            keys = store.keys()
            if not any(store.index(key).blocks for key in keys):
                return 0
        except DamagedPack as error:
            store.discard(error.key)
            raise
        check_replaceable(out)
        return write_cog(store, out, within=self.store.folder, disk=self.disk).bytes

    def made(self) -> dict[Piece, int]:
        """The regions that are finished, with the bytes of their files, 0 where there is no data."""
        found = {}
        for path in self.store.folder.iterdir():  # see PackStore.present
            if path.name.endswith(_NOTE) and (size := self._noted(path)) is not None:
                found[piece_of(path.name.removesuffix(_NOTE))] = size
        return found

    def all_made(self) -> dict[Piece, int]:
        """As `made`. Names that other hosts have given may be late. Raises DeepLightError where a region is missing."""
        until = time.monotonic() + PATIENCE_S
        while len(found := self.made()) < len(self.pieces()):
            if time.monotonic() > until:
                missing = len(self.pieces()) - len(found)
                raise DeepLightError(
                    f"{counted(missing, 'regions')} of {self.folder} cannot be seen here: make the same call with "
                    "`resume=True`"
                )
            time.sleep(PAUSE_S)
        return found

    def _note(self, piece: Piece) -> Path:
        return self.store.folder / f"{region_name(piece)}{_NOTE}"

    def _noted(self, note: Path) -> int | None:
        """The bytes of a region that is noted as finished and is there as it was; None where it is not."""
        try:
            size = int(json.loads(note.read_bytes())["bytes"])
            path = self.folder / note.name.removesuffix(_NOTE)
            return size if size == 0 or path.stat().st_size == size else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def published(self) -> Iterator[RegionsToMake]:
        """The job for other processes."""
        yield RegionsToMake(self.folder, self.side)


@dataclass(frozen=True)
class RegionsToMake:
    """MapRegions for other processes."""

    folder: Path
    side: int

    def job(self, store: PackStore) -> MapRegions:
        """The job, in a process that has the packs."""
        return MapRegions(store, self.folder, self.side)

    def size(self, piece: Piece) -> int:
        """MapRegions are counted, for they are not known by their bytes."""
        return 1


def assemble_regions(
    store: PackStore,
    vrt: Path,
    side: int,
    *,
    hands: Hands,
    verify: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    disk: Disk = DISK,
) -> dict[Piece, int]:
    """Make all regions of `side` packs a side into the folder of `vrt`, which appears when they are there.

    Returns their rows and columns with the bytes of their files, 0 where there is no data and no file. Those that are
    finished stay. What an older output in regions has besides is removed. verify: looks at the finished VRT, see
    `assemble`. Equal packs give equal bytes. Raises as `assemble`, and InputError where a foreign file has the name of
    a region.
    """
    check_packs(store)
    check_storable(store.spec)
    remove_leftovers(vrt.parent, (vrt.name,), disk=disk)
    with progress or Silent() as told:
        regions = MapRegions(store, vrt.parent, side, told, disk)
        waiting = [piece for piece in regions.pieces() if piece not in regions.made()]
        told.start(len(waiting), "regions", "assembling")
        if waiting:
            _remove_shown(vrt, disk)
            hands.do(regions, waiting)
    made = regions.all_made()
    files = [piece for piece in regions.pieces() if made[piece]]
    empty = len(made) - len(files)
    without = f"; {counted(empty, 'regions')} without data {'has' if empty == 1 else 'have'} none"
    told.log(f"{counted(len(files), 'regions')} with a file{without if empty else ''}")
    _remove_others({region_name(piece) for piece in files}, vrt.parent, disk)

    def accept(path: Path) -> None:
        _check_vrt(path, store.spec)
        if verify is not None:
            verify(path)
        remove_sidecars(vrt, disk=disk)

    text = regions_vrt(
        store.spec, {region_name(piece): regions.window(piece) for piece in files}, regions.levels
    )
    with replacing(vrt, check=accept, disk=disk) as file:
        file.write(text.encode())
    return made


def regions_vrt(spec: OutputSpec, files: Mapping[str, Window], levels: int) -> str:
    """The text of the VRT over regions. files: their names and HR pixels. levels: overviews that each of them has."""
    bands = (
        vrt_band(
            n, spec, band.name, band.unit, [VrtSource(name, n, window) for name, window in files.items()]
        )
        for n, band in enumerate(spec.bands, 1)
    )
    return vrt_text(spec.grid, bands, dict(sorted(spec.tags.items())), [2**k for k in range(1, levels + 1)])


def files_of(vrt: Path) -> list[Path]:
    """The regions that a finished VRT shows, in its order. Raises InputError where one is missing, or no region,
    or the VRT is damaged."""
    try:
        names = [
            e.text or "" for e in ElementTree.parse(vrt).iterfind("VRTRasterBand[@band='1']//SourceFilename")
        ]
        found = [vrt.with_name(region_name(piece_of(name))) for name in names]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"{vrt} cannot be read ({error}): use `overwrite=True` to start again") from None
    missing = next((path for path in found if not _is_own(path)), None)
    if missing is not None:
        what = "damaged" if missing.exists() else "missing"
        raise InputError(
            f"{missing} is {what}, which {vrt} shows: put it back, or remove it and use `overwrite=True` to start again"
        )
    return found


def check_folder_of_regions(vrt: Path, mode: Mode, *, shard: bool = False) -> None:
    """Refuse a folder in which a run would replace files that are no regions, or regions without being told to.

    shard: others may be at work beside it, and it makes no region. Raises InputError.
    """
    names = sorted(path for path in vrt.parent.iterdir() if _NAME.fullmatch(path.name))
    for path in names[: 1 if mode is Mode.NEW else None]:
        if path.suffix == ".tif" or path.is_dir():
            check_replaceable(path)
    if names and mode is Mode.NEW:
        raise InputError(f"{names[0]} exists: use `overwrite=True` to replace it, or choose another folder")
    if names and mode is Mode.RESUME and not shard and not parts_folder(vrt).exists():
        raise InputError(
            f"{names[0]} is of a map without {vrt.name} and there is no unfinished run to continue: use "
            "`overwrite=True` to replace it, or choose another folder"
        )


def check_replaceable(path: Path) -> None:
    """Raise InputError where a file is neither a region nor the VRT over regions."""
    if (path.is_symlink() or path.exists()) and not _is_own(path):
        raise InputError(
            f"{path} is not of a map in regions, and its name is needed for one: move it away, or choose another "
            "folder"
        )


def _is_own(path: Path) -> bool:
    import rasterio
    from rasterio.errors import RasterioIOError

    if path.is_symlink() or not path.is_file():
        return False
    try:
        if path.suffix == ".vrt":  # GDAL would open what it names
            return ElementTree.parse(path).find(f"Metadata/MDI[@key='{SPLIT_TAG}']") is not None
        with rasterio.open(path, driver="GTiff") as dataset:
            return SPLIT_TAG in dataset.tags()
    except (RasterioIOError, ElementTree.ParseError, OSError):
        return False


def _remove_shown(vrt: Path, disk: Disk) -> None:
    """Remove the VRT of an older output before its first region is replaced, so that it never shows two maps, and the
    STAC collection and items, which tell of files that go."""
    check_replaceable(vrt)
    collection = vrt.with_name(COLLECTION)
    stale = [collection] if is_collection_of_regions(collection) else []
    stale += [
        path for path in vrt.parent.iterdir() if (m := _NAME.fullmatch(path.name)) and m[3] == "stac.json"
    ]
    for path in (vrt, *stale):
        with disk_errors(path):
            disk.remove(path)
    with disk_errors(vrt):
        disk.sync_folder(vrt.parent)


def is_collection_of_regions(path: Path) -> bool:
    """Whether a file is a STAC collection of nothing but regions."""
    try:
        links: Sequence[dict[str, str]] = json.loads(path.read_bytes())["links"]
        items = [Path(link["href"]).name for link in links if link["rel"] == "item"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_NAME.fullmatch(name) for name in items)


def _remove_others(names: set[str], folder: Path, disk: Disk) -> None:
    """Remove regions that are not among these names, with what stands beside them. What is no region stays."""
    others = [path for path in folder.iterdir() if path.suffix == ".tif" and _NAME.fullmatch(path.name)]
    for path in others:
        if path.name not in names and _is_own(path):
            remove_sidecars(path, disk=disk)
            with disk_errors(path):
                disk.remove(path.with_suffix(".stac.json"))
                disk.remove(path)


def _check_vrt(path: Path, spec: OutputSpec) -> None:
    """Raise DeepLightError where GDAL does not read the VRT as the output."""
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path, driver="VRT") as dataset:
            found = (dataset.count, dataset.height, dataset.width)
    except RasterioIOError as error:
        raise DeepLightError(
            f"the VRT does not read back ({error}): check the disk, then make the same call with "
            "`resume=True`"
        ) from error
    if found != (len(spec.bands), *spec.grid.shape):
        raise DeepLightError(f"the VRT has {found} bands, rows and columns: report this")
