"""Optional packages: the command that installs what an extra of DeepLight asks for.

It names the packages themselves, which every package index has, and runs in the Python that asked for them.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires

_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_OWN = re.compile(r"deeplight\[([\w,-]+)\]")


def install_command(wanted: str) -> str:
    """How to install the packages of an extra, such as "train", or one package of that name."""
    packages = " ".join(shlex.quote(package) for package in _packages(wanted) or [wanted])
    return f"{shlex.quote(sys.executable)} -m pip install {packages}"


def _packages(extra: str) -> list[str]:
    """Requirements of an extra, those of extras that it includes among them."""
    try:
        every = requires("deeplight") or []
    except PackageNotFoundError:  # a source tree that is not installed
        return []
    found: list[str] = []
    for line in every:
        package, _, marker = (part.strip() for part in line.partition(";"))
        named = _EXTRA.search(marker)
        if named is None or named[1] != extra:
            continue
        own = _OWN.fullmatch(package)
        found += [p for e in own[1].split(",") for p in _packages(e)] if own else [package]
    return list(dict.fromkeys(found))
