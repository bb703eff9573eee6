"""OUT.tif.parts/: finished packs beside the output, who may write them, and what run they belong to."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import (
    DISK,
    TEMPORARY_SUFFIX,
    Disk,
    disk_errors,
    leftovers,
    make_folder,
    remove_leftovers,
    temporary_name,
    write_file,
)
from deeplight.engine.core.locks import exclusive, is_held

MAPS = (".tif", ".tiff")
"""The endings of a map's name."""
RECORD, LOCK, _PACKS, _REMOVED = "record.json", "lock", "packs", ".removed"
"""Names in a folder of parts; _PACKS begins that of the folder of packs, see `packs_folder`."""
_LONGEST_ADDITION = 64
"""Bytes that names of temporary files may have beyond the name of what they become."""


class Mode(Enum):
    """What to do about an output or parts that are there already."""

    NEW = "new"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True)
class Record:
    """What a run's pixels depend on. fields: name → value; core, halo: the plan in LR pixels. shared: several processes
    may compute packs, on several hosts, so that fields compare files by what is in them."""

    fields: Mapping[str, str]
    core: int | None
    halo: int
    shared: bool = False

    @property
    def digest(self) -> str:
        """Equal for records that let a run be resumed."""
        return hashlib.sha256(repr((sorted(self.fields.items()), self.core, self.halo)).encode()).hexdigest()[
            :16
        ]

    def to_json(self) -> bytes:
        """The text kept beside the packs, with a checksum of its own."""
        content = {"fields": dict(self.fields), "core": self.core, "halo": self.halo, "shared": self.shared}
        checked = {**content, "crc32": _checksum(content)}
        return (json.dumps(checked, indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def from_json(text: bytes) -> Record:
        """The record that `to_json` wrote. Raises ValueError where a byte of it has changed."""
        try:
            content = json.loads(text)
            crc = content.pop("crc32")
            fields = {str(k): str(v) for k, v in content["fields"].items()}
            record = Record(fields, content["core"], int(content["halo"]), bool(content.get("shared")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of a run: {error}") from error
        if crc != _checksum(content):
            raise ValueError("its checksum is wrong")
        return record

    def check_same(self, earlier: Record, out: Path, *, shard: bool = False) -> None:
        """Raises InputError naming the first difference to the run that made the packs. shard: see `anew`."""
        mine = {**self.fields, "tile plan": f"{self.core}+{self.halo}"}
        theirs = {**earlier.fields, "tile plan": f"{earlier.core}+{earlier.halo}"}
        for name in sorted(mine.keys() | theirs.keys()):
            was, now = theirs.get(name, "absent"), mine.get(name, "absent")
            if was != now:
                raise InputError(
                    f"{out} cannot be {'shared' if shard else 'resumed'}: {name} was {was} and is now {now}; "
                    f"restore it, or {anew(out, shard=shard)}"
                )


def _checksum(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def parts_folder(out: Path) -> Path:
    """Where the packs of an output are kept until it is complete."""
    return out.with_name(out.name + ".parts")


def packs_folder(out: Path, record: Record) -> Path:
    """Where the packs of a run are. Named by its record: a process of an earlier one with other options, which still
    runs somewhere, cannot write into it."""
    return parts_folder(out) / f"{_PACKS}-{record.digest}"


def check_output(out: Path, mode: Mode, shard: bool = False, suffixes: tuple[str, ...] = MAPS) -> bool:
    """Refuse an output that cannot or must not be written, before any work. shard: others may be at work beside it.

    Returns True where a resumed run finds it complete already; what a finished run left is removed then where that can
    be, nothing else is touched. Raises InputError.
    """
    check_name(out, suffixes)
    parts = parts_folder(out)
    complete = mode is Mode.RESUME and exists(out) and not parts.exists()
    if not complete:
        check_folder(out)
    if parts.exists() and is_held(parts / LOCK, alone=True):
        raise InputError(busy(out))
    if parts.exists() and not shard and is_held(parts / LOCK):
        if is_held(parts / LOCK, alone=True):  # by one that began after the look above
            raise InputError(busy(out))
        raise InputError(
            f"shards of {out} are still at work: wait for them or stop them, then make the same call with `resume=True`"
        )
    if mode is Mode.NEW:
        _check_new(out, parts.exists())
    check_ours(parts)
    if complete and not out.is_file():
        raise InputError(f"{out} is not a file: use `overwrite=True` to replace it, or choose another name")
    if complete:
        _remove_doomed(parts, DISK)
    return complete


def anew(out: Path, *, shard: bool) -> str:
    """What to do where packs or the output are of another run. shard: a shard asks, which may not drop others'
    packs."""
    if shard:
        return f"remove {out} and {parts_folder(out)}, when no shard runs, to start again"
    return "use `overwrite=True` to start again"


def busy(out: Path) -> str:
    """What is said where another run holds the parts."""
    return f"another run is writing {out}: wait for it or stop it"


def exists(out: Path) -> bool:
    """Whether the name is taken, if only by a link that leads nowhere."""
    return out.is_symlink() or out.exists()


def _check_new(out: Path, begun: bool) -> None:
    """Refuse an output that is there, or `begun`, without being told to resume or overwrite."""
    if exists(out):
        raise InputError(f"{out} exists: use `overwrite=True` to replace it, or choose another name")
    if begun:
        raise InputError(
            f"{parts_folder(out)} holds an unfinished run: use `resume=True` to continue it or "
            "`overwrite=True` to start again"
        )


def check_ours(parts: Path) -> None:
    """Refuse to take over a folder that no run of ours made: its files would be deleted."""
    if parts.is_symlink() or (parts.exists() and not parts.is_dir()):
        raise InputError(f"{parts} is not a folder, and its name is needed for one: move it away")
    names = {name for _, folders, files in itertools.islice(os.walk(parts), 1) for name in folders + files}
    foreign = sorted(n for n in names - {RECORD, LOCK} if not n.startswith((".", _PACKS)))
    if foreign:
        raise InputError(
            f"{parts} holds {foreign[0]}, which is not part of an unfinished run: move it away, "
            "because the folder is removed at the end"
        )


def check_writable(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file name that cannot be written. Raises InputError."""
    check_name(path, suffixes)
    check_folder(path)


def check_name(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a name that is not that of a file of a kind. Raises InputError."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}: choose such a name")
    check_utf8(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")


def check_utf8(path: Path) -> None:
    """Refuse a name, its folders included, that GDAL cannot take and no report can hold. Raises InputError."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the name {ascii(str(path))[1:-1]} is not UTF-8, which GDAL needs: give another one"
        ) from None


def check_folder(path: Path) -> None:
    """Refuse a name beside which no file can be written. Raises InputError."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}; create it first")
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    if read_only or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: the folder {folder} is not writable; choose another one")
    try:
        tempfile.TemporaryFile(
            dir=folder
        ).close()  # permission bits do not tell all: /proc, quotas, network disks
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: the folder {folder} takes no files ({error.strerror}); choose another one"
        ) from None
    longest = os.pathconf(folder, "PC_NAME_MAX") - _LONGEST_ADDITION
    if len(os.fsencode(path.name)) > longest:
        raise InputError(f"the name {path.name} is too long: give one of at most {longest} bytes")


def check_space(out: Path, needed: int, count: int, mode: Mode) -> None:
    """Refuse a run whose packs and output do not fit on the disk. What stopped runs left counts as space.

    needed: bytes of packs and output together, estimated. count: packs of the whole scene; those that a resumed
    run keeps are taken by their size instead of their share of the estimate. Raises InputError.
    """
    parts = parts_folder(out)
    packs = [p for p in _files(parts) if p.suffix == ".pack"]
    done = [_size(p) for p in packs] if mode is Mode.RESUME else []
    needed = 2 * sum(done) + needed * max(0, count - len(done)) // count
    old = [f for folder in (parts, *_removed(parts)) for f in _files(folder)]
    free = shutil.disk_usage(out.parent).free
    free += sum(_size(p) for p in (*old, *leftovers(out.parent, (out.name,))))
    if needed > free:
        raise InputError(
            f"{out} needs about {readable(needed)} with its parts and {readable(free)} are free: "
            f"free some space or choose another disk"
        )


def _files(folder: Path) -> Iterator[Path]:
    """All files below; nothing where a run that is ending removes them meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def readable(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def stored_record(out: Path) -> Record | None:
    """What the parts beside `out` belong to; None where there are none, or none were begun.

    Raises InputError where it cannot be read or has changed since it was written.
    """
    path = parts_folder(out) / RECORD
    try:
        return Record.from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}), so that nobody knows what its packs belong to: "
            "use `overwrite=True` to start again"
        ) from error


@contextlib.contextmanager
def claimed_parts(
    out: Path, record: Record, mode: Mode, *, stay: bool = False, disk: Disk = DISK
) -> Iterator[Path]:
    """The folder for packs, held exclusively while the block runs.

    The parts are removed when the block ends well, or when it fails with no pack finished; else they stay for
    the resumed run. stay: they do when it ends well, too. Raises InputError where another run holds them or they belong
    to another run.
    """
    parts = parts_folder(out)
    packs = packs_folder(out, record)
    check_ours(parts)
    make_folder(parts, disk=disk)
    with contextlib.ExitStack() as held:
        with disk_errors(parts / LOCK):
            held.enter_context(exclusive(parts / LOCK, busy(out)))
        earlier = stored_record(out) if mode is Mode.RESUME else None
        if earlier is not None:
            record.check_same(earlier, out)
        try:
            if mode is Mode.NEW:  # another run may have come and gone since check_output
                _check_new(out, (parts / RECORD).exists())
            with disk_errors(parts):
                _tidy(out, disk)
                if earlier is None:
                    _begin(parts, record, disk)
            yield packs
        except BaseException:
            if not any(p.suffix == ".pack" for p in _files(parts)):
                with contextlib.suppress(OSError):
                    _remove(parts, disk)
            raise
        if stay:
            return
        with disk_errors(parts):
            _remove(parts, disk)
    _remove_doomed(
        parts, disk
    )  # over a network the lock's file kept its folder from going until it was closed


def _tidy(out: Path, disk: Disk) -> None:
    """Remove what killed runs left beside the parts, so that this run has the space."""
    remove_leftovers(out.parent, (out.name,), disk=disk)
    for unfinished in parts_folder(out).glob(f"{_PACKS}*/.*.tif.*{TEMPORARY_SUFFIX}"):  # regions
        disk.remove(unfinished)
    _remove_doomed(parts_folder(out), disk)


def _begin(parts: Path, record: Record, disk: Disk) -> None:
    """Drop what another run left, then say whose the packs to come are.

    Power may go at any point: each sync keeps the new record from being found beside old packs.
    """
    old = sorted(parts.glob(f"{_PACKS}*"))
    if old:
        disk.remove(parts / RECORD)
        disk.sync_folder(parts)
        for folder in old:
            disk.remove_tree(folder)
        disk.sync_folder(parts)
    write_file(parts / RECORD, [record.to_json()], disk=disk)


def _removed(parts: Path) -> list[Path]:
    """Parts of finished runs whose removal was cut short."""
    start = f".{parts.name}."
    return [p for p in parts.parent.iterdir() if p.name.startswith(start) and p.name.endswith(_REMOVED)]


def _remove_doomed(parts: Path, disk: Disk) -> None:
    """What cannot be removed does no harm but to the space."""
    for folder in _removed(parts):
        with contextlib.suppress(OSError):
            disk.remove_tree(folder)


def _remove(parts: Path, disk: Disk) -> None:
    """Take the folder's name away durably before its files, so that no half-empty parts are found."""
    doomed = temporary_name(parts, _REMOVED)
    disk.replace(parts, doomed)
    disk.sync_folder(parts.parent)
    _remove_doomed(parts, disk)
