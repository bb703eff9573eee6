"""Blocks of packs → their places in the COG, in parts that any thread or process copies, in any order.

Packs hold compressed blocks, so that the place of every block is known before the first is written. A part is a range
of bytes of the file. It may begin and end within a block, for parts that different hosts write must not share a page.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.files import DISK, Disk, disk_errors, write_file
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.output.hands import Piece
from deeplight.engine.output.pack_format import MissingPack, read_checked
from deeplight.engine.output.packs import PackStore

LEADER = struct.Struct("<I")
"""GDAL's leader of a block: its size. The trailer repeats the block's last bytes."""
TRAILER_BYTES = 4
PLACED = np.dtype([("at", "<i8"), ("size", "<i8"), ("source", "<i8"), ("crc", "<u4"), ("pack", "<i4")])
"""A block of a pack: where its leader is in the file, its bytes, where they are in the pack, their CRC-32, the number
of the pack in `PackStore.keys`."""
ALIGN = 1 << 20
"""Parts begin at multiples of this: of pages, and of what network disks lock or stripe by."""
LARGEST = 64 << 20
"""Bytes of a part, at most."""
_EACH = 4
"""Parts for each hand, at least, where they are not too small, so that all end at about the same time."""
LOOK_BYTES = 8 << 20
"""After so many bytes a part looks whether its file is still wanted."""
_HEAD = struct.Struct("<8sIQ")
_MAGIC = b"DLCOPY1\n"


class ByteRange(NamedTuple):
    """Bytes from `start` to before `stop` of the file."""

    start: int
    stop: int


def aligned(at: int) -> int:
    """The first multiple of ALIGN that is not below `at`."""
    return -(-at // ALIGN) * ALIGN


def cut(start: int, stop: int, hands: int) -> list[ByteRange]:
    """The parts of the bytes from `start`, which is aligned, to `stop`, for so many hands."""
    size = min(LARGEST, max(ALIGN, aligned((stop - start) // (_EACH * hands))))
    return [ByteRange(a, min(a + size, stop)) for a in range(start, stop, size)]


@dataclass(frozen=True)
class CopyJob:
    """What is to be copied into a file that exists.

    table: PLACED (n,), in the order of the file, without gaps. path: the file, under its temporary name. sync: a part
    that is done is on the disk.
    """

    store: PackStore
    table: npt.NDArray[Any]
    path: Path
    told: Progress = field(default_factory=Silent)
    disk: Disk = DISK
    sync: bool = False

    def do(self, piece: Piece, stop: threading.Event | None = None) -> None:
        """Write a part, whose blocks' checksums are verified, or end early where `stop` is set.

        It may be written twice, also at the same time: the bytes are the same.
        Raises DamagedPack, DeepLightError where the file is gone or the disk is full.
        """
        with disk_errors(self.path), self._opened() as file:
            file.seek(piece[0])
            self.copy_into(file, ByteRange(*piece), stop)
            if self.sync:
                self.disk.sync(file)

    @contextlib.contextmanager
    def published(self) -> Iterator[Copying]:
        """The job for other processes: its table is in a file beside the packs while the block runs."""
        path = self.store.folder / f".blocks-{secrets.token_hex(8)}"
        raw = self.table.tobytes()
        try:
            write_file(path, [_HEAD.pack(_MAGIC, zlib.crc32(raw), len(self.table)), raw], disk=self.disk)
            yield Copying(path, self.path)
        finally:
            with contextlib.suppress(OSError):
                self.disk.remove(path)

    def copy_into(self, file: BinaryIO, part: ByteRange, stop: threading.Event | None = None) -> None:
        """Write a part at the position of an open file."""
        look = part.start + LOOK_BYTES
        for at, data in placed_blocks(self.store, self.table, part):
            if stop is not None and stop.is_set():
                return
            if at > look:
                self._check_wanted(file)
                look = at + LOOK_BYTES
            frame: tuple[bytes, ...] = (LEADER.pack(len(data)), data, data[-TRAILER_BYTES:])
            end = at + LEADER.size + len(data) + TRAILER_BYTES
            if at < part.start or end > part.stop:
                frame = (b"".join(frame)[max(part.start - at, 0) : part.stop - at],)
            file.writelines(frame)
            self.told.advance(min(end, part.stop) - max(at, part.start))

    def _opened(self) -> BinaryIO:
        try:
            return self.disk.reopen(self.path)
        except FileNotFoundError:
            raise self._unwanted() from None

    def _check_wanted(self, file: BinaryIO) -> None:
        """Raise DeepLightError where the file is removed or has its final name: who was asleep wakes in another run."""
        try:
            same = os.path.samestat(self.path.lstat(), os.fstat(file.fileno()))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            same = False
        if not same:
            raise self._unwanted()

    def _unwanted(self) -> DeepLightError:
        return DeepLightError(
            f"{self.path} is not there any more: another process has finished or stopped the run"
        )


def placed_blocks(store: PackStore, table: npt.NDArray[Any], part: ByteRange) -> Iterator[tuple[int, bytes]]:
    """The blocks that a part has bytes of, in the order of the file: where the block's leader is, its bytes.

    Raises DamagedPack where they are not those that were written.
    """
    first = max(int(np.searchsorted(table["at"], part.start, side="right")) - 1, 0)
    last = int(np.searchsorted(table["at"], part.stop, side="left"))
    cols = store.lattice[1]
    for number, run in itertools.groupby(table[first:last].tolist(), key=lambda block: int(block[4])):
        key = store.at(*divmod(number, cols))
        path = store.path(key)
        try:
            pack = path.open("rb")
        except FileNotFoundError:
            raise MissingPack(path.name, key) from None
        with pack:
            at_source = -1
            for at, size, source, crc, _ in run:
                if source != at_source:
                    pack.seek(source)
                yield at, read_checked(pack, size, crc, path.name, key)
                at_source = source + size


@dataclass(frozen=True)
class Copying:
    """A CopyJob for other processes. table: PLACED, in a file. path: the file that is written."""

    table: Path
    path: Path

    def job(self, store: PackStore) -> CopyJob:
        """The job, in a process that has the packs. Raises DeepLightError where it is over."""
        return CopyJob(store, read_table(self.table), self.path, sync=True)

    def size(self, piece: Piece) -> int:
        """Bytes of a part."""
        return piece[1] - piece[0]


def read_table(path: Path) -> npt.NDArray[Any]:
    """The table of a file that CopyJob.published made. Raises DeepLightError where it is gone or has changed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DeepLightError(
            f"{path} is not there any more: another process has finished or stopped the run"
        ) from None
    magic, crc, count = _HEAD.unpack(data[: _HEAD.size].ljust(_HEAD.size))
    raw = data[_HEAD.size :]
    if magic != _MAGIC or len(raw) != count * PLACED.itemsize or zlib.crc32(raw) != crc:
        raise DeepLightError(f"{path} is damaged: check the disk, then make the same call with `resume=True`")
    return np.frombuffer(raw, PLACED)
