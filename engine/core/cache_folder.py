"""The user's cache folder, for what is quicker to read than to make again: compiled programs and kernels."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """$XDG_CACHE_HOME/deeplight (~/.cache/deeplight), or a folder of it, made where it is not there.

    What is in it is run as code. Raises OSError where it cannot be made or written to, or where others may write to it
    or to one of the folders in between; RuntimeError where no home is known.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = _private((Path(home) if home else Path.home() / ".cache") / "deeplight")
    for part in parts:
        folder = _private(folder / part)
    return folder


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user: set XDG_CACHE_HOME to a folder of your own")
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {folder}: chmod go-w makes it yours alone")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to: set XDG_CACHE_HOME to a folder that can")
    return folder
