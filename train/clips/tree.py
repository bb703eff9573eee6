"""Sources of samples: clip trees, several of them, and a synthetic scene's folder; paired or by Wald's protocol."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import SceneOptions
from deeplight.train.clips.ceiling import ceiling_of_clips
from deeplight.train.clips.data_folders import data_folders
from deeplight.train.clips.degrade import Degradation
from deeplight.train.clips.files import ClipFiles
from deeplight.train.clips.index import INDEX, ClipRow, check_leaks, read_index
from deeplight.train.clips.place import Place, PlaceOptions
from deeplight.train.clips.samples import ClipError, Sample, SampleSource
from deeplight.train.clips.wald import WaldSource

PROTOCOLS = ("paired", "wald")
ALL = "all"
"""The split of everything."""
_SCENE = {"ntl": "ntl.tif", "ntl_hr": "ntl_hr.tif", "isp": "isp.tif", "dmo": "dmo.tif", "dem": "dem.tif"}
_OPEN_CLIPS = 16
_CHECKED_FILES = 1000
_CHECKED_BYTES = 4096
_STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
_STRIP_BUFFER = 4


@dataclass(frozen=True)
class _Clip:
    tree: Path
    row: ClipRow

    @property
    def name(self) -> str:
        return f"{self.row.clip} of {self.tree}"


class ClipTree:
    """The clips of one split, of one tree or several. Files are opened when read and a few kept open."""

    def __init__(self, clips: Sequence[_Clip]) -> None:
        self._clips = tuple(clips)
        self._open: OrderedDict[int, ClipFiles] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path | str | Sequence[Path | str], split: str, hold_out_place: Sequence[str] = ()
    ) -> ClipTree:
        """Open the clips of `split`, which is the name of a split or of a held-out region, or "all".

        hold_out_place: these places are the test split, whole, and in no other. Raises InputError where a tree cannot
        be understood, where the splits leak, and where the split is empty.
        """
        folders = [folder] if isinstance(folder, Path | str) else list(folder)
        clips = [_Clip(Path(tree), row) for tree in folders for row in read_index(Path(tree))]
        where = ", ".join(str(tree) for tree in folders)
        if hold_out_place:
            clips = _held_out(clips, hold_out_place, where)
        check_leaks([clip.row for clip in clips], where)
        found = [clip for clip in clips if split in (ALL, clip.row.split)]
        if not found:
            there = ", ".join(sorted({clip.row.split for clip in clips})) or "none"
            raise InputError(
                f"{where} has no clips in split {split}; its splits are {there}: choose one, or cut more"
            )
        return cls(found)

    def __len__(self) -> int:
        return len(self._clips)

    def __getstate__(self) -> dict[str, Any]:
        return {"_clips": self._clips}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_clips"])  # type: ignore[misc]  # file handles do not travel

    @property
    def rows(self) -> list[ClipRow]:
        """The rows of the index that describe these clips."""
        return [clip.row for clip in self._clips]

    def size(self, index: int) -> tuple[int, int]:
        """Return the clip's height and width in LR pixels."""
        row = self._clips[index].row
        return row.height, row.width

    def name(self, index: int) -> str:
        """Return the clip's folder and tree, for messages."""
        return self._clips[index].name

    def key(self, index: int) -> str:
        """Return the clip's folder inside its tree, which names it for random draws."""
        return self._clips[index].row.clip

    @property
    def ceiling(self) -> float:
        """The NTL value from which the clips are saturated; see `ceiling.ceiling_of_clips`."""
        return ceiling_of_clips((clip.tree, clip.row) for clip in self._clips)

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window; only the blocks that the window touches are decoded."""
        return self._files(index, window).read(window)

    def read_ntl(self, index: int, window: Window) -> tuple[Floats, Floats]:
        """Return only NTL and its mask, (1, h, w) each."""
        return self._files(index, window).read_ntl(window)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows, of the sizes of all files and of pieces of up to a thousand of them."""
        digest = hashlib.sha256()
        files: list[Path] = []
        for clip in self._clips:
            digest.update(repr(clip.row).encode())
            files += sorted((clip.tree / clip.row.clip).glob("*.tif"))
        chosen = set(np.linspace(0, len(files) - 1, min(len(files), _CHECKED_FILES)).astype(int).tolist())
        for number, path in enumerate(files):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            if number in chosen:
                _add_pieces(digest, path)
        return digest.hexdigest()

    def _files(self, index: int, window: Window) -> ClipFiles:
        clip, (height, width) = self._clips[index], self.size(index)
        if window.clipped(height, width) != window:
            raise ValueError(f"{window} is not inside the {height}x{width} LR pixels of clip {clip.name}")
        with self._lock:
            files = self._open.pop(index, None)
            if files is None:
                files = _opened(clip)
            # handles of those dropped close with their last user
            self._open[index] = files
            while len(self._open) > _OPEN_CLIPS:
                self._open.popitem(last=False)
        return files


