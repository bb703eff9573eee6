"""The project's own source files: those that git tracks, without anything else that is in the folders."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from tests.conftest import ROOT


@functools.cache
def tracked(*folders: str, suffix: str = ".py", root: Path = ROOT) -> tuple[Path, ...]:
    """Paths of the tracked files in folders of root that end with suffix, sorted.

    If the sources have no git folder, as in an archive, all files are returned.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *folders]
    if (root / ".git").exists():
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        paths = [root / name for name in listed if name]
    else:
        paths = [path for folder in folders for path in (root / folder).rglob("*")]
    return tuple(sorted(path for path in paths if path.name.endswith(suffix) and path.is_file()))
