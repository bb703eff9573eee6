"""Disks for tests: one that records what is done to it, one that fails at a chosen operation, one that is full; and
what power loss can make of a recorded run."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from deeplight.engine.core.files import DISK, Disk

METHODS = (
    "make_folder",
    "create",
    "reopen",
    "scratch",
    "sync",
    "replace",
    "link",
    "sync_folder",
    "remove",
    "remove_tree",
)
State = dict[PurePosixPath, bytes | None]
"""The content of a folder: from each path to its bytes, or to None for a folder."""


@contextlib.contextmanager
def installed(disk: Disk) -> Iterator[None]:
    """Inside this context all parts of the engine without a disk of their own use `disk`."""
    for name in METHODS:
        setattr(DISK, name, getattr(disk, name))
    try:
        yield
    finally:
        for name in METHODS:
            delattr(DISK, name)


class FullDisk(Disk):
    """Has room for `room` more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def create(self, path: Path) -> BinaryIO:
        return self._limited(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), path)

    def reopen(self, path: Path) -> BinaryIO:
        return self._limited(os.open(path, os.O_WRONLY), path)

    def _limited(self, number: int, path: Path) -> BinaryIO:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                size = memoryview(data).nbytes
                if size > disk.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                disk.room -= size
                return super().write(data) or 0

        file = File(number, "wb")
        file.name = str(path)
        return io.BufferedWriter(file)  # type: ignore[return-value]


class FailingDisk(Disk):
    """Counts operations, single writes included, and refuses number `fail_at` (from 0) with `number`."""

    def __init__(self, fail_at: int | None = None, number: int = errno.ENOSPC) -> None:
        self.done: list[str] = []
        self.fail_at, self.number = fail_at, number
        self._lock = threading.Lock()

    def step(self, what: str) -> None:
        with self._lock:
            self.done.append(what)
            if len(self.done) - 1 == self.fail_at:
                raise OSError(self.number, os.strerror(self.number))

    def make_folder(self, folder: Path) -> None:
        self.step("make folder")
        super().make_folder(folder)

    def create(self, path: Path) -> BinaryIO:
        self.step("create")
        return self._counted(super().create(path), "write")

    def reopen(self, path: Path) -> BinaryIO:
        self.step("reopen")
        return self._counted(super().reopen(path), "write part")

    def scratch(self, folder: Path) -> BinaryIO:
        self.step("scratch")
        return self._counted(super().scratch(folder), "write scratch")

    def _counted(self, file: BinaryIO, what: str) -> BinaryIO:
        step = self.step

        class Counted(io.FileIO):
            def write(self, data: Any) -> int:
                step(what)
                return super().write(data) or 0

        both, number = file.readable(), os.dup(file.fileno())
        counted = Counted(number, "r+b" if both else "wb")
        counted.name = file.name
        file.close()
        return io.BufferedRandom(counted, 1 << 12) if both else io.BufferedWriter(counted, 1 << 12)  # type: ignore

    def sync(self, file: BinaryIO) -> None:
        self.step("sync")
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self.step("replace")
        super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        self.step("link")
        super().link(source, target)


@dataclass(frozen=True)
class Op:
    """One recorded operation: a path, the new path of a rename or link, the bytes that a file has then."""

    what: str
    path: PurePosixPath
    to: PurePosixPath | None = None
    content: bytes | None = None


class _Noted(io.BufferedWriter):
    """A file that tells which bytes are written."""

    def __init__(self, file: BinaryIO, written: Callable[[int, int], None]) -> None:
        number = os.dup(file.fileno())
        os.lseek(number, 0, os.SEEK_SET)
        raw = io.FileIO(number, "wb")
        raw.name = file.name
        file.close()
        super().__init__(raw, 1 << 20)
        self._written = written

    def write(self, data: Any) -> int:
        at = self.tell()
        size = super().write(data)
        self._written(at, at + size)
        return size


class RecordingDisk(Disk):
    """Notes all operations below `root`, one after the other. A sync makes safe what this disk's files have written:
    another host's page cache is not this one's. beside: the disk of another host, for the same root and log."""

    def __init__(self, root: Path, beside: RecordingDisk | None = None) -> None:
        self.root = root
        self.log: list[Op] = beside.log if beside is not None else []
        self._safe: dict[Path, bytearray] = beside._safe if beside is not None else {}
        self._lock = beside._lock if beside is not None else threading.RLock()
        self._unsafe: dict[Path, list[slice]] = {}

    def _note(self, what: str, path: Path, to: Path | None = None, content: bytes | None = None) -> None:
        target = None if to is None else PurePosixPath(to.relative_to(self.root))
        self.log.append(Op(what, PurePosixPath(path.relative_to(self.root)), target, content))

    def _noted(self, file: BinaryIO) -> BinaryIO:
        unsafe = self._unsafe.setdefault(Path(file.name), [])
        return _Noted(file, lambda start, stop: unsafe.append(slice(start, stop)))  # type: ignore[return-value]

    def make_folder(self, folder: Path) -> None:
        with self._lock:
            if not folder.exists():
                self._note("make folder", folder)
            super().make_folder(folder)

    def create(self, path: Path) -> BinaryIO:
        with self._lock:
            self._note("create", path)
            return self._noted(super().create(path))

    def reopen(self, path: Path) -> BinaryIO:
        with self._lock:
            return self._noted(super().reopen(path))

    def sync(self, file: BinaryIO) -> None:
        with self._lock:
            super().sync(file)
            path = Path(file.name)
            content, safe = path.read_bytes(), self._safe.setdefault(path, bytearray())
            safe.extend(bytes(max(0, len(content) - len(safe))))
            for written in self._unsafe[path]:
                safe[written] = content[written]
            self._unsafe[path].clear()
            self._note("sync", path, content=bytes(safe))

    def replace(self, source: Path, target: Path) -> None:
        with self._lock:
            self._note("replace", source, target, source.read_bytes() if source.is_file() else None)
            super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        with self._lock:
            super().link(source, target)
            self._note("link", source, target, source.read_bytes())

    def sync_folder(self, folder: Path) -> None:
        with self._lock:
            super().sync_folder(folder)
            self._note("sync folder", folder)

    def remove(self, path: Path) -> None:
        with self._lock:
            if path.exists():
                self._note("remove", path)
            super().remove(path)

    def remove_tree(self, folder: Path) -> None:
        with self._lock:
            for path in sorted(folder.rglob("*"), key=lambda p: -len(p.parts)):
                self._note("remove", path)
            self._note("remove", folder)
            super().remove_tree(folder)


