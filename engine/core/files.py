"""Files that are whole under their name or absent: temporary name → fsync → rename or link → fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from deeplight.engine.core.errors import DiskRefused

TEMPORARY_SUFFIX = ".tmp"


class Disk:
    """The operations that a crash can separate. A test replaces them to record, refuse or lose some."""

    def make_folder(self, folder: Path) -> None:
        """Create a folder inside an existing parent; nothing happens where it exists."""
        folder.mkdir(exist_ok=True)

    def create(self, path: Path) -> BinaryIO:
        """Open a new file for writing; FileExistsError where the name is taken (a link is never followed)."""
        return path.open("xb", buffering=1 << 20)

    def reopen(self, path: Path) -> BinaryIO:
        """Open an existing file to write somewhere in it; what is there stays. FileNotFoundError where there is none.

        It is not opened for reading: NFS would read pages before it writes parts of them.
        """
        return open(path, "wb", buffering=1 << 20, opener=_existing)

    def scratch(self, folder: Path) -> BinaryIO:
        """A file in `folder` for reading and writing that is gone when it is closed, or the process dies."""
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))

    def sync(self, file: BinaryIO) -> None:
        """Return when the file's bytes are on the disk."""
        file.flush()
        os.fsync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file or folder; a file that exists under the new name is replaced in one step."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name in the same folder; FileExistsError where that is taken."""
        target.hardlink_to(source)

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names are on the disk, as far as its file system can be asked to."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync files only
                raise
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing happens where there is none."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(folder)


def _existing(name: str, _: int) -> int:
    return os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


DISK = Disk()
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""How file systems without hard links (FAT, some network and FUSE ones) refuse one."""


def temporary_name(path: Path, suffix: str = TEMPORARY_SUFFIX) -> Path:
    """A name beside `path` that no other writer takes: process ids are the same on several hosts, in containers too."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a DeepLightError that says what to do about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"the disk is full while writing {path}: free some space there, then make the same call with "
                "`resume=True`, which keeps all packs that are finished"
            )
        else:
            message = (
                f"cannot write {path} ({error.strerror or error}): make its folder writable or choose "
                "another one, then make the same call with `resume=True`"
            )
        raise DiskRefused(message) from error


@contextlib.contextmanager
def replacing(
    path: Path,
    *,
    check: Callable[[Path], None] | None = None,
    first_stays: bool = False,
    within: Path | None = None,
    disk: Disk = DISK,
) -> Iterator[BinaryIO]:
    """A file to write that appears as `path` when the block ends, synced, and not at all if the block raises.

    check: looks at the finished temporary file and raises to keep it from getting the name. first_stays: a file that
    has the name stays, for several writers of the same bytes: whoever reads it keeps it whole, over a network too.
    within: a folder on the same disk that has the file until then: when that is removed, the file never appears.
    Raises DeepLightError where the disk is full or does not let itself be written.
    """
    temporary = temporary_name(path if within is None else within / path.name)
    with disk_errors(path):
        try:
            with disk.create(temporary) as file:
                yield file
                disk.sync(file)
            if check is not None:
                check(temporary)
            if first_stays:
                _publish(temporary, path, disk)
            else:
                disk.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        disk.sync_folder(path.parent)


def _publish(temporary: Path, path: Path, disk: Disk) -> None:
    """Give a file its name unless another has it. Without hard links it replaces that, which has the same bytes."""
    try:
        disk.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        disk.replace(temporary, path)
        return
    disk.remove(temporary)


def write_file(path: Path, chunks: Iterable[bytes], *, first_stays: bool = False, disk: Disk = DISK) -> int:
    """Write `chunks` one after the other as `path`, durably; returns the number of bytes. first_stays: see
    `replacing`."""
    with replacing(path, first_stays=first_stays, disk=disk) as file:
        return sum(file.write(chunk) for chunk in chunks)


def make_folder(folder: Path, *, disk: Disk = DISK) -> None:
    """Create `folder` durably inside an existing parent; nothing happens where it exists."""
    with disk_errors(folder):
        disk.make_folder(folder)
        disk.sync_folder(folder.parent)


def sidecars(raster: Path) -> list[Path]:
    """Files beside a raster that GDAL takes for parts of it, and that are there: an external mask, statistics and other
    facts, overviews. Those of an earlier file of the same name would mask and stretch a new one."""
    ends = (".msk", ".aux.xml", ".ovr", ".msk.ovr", ".msk.aux.xml")
    return [path for end in ends if os.path.lexists(path := raster.with_name(raster.name + end))]


def remove_sidecars(raster: Path, *, disk: Disk = DISK) -> None:
    """Remove `sidecars`, before a new file gets the name."""
    for path in sidecars(raster):
        with disk_errors(path):
            disk.remove(path)


def leftovers(folder: Path, names: Container[str]) -> Iterator[Path]:
    """Temporary files in `folder` that killed writers of `names` left."""
    for path in folder.iterdir():
        final = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[0]
        if path.name.endswith(TEMPORARY_SUFFIX) and final.startswith(".") and final[1:] in names:
            yield path


def remove_leftovers(folder: Path, names: Container[str], *, disk: Disk = DISK) -> None:
    """Remove temporary files that killed writers of `names` left. Only where no other writer is at work."""
    with disk_errors(folder):
        for path in leftovers(folder, names):
            disk.remove(path)
