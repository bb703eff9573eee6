"""OUT.tif.parts/: finished packs beside the output, who may write them, and what run they belong to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from deeplight.engine.durable import disk_errors, make_folder, write_file
from deeplight.engine.errors import InputError

_SUFFIXES = (".tif", ".tiff")
_SAMPLES, _SAMPLE_BYTES, _END_BYTES = 16, 4096, 1 << 16


class Mode(Enum):
    """What to do about an output or parts that are there already."""

    NEW = "new"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True)
class Record:
    """What a run's pixels depend on. fields: name → value; core, halo: the plan in LR pixels."""

    fields: Mapping[str, str]
    core: int | None
    halo: int

    def to_json(self) -> bytes:
        """The text kept beside the packs."""
        content = {"fields": dict(self.fields), "core": self.core, "halo": self.halo}
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    def check_same(self, earlier: Record, out: Path) -> None:
        """Raises InputError naming the first difference to the run that made the packs."""
        mine = {**self.fields, "tile plan": f"{self.core}+{self.halo}"}
        theirs = {**earlier.fields, "tile plan": f"{earlier.core}+{earlier.halo}"}
        for name in sorted(mine.keys() | theirs.keys()):
            was, now = theirs.get(name, "absent"), mine.get(name, "absent")
            if was != now:
                raise InputError(
                    f"{out} cannot be resumed: {name} was {was} and is now {now}; "
                    f"restore it, or use --overwrite to start again"
                )


def parts_folder(out: Path) -> Path:
    """Where the packs of an output are kept until it is complete."""
    return out.with_name(out.name + ".parts")


def check_output(out: Path, mode: Mode) -> bool:
    """Refuse an output that cannot or must not be written, before any work and without touching anything.

    Returns True where --resume finds it complete already. Raises InputError.
    """
    check_writable(out, _SUFFIXES)
    parts = parts_folder(out)
    if parts.exists() and _locked(parts):
        raise InputError(f"another run is writing {out}: wait for it or stop it")
    exists = out.is_symlink() or out.exists()
    if mode is Mode.NEW and exists:
        raise InputError(f"{out} exists: use --overwrite to replace it, or choose another name")
    if mode is Mode.NEW and parts.exists():
        raise InputError(
            f"{parts} holds an unfinished run: use --resume to continue it or --overwrite to start again"
        )
    return mode is Mode.RESUME and exists and not parts.exists()


def check_writable(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file name that cannot be written. Raises InputError."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}: choose such a name")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}; create it first")
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    if read_only or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: the folder {folder} is not writable; choose another one")


def check_space(out: Path, needed: int) -> None:
    """Refuse a run whose packs and output do not fit on the disk. Packs that are there count as space.

    needed: bytes of packs and output together. Raises InputError.
    """
    free = shutil.disk_usage(out.parent).free
    packs = parts_folder(out) / "packs"
    if packs.is_dir():
        free += sum(p.stat().st_size for p in packs.iterdir())
    if needed > free:
        raise InputError(
            f"{out} needs about {needed / 1e9:.1f} GB with its parts and {free / 1e9:.1f} GB are free: "
            f"free some space or choose another disk"
        )


def stored_record(out: Path) -> Record | None:
    """What the parts beside `out` belong to; None where there are none, or none were begun."""
    try:
        content = json.loads((parts_folder(out) / "record.json").read_bytes())
        fields = {str(k): str(v) for k, v in content["fields"].items()}
        core = content["core"]
        return Record(fields, None if core is None else int(core), int(content["halo"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def claimed_parts(out: Path, record: Record, mode: Mode) -> Iterator[Path]:
    """The folder for packs, held exclusively while the block runs.

    The parts are removed when the block ends well, or when it fails with no pack finished; else they stay for
    --resume. Raises InputError where another run holds them or they belong to another run.
    """
    parts = parts_folder(out)
    packs = parts / "packs"
    make_folder(parts)
    with _lock(parts, out):
        with disk_errors(parts):
            _claim(parts, out, record, mode)
        try:
            yield packs
        except BaseException:
            if not packs.is_dir() or not any(p.suffix == ".pack" for p in packs.iterdir()):
                _remove(parts)
            raise
        _remove(parts)


def _claim(parts: Path, out: Path, record: Record, mode: Mode) -> None:
    """Keep the parts of this very run, else begin new ones."""
    earlier = stored_record(out) if mode is Mode.RESUME else None
    if earlier is not None:
        record.check_same(earlier, out)
        return
    _clear(parts)
    write_file(parts / "record.json", [record.to_json()])


@contextlib.contextmanager
def _lock(parts: Path, out: Path) -> Iterator[BinaryIO]:
    """An exclusive lock that the kernel drops when the process ends, however it ends."""
    path = parts / "lock"
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except BlockingIOError:
            same = False
        if not same:  # held, or removed by the run that finished just now
            raise InputError(f"another run is writing {out}: wait for it or stop it")
        yield file


def _locked(parts: Path) -> bool:
    try:
        with (parts / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _clear(parts: Path) -> None:
    for path in parts.iterdir():
        if path.name == "packs":
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _remove(parts: Path) -> None:
    """Take the folder's name away in one step, so that a kill meanwhile leaves no half-empty parts."""
    doomed = parts.with_name(f".{parts.name}.{os.getpid()}.removed")
    parts.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def file_fingerprint(path: Path) -> str:
    """Size, modification time and a SHA-256 of both ends and evenly spaced samples of a file."""
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        for i in range(_SAMPLES):
            file.seek(stat.st_size * i // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, stat.st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return f"{stat.st_size} bytes, modified {stat.st_mtime_ns}, sha256 {digest.hexdigest()[:16]}"
