"""A lock on a folder that is written: a file in it, held by one process and dropped by the kernel however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deeplight.engine.core.errors import InputError


@contextlib.contextmanager
def exclusive(path: Path, busy: str, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, made where it is missing, while the block runs.

    busy: the sentence where another process holds it. remove: take the file away at the end; not where its folder is
    given away inside the block, since the name may be another's by then.
    Raises InputError(busy), and OSError where the file cannot be made or locked.
    """
    try:
        file = path.open("ab")
    except FileNotFoundError:  # its folder was removed by the process that held it just now
        raise InputError(busy) from None
    with file:
        if not (_try(file) and _same(path, file)):
            raise InputError(busy)
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file."""
    try:
        with path.open("rb") as file:
            return not _try(file)
    except OSError:
        return False


def _try(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(path: Path, file: BinaryIO) -> bool:
    """Whether the file that is locked still has the name: its holder may have removed it meanwhile."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
