"""The folder of a training run: the names in it, and whether a new run may go there. Loads nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from deeplight.engine.errors import InputError

WEIGHTS = "model.safetensors"
CARD = "checkpoint.json"


def check_unused(out: Path, overwrite: bool) -> None:
    """Raise InputError where `out` is no folder, or already holds a checkpoint and `overwrite` is not set."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is not a folder; choose another --out")
        held = [name for name in (WEIGHTS, CARD) if (out / name).exists()]
    except OSError as error:
        raise InputError(f"{out} cannot be used ({error.strerror}); choose another --out") from error
    if held and not overwrite:
        raise InputError(
            f"{out} already holds {' and '.join(held)}; give --overwrite to replace, or choose another --out"
        )


def make_writable(out: Path) -> None:
    """Create the folder `out`, with its parents, where it is missing. InputError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {out} ({error.strerror}); choose another --out"
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"the folder {out} cannot be written; choose another --out")
