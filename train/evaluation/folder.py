"""The folder of an evaluation: the names in it, and whether a new one may go there. Loads nothing heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command

METRICS, TABLE, PAGE = "metrics.json", "metrics.md", "page.html"
REQUIRED = ("torch", "safetensors", "torchmetrics", "matplotlib", "pypiqe", "markdown")
"""Packages that the extra `eval` brings."""
MAP, MAP_NO_AUXILIARY = "map.tif", "map_no_auxiliary.tif"


def require_packages(program: str) -> None:
    """Raise InputError, which says how to install it, where a package of REQUIRED is not there."""
    for module in REQUIRED:
        try:
            there = importlib.util.find_spec(module) is not None
        except ImportError:
            there = False
        if not there:
            raise InputError(f"{program} needs {module}: {install_command('eval')}")


def check_unused(out: Path, overwrite: bool) -> None:
    """Raise InputError where `out` is no folder, or holds results and `overwrite` is not set."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is not a folder; choose another `out`")
        held = [n for n in (METRICS, TABLE, PAGE, MAP, MAP_NO_AUXILIARY) if (out / n).exists()]
    except OSError as error:
        raise InputError(f"cannot use the folder {out} ({error.strerror}); choose another `out`") from error
    if held and not overwrite:
        raise InputError(
            f"{out} already holds {', '.join(held)}; give `overwrite=True` to replace, or choose another `out`"
        )
