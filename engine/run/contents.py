"""SHA-256 of all bytes of a file, computed once: a process remembers it, and tells others on its host."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Seen = tuple[str, int, int, int, int, int]
"""A file as it was found: host, device, inode, size, times of modification and of change in nanoseconds."""
_KNOWN: dict[Seen, str] = {}


def content_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits. A file that was seen before and has not changed is not read."""
    with path.open("rb") as file:
        seen = _seen(os.fstat(file.fileno()))
        if seen not in _KNOWN:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if _seen(os.fstat(file.fileno())) != seen:
                return digest
            _KNOWN[seen] = digest
    return _KNOWN[seen]


def known_digests() -> dict[Seen, str]:
    """What this process knows, for other processes on the same host."""
    return dict(_KNOWN)


def learn_digests(known: Mapping[Seen, str]) -> None:
    """Take over what a process that has seen the same files knows. Files of other hosts are others."""
    _KNOWN.update(known)


def _seen(stat: os.stat_result) -> Seen:
    return _host(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@cache
def _host() -> str:
    """This host since it was started; where nothing tells, this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)