def _opened(clip: _Clip) -> ClipFiles:
    row = clip.row
    files = ClipFiles(clip.tree / row.clip, clip.name, tuple(row.layers.split()))
    if (files.grid.height, files.grid.width) != (row.height, row.width):
        raise ClipError(
            f"clip {clip.name}: ntl.tif has {files.grid.height}x{files.grid.width} pixels and the index says "
            f"{row.height}x{row.width}; cut the clip again"
        )
    return files


def _add_pieces(digest: Any, path: Path) -> None:
    """The beginning, the middle and the end of a file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _CHECKED_BYTES)):
            file.seek(start)
            digest.update(file.read(_CHECKED_BYTES))


def _held_out(clips: Sequence[_Clip], places: Sequence[str], where: str) -> list[_Clip]:
    """Leave places out: theirs are the test split, whole; the test clips of the others go unused."""
    there = {clip.row.place for clip in clips}
    for place in places:
        if place not in there:
            raise InputError(
                f"{where} has no place {place} to hold out; its places are {', '.join(sorted(there))}"
            )
    out = [clip for clip in clips if clip.row.place not in places and clip.row.split in ("train", "val")]
    held = (clip for clip in clips if clip.row.place in places)
    return out + [_Clip(clip.tree, replace(clip.row, split="test")) for clip in held]


class SceneSource:
    """A folder with a synthetic scene's rasters as a source of one place, read on the fly.

    Along its longer side the first 60 % are train, then 20 % val and 20 % test, 4 LR px apart; "all" is the whole.
    """

    def __init__(self, folder: Path, split: str, least: int = 1) -> None:
        """least: LR pixels that each split must be long. Raises InputError where one would not be."""
        self._folder, self._split = folder, split
        self._place: Place | None = None
        self._lock = threading.Lock()
        grid = self._opened().grid
        self._window = _strip(grid.height, grid.width, split, folder, least)

    def __len__(self) -> int:
        return 1

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_split": self._split, "_window": self._window}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _place=None, _lock=threading.Lock())

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width of the split's strip in LR pixels."""
        return self._window.shape

    def name(self, index: int) -> str:
        """Return the scene's folder and the split, for messages."""
        return f"{self._split} of {self._folder}"

    def key(self, index: int) -> str:
        """Return the split, which names the place for random draws."""
        return self._split

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window of the split's strip."""
        with _naming(self.name(index)):
            return self._opened().read(self._inside(window))

    def read_ntl(self, index: int, window: Window) -> tuple[Floats, Floats]:
        """Return only NTL and its mask, (1, h, w) each."""
        with _naming(self.name(index)):
            values, valid = self._opened().scene.read_ntl(self._inside(window))
        return values[None], valid.astype(np.float32)[None]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the window, of the sizes of the files and of pieces of them."""
        digest = hashlib.sha256(repr((self._split, self._window)).encode())
        for path in sorted(self._folder.glob("*.tif")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            _add_pieces(digest, path)
        return digest.hexdigest()

    def _inside(self, window: Window) -> Window:
        if window.clipped(*self._window.shape) != window:
            raise ValueError(f"{window} is not inside the {self._window.shape} LR pixels of {self.name(0)}")
        return Window(
            window.row + self._window.row, window.col + self._window.col, window.height, window.width
        )

    def _opened(self) -> Place:
        with self._lock:
            if self._place is None:
                self._place = Place(scene_options(self._folder))
            return self._place


class _naming:
    """Turns an error inside the block into a ClipError that names the place."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DeepLightError):
            raise ClipError(f"{self._name}: {error}") from error