@dataclass
class _Change:
    """Names in a folder that change together: from each name to its node, or to None if it is removed."""

    names: dict[str, _Node | None]
    durable: bool = False


@dataclass(eq=False)
class _Node:
    """A file or folder. content: of a file, as last synced; unsynced: what was written since."""

    is_folder: bool = True
    content: bytes | None = None
    unsynced: bytes | None = None
    changes: list[_Change] = field(default_factory=list)

    def now(self) -> dict[str, _Node]:
        """The names that programs see."""
        return self.names(lambda change: True)

    def names(self, there: Callable[[_Change], bool]) -> dict[str, _Node]:
        names: dict[str, _Node | None] = {}
        for change in self.changes:
            if change.durable or there(change):
                names |= change.names
        return {name: node for name, node in names.items() if node is not None}


class PowerLoss:
    """A file system that keeps everything that is synced, and any subset of the rest.

    A file's bytes are safe after its sync, the names in a folder after the folder's.
    """

    def __init__(self, start: State) -> None:
        self.root = _Node()
        for path, content in sorted(start.items()):
            node = _Node(content is None, content)
            self._node(path.parent).changes.append(_Change({path.name: node}, durable=True))

    def _node(self, path: PurePosixPath) -> _Node:
        node = self.root
        for name in path.parts:
            node = node.now()[name]
        return node

    def do(self, op: Op) -> None:
        folder = self._node(op.path.parent)
        if op.what == "sync folder":
            for change in self._node(op.path).changes:
                change.durable = True
        elif op.what == "sync":
            node = self._node(op.path)
            node.content, node.unsynced = op.content, None
        elif op.what in ("replace", "link"):
            assert op.to is not None
            node = self._node(op.path)
            if op.content != node.content:
                node.unsynced = op.content
            gone: dict[str, _Node | None] = {op.path.name: None} if op.what == "replace" else {}
            if op.to.parent == op.path.parent:
                folder.changes.append(_Change({op.to.name: node, **gone}))
            else:  # either folder may be safe without the other
                self._node(op.to.parent).changes.append(_Change({op.to.name: node}))
                folder.changes.append(_Change(gone))
        elif op.what == "remove":
            folder.changes.append(_Change({op.path.name: None}))
        else:
            folder.changes.append(_Change({op.path.name: _Node(op.what == "make folder")}))

    def states(self, limit: int, rng: random.Random) -> Iterator[State]:
        """The states that a crash may leave now: all of them, or `limit` random ones if there are more."""
        nodes = list(self._all(self.root))
        pending = [change for node in nodes for change in node.changes if not change.durable]
        torn = [node for node in nodes if not node.is_folder and node.content != node.unsynced is not None]
        count = 2 ** len(pending) * 3 ** len(torn)
        if count <= limit:
            picks: Iterator[Sequence[int]] = itertools.product(
                *[range(2)] * len(pending), *[range(3)] * len(torn)
            )
        else:
            sizes = [2] * len(pending) + [3] * len(torn)
            picks = ([rng.randrange(size) for size in sizes] for _ in range(limit))
        for pick in picks:
            there = {id(change) for change, yes in zip(pending, pick, strict=False) if yes}
            cut = {id(node): kind for node, kind in zip(torn, pick[len(pending) :], strict=True)}
            yield dict(self._found(self.root, PurePosixPath(), there, cut))

    def _all(self, node: _Node) -> Iterator[_Node]:
        yield node
        below = {id(n): n for change in node.changes for n in change.names.values() if n is not None}
        for child in below.values():
            yield from self._all(child)

    def _found(
        self, node: _Node, path: PurePosixPath, there: set[int], cut: dict[int, int]
    ) -> Iterator[tuple[PurePosixPath, bytes | None]]:
        for name, child in node.names(lambda change: id(change) in there).items():
            if child.is_folder:
                yield path / name, None
                yield from self._found(child, path / name, there, cut)
            else:
                written = child.unsynced or b""
                torn = (b"", written[: len(written) // 2], bytes(len(written)))[cut.get(id(child), 0)]
                yield path / name, torn if id(child) in cut or child.content is None else child.content


def materialise(state: State, folder: Path) -> None:
    """Make `folder` hold exactly `state`."""
    folder.mkdir()
    for path, content in sorted(state.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def found(folder: Path) -> State:
    """What a folder holds."""
    return {
        PurePosixPath(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
        for p in folder.rglob("*")
    }
