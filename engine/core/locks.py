"""A lock on a folder that is written: a file in it, held by one process and dropped by the kernel however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from deeplight.engine.core.errors import InputError

_LOG = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""How file systems without locks (Lustre without -o flock, some NFS servers) refuse one."""
_TRIES, _PAUSE_S = 10, 0.05
"""Whoever only looks whether a lock is held holds it for a moment."""


@contextlib.contextmanager
def exclusive(path: Path, busy: str, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, made where it is missing, while the block runs.

    busy: the sentence where another process holds it. remove: take the file away at the end; not where its folder is
    given away inside the block, since the name may be another's by then.
    Raises InputError(busy), and OSError where the file cannot be made or locked.
    """
    with _opened(path, busy) as file:
        _take(path, file, fcntl.LOCK_EX, busy)
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def shared(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file together with others that are `shared`, and with none that is `exclusive`; see there."""
    with _opened(path, busy) as file:
        _take(path, file, fcntl.LOCK_SH, busy)
        yield


def _take(path: Path, file: BinaryIO, kind: int, busy: str) -> None:
    if not (_succeeds(lambda: _try(file, kind)) and _same(path, file)):
        raise InputError(busy)


def is_held(path: Path, *, alone: bool = False) -> bool:
    """Whether a process holds the lock file; alone: as an exclusive one."""
    return not _succeeds(lambda: _is_free(path, fcntl.LOCK_SH if alone else fcntl.LOCK_EX))


def _succeeds(attempt: Callable[[], bool]) -> bool:
    """Whether one of some attempts does, which last longer than anybody looks."""
    for left in reversed(range(_TRIES)):
        if attempt():
            return True
        if left:
            time.sleep(_PAUSE_S)
    return False


def _is_free(path: Path, kind: int) -> bool:
    """Whether the lock can be had as `kind` now."""
    for mode in (
        "r+b",
        "rb",
    ):  # over NFS an exclusive lock needs a file that may be written; not all may write it
        with contextlib.suppress(OSError), path.open(mode) as file:
            return _try(file, kind)
    return True


@contextlib.contextmanager
def _opened(path: Path, busy: str) -> Iterator[BinaryIO]:
    try:
        file = path.open("a+b")
    except FileNotFoundError:  # its folder was removed by the process that held it just now
        raise InputError(busy) from None
    with file:
        yield file


def _try(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn(file.name, str(error.strerror))
    return True


@functools.cache
def _warn(name: str, reason: str) -> None:
    """Once a file."""
    _LOG.warning("%s cannot be locked (%s): see that no other run writes there", name, reason)


def _same(path: Path, file: BinaryIO) -> bool:
    """Whether the file that is locked still has the name: its holder may have removed it meanwhile."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