def scene_options(folder: Path) -> PlaceOptions:
    """The rasters of a folder with the names that `deeplight-data synth` gives; all but ntl.tif may be missing."""
    there = {layer: str(folder / name) for layer, name in _SCENE.items() if (folder / name).exists()}
    scene = SceneOptions(ntl=str(folder / "ntl.tif"), dmo=there.get("dmo"), dem=there.get("dem"))
    offset = folder / "offset.tif"
    return PlaceOptions(
        scene,
        ntl_hr=there.get("ntl_hr"),
        isp=there.get("isp"),
        offset=str(offset) if offset.exists() else None,
    )


def _strip(height: int, width: int, split: str, folder: Path, least: int) -> Window:
    if split == ALL:
        return Window(0, 0, height, width)
    if split not in _STRIPS:
        raise InputError(f"the scene {folder} has no split {split}; choose {', '.join(_STRIPS)} or {ALL}")
    longest = max(height, width)
    first, last = _ends(longest, split)
    if last - first < least:
        enough = next(n for n in itertools.count(longest + 1) if min(_length(n, s) for s in _STRIPS) >= least)
        raise InputError(
            f"the scene {folder} of {height}x{width} LR pixels is too small to split into {', '.join(_STRIPS)}; its "
            f"longer side must have {enough} LR pixels at least"
        )
    return (
        Window(0, first, height, last - first) if width >= height else Window(first, 0, last - first, width)
    )


def _ends(longest: int, split: str) -> tuple[int, int]:
    """The first LR pixel of a split's strip, and the one after its last."""
    first, last = (round(longest * share) for share in _STRIPS[split])
    return first + (_STRIP_BUFFER if first else 0), last


def _length(longest: int, split: str) -> int:
    first, last = _ends(longest, split)
    return last - first


def open_source(
    data: str, split: str, protocol: str, degradation: Degradation, hold_out_place: Sequence[str] = ()
) -> SampleSource:
    """Open the source of the samples of `split`.

    data: a clip tree, several separated by commas, or the folder of a synthetic scene (ntl.tif dmo.tif dem.tif isp.tif
    ntl_hr.tif). split: train, val, test, a held-out region's name, or all. protocol: "paired", or "wald", which uses
    `degradation` and leaves places out that are smaller than 8 LR px. hold_out_place: see ClipTree.open.
    Raises InputError in one sentence for everything that cannot be used.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"{protocol!r} is no protocol; choose {' or '.join(PROTOCOLS)}")
    folders = data_folders(data)
    source: SampleSource
    if len(folders) == 1 and not (folders[0] / INDEX).exists():
        if not (folders[0] / "ntl.tif").exists():
            raise InputError(
                f"{folders[0]} has no {INDEX} and no ntl.tif; give a clip tree, which deeplight-data clip makes, or a "
                "scene's folder"
            )
        if hold_out_place:
            raise InputError(
                f"{folders[0]} is a synthetic scene, which has no places to hold out; give clip trees"
            )
        source = SceneSource(folders[0], split, SCALE if protocol == "wald" else 1)
    else:
        source = ClipTree.open(folders, split, hold_out_place)
    if protocol == "wald":
        return WaldSource(source, degradation)
    _check_paired(source, data)
    return source


def _check_paired(source: SampleSource, data: str) -> None:
    """Refuse places without HR lights before any training begins."""
    if isinstance(source, ClipTree):
        bare = [row.clip for row in source.rows if "ntl_hr" not in row.layers.split()]
        if bare:
            raise InputError(
                f"{len(bare)} of {len(source)} clips of {data} have no HR lights (such as {bare[0]}); use "
                '`protocol="wald"`, which needs none'
            )
    elif isinstance(source, SceneSource) and not (Path(data.strip(", ")) / "ntl_hr.tif").exists():
        raise InputError(f'{data} has no ntl_hr.tif; use `protocol="wald"`, which needs none')
