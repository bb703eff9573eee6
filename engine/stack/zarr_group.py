"""A Zarr group in place of a folder of maps: its checks, its temporary folder, and its final name.

Each date is computed as for a folder, into OUT.zarr.parts. Its finished map is copied into the group in that folder and
then removed. The group gets its final name when all dates are in it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import DISK, disk_errors, make_folder, remove_leftovers, temporary_name
from deeplight.engine.core.locks import exclusive
from deeplight.engine.output.acquired import parse_date
from deeplight.engine.output.dates_zarr import REMOVED, DatesZarr, date_key, publish, require_zarr
from deeplight.engine.output.model_item import write_model_item
from deeplight.engine.output.parts import LOCK, Mode, busy, check_folder, check_writable, exists, parts_folder
from deeplight.engine.output.stac import item_path, require_pystac, write_group_item
from deeplight.engine.run.provenance import differing_tag
from deeplight.engine.stack.options import OFFSET_FILE, REPORT
from deeplight.engine.stack.pages import DatesPage

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.report import RunReport
    from deeplight.engine.runtime.manifest import Manifest
    from deeplight.engine.stack.nights import Night
    from deeplight.engine.stack.options import StackOptions

STORE, _NEW_STORE = "store", "store.new"
_MODEL = "DEEPLIGHT_MODEL_SHA256"


def check_group(options: StackOptions, nights: Sequence[Night]) -> None:
    """Raise InputError for what can be refused before a file is opened."""
    require_zarr()
    run = options.run
    if run.stac:
        require_pystac()
    _check_starts([_key(night) for night in nights if night.when is not None])
    check_ours(run.out)
    if run.out.is_dir():
        check_folder(run.out)
    else:
        check_writable(run.out, (".zarr",))
    if run.mode is Mode.NEW and exists(run.out):
        raise InputError(f"{run.out} exists: use `overwrite=True` to replace it, or choose another name")


def _check_starts(keys: Sequence[str]) -> None:
    """Raise InputError where two of these dates begin on one day."""
    first: dict[object, str] = {}
    for key in keys:
        other = first.setdefault(parse_date(key)[0], key)
        if other is not key:
            raise InputError(
                f"{other} and {key} begin on one day, which a time axis cannot hold: leave one out, or give a folder "
                "as `out`"
            )


def check_ours(out: Path) -> None:
    """Refuse a folder that no run of DeepLight made, since it would be removed."""
    if exists(out) and (out.is_symlink() or DatesZarr.open(out) is None):
        what = "a file" if out.is_file() else "not a Zarr group of deeplight-infer"
        raise InputError(f"{out} is {what}, and would be removed: move it away, or choose another name")
    parts = parts_folder(out)
    known = (STORE, _NEW_STORE, LOCK, REPORT)
    names = sorted(path.name for path in parts.iterdir()) if parts.is_dir() else []
    foreign = [n for n in names if n not in known and not n.endswith((".tif", ".parts")) and n[0] != "."]
    if foreign or parts.is_symlink() or parts.is_file():
        what = f"holds {foreign[0]}" if foreign else "is no folder of ours"
        raise InputError(
            f"{parts} {what}, which is not part of an unfinished run: move it away, because the folder is removed at "
            "the end"
        )


@contextlib.contextmanager
def claimed_group(out: Path, mode: Mode) -> Iterator[None]:
    """The temporary folder of the group, which belongs to this run alone while the block runs.

    It is removed if the block succeeds, or fails before anything was finished; else it stays for a resumed run. Raises
    InputError where another run uses the folder, or has left one and this run is not to resume or replace it.
    """
    parts = parts_folder(out)
    make_folder(parts)
    with disk_errors(parts / LOCK), exclusive(parts / LOCK, busy(out)):
        if mode is Mode.NEW and _begun(parts):
            raise InputError(
                f"{parts} holds an unfinished run: use `resume=True` to continue it or `overwrite=True` to start again"
            )
        _remove_doomed(out)
        if mode is Mode.NEW:
            _drop(parts)
        try:
            yield
        except BaseException:
            if not _begun(parts):
                with contextlib.suppress(OSError):
                    _remove(parts)
            raise
        _remove(parts)


def _begun(parts: Path) -> bool:
    """Whether the folder holds anything that is finished."""
    store = DatesZarr.open(parts / STORE)
    dates = store is not None and any(store.tags(key) is not None for key in store.keys)
    return dates or any(p.suffix in (".tif", ".pack") and p.is_file() for p in parts.rglob("*.*"))


def _remove(parts: Path) -> None:
    """Remove the folder. It is renamed first, so that no partly removed one is ever found."""
    doomed = temporary_name(parts, REMOVED)
    DISK.replace(parts, doomed)
    DISK.sync_folder(parts.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def _drop(parts: Path) -> None:
    """Remove what a stopped run left."""
    with disk_errors(parts):
        for path in parts.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, REPORT, OFFSET_FILE):
                path.unlink()


def _remove_doomed(out: Path) -> None:
    """Remove what killed runs were about to remove."""
    starts = tuple(f".{path.name}." for path in (out, parts_folder(out)))
    for path in out.parent.iterdir():
        if path.name.startswith(starts) and path.name.endswith(REMOVED):
            shutil.rmtree(path, ignore_errors=True)


class ZarrGroup:
    """Receives finished dates one after the other; `write` is called after the last."""

    def __init__(self, options: StackOptions) -> None:
        self._options = options
        self._page: DatesPage | None = None
        self._model: Manifest | None = None
        self._spec: OutputSpec | None = None
        self._begun: DatesZarr | None = None
        self._fresh = True

    @property
    def _store(self) -> DatesZarr:
        assert self._begun is not None, "begin comes first"
        return self._begun

    def begin(self, dates: Sequence[tuple[Night, OutputSpec]], model: Manifest) -> None:
        """Make the group, or take that of an earlier run, whose dates stay. model: that makes the maps. Raises
        InputError where the group belongs to another run."""
        self._model, self._spec = model, dates[0][1]
        out, mode, page = self._options.run.out, self._options.run.mode, self._options.run.page
        self._page = None if page is None else DatesPage(page, len(dates))
        place = parts_folder(out) / STORE
        if mode is Mode.OVERWRITE:
            _drop(parts_folder(out))
        finished = DatesZarr.open(out) if mode is Mode.RESUME else None
        begun = DatesZarr.open(place)
        earlier = begun or finished
        wanted = {_key(night): spec for night, spec in dates}
        if earlier is not None:
            _check_same(earlier, wanted, out)
        whole = [key for key in earlier.keys if earlier.tags(key) is not None] if earlier is not None else []
        keys = sorted({*wanted, *whole}, key=parse_date)
        _check_starts(keys)
        if earlier is not None and earlier.keys == keys and (earlier is begun or whole == keys):
            self._begun, self._fresh = earlier, earlier is begun
            return
        new = parts_folder(out) / _NEW_STORE
        shutil.rmtree(new, ignore_errors=True)
        store = DatesZarr.create(new, dates[0][1], keys)
        for key in whole:
            assert earlier is not None
            store.take(key, earlier)
        shutil.rmtree(place, ignore_errors=True)
        with disk_errors(place):
            DISK.replace(new, place)
            DISK.sync_folder(place.parent)
        self._begun = DatesZarr.open(place)

    def has(self, night: Night) -> bool:
        """Whether an earlier run has finished the date."""
        return self._store.tags(_key(night)) is not None

    def add(self, night: Night, scene: Scene, spec: OutputSpec, report: RunReport | None) -> None:
        """Copy the finished map of a date into the group. report: None if an earlier run has done it."""
        result = self._options.of(night).out
        if not self.has(night):
            self._store.put(_key(night), result, spec)
        elif self._page is not None:
            self._store.extract(_key(night), result, spec)
        if self._page is not None:
            self._page.add(scene, result, spec, report)
        with disk_errors(result):
            DISK.remove(result)

    def write(self) -> None:
        """Give the group its final name, and write the files about it. Raises DeepLightError if that is not
        possible."""
        out = self._options.run.out
        if self._fresh:
            self._store.finish()
            old = publish(self._store.path, out)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
        if self._options.run.stac:
            assert self._model is not None and self._spec is not None
            remove_leftovers(out.parent, (item_path(out).name,))
            write_model_item(out.parent, self._model)
            write_group_item(out, self._spec, [parse_date(key) for key in self._store.keys], self._model)
        if self._page is not None:
            self._page.write(out.resolve().name)


def _key(night: Night) -> str:
    assert night.when is not None, "dates of several are known"
    return date_key(night.when)


def _check_same(earlier: DatesZarr, wanted: dict[str, OutputSpec], out: Path) -> None:
    """Raise InputError where dates of an earlier run differ from what this run would compute, or do not fit to it."""
    spec = next(iter(wanted.values()))
    difference = earlier.difference(spec)
    for key in earlier.keys:
        tags = earlier.tags(key)
        if tags is None or difference is not None:
            continue
        if key in wanted:
            difference = differing_tag(tags, wanted[key].tags)
        else:
            model = {_MODEL: spec.tags[_MODEL]}
            difference = differing_tag({_MODEL: tags.get(_MODEL, "absent")}, model)
        if difference is not None:
            difference = f"{key}: {difference}"
    if difference is not None:
        raise InputError(f"{out} is of another run ({difference}): use `overwrite=True` to start again")
