"""The folder of a training run: the names in it, and whether a new run may go there. Loads nothing heavy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import remove_leftovers
from deeplight.engine.core.locks import exclusive, is_held
from deeplight.engine.runtime.artifact import TRAINING_STATE, WRITTEN, remove_weights
from deeplight.engine.runtime.manifest import MANIFEST_NAME, WEIGHTS

BEST = "best"
"""Model folder of the best weights so far; the run's folder is that of the last."""
STATE = TRAINING_STATE
METRICS = "metrics.csv"
EVENTS = "tensorboard"
_LOCK = "lock"
_OLDER = ("checkpoint.json", "best.safetensors", "best.json")
"""What a run of version 0.2 had besides; today's model folders replace them."""


def check_unused(out: Path, overwrite: bool, resume: bool = False) -> None:
    """Raise InputError where `out` is no folder, a training writes it, or it holds a run and neither flag is set."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is not a folder; choose another `out`")
        held = [name for name in (WEIGHTS, MANIFEST_NAME, STATE) if (out / name).exists()]
        # of several processes that train together, the first may hold the lock already
        if os.environ.get("RANK", "0") == "0" and is_held(out / _LOCK):
            raise InputError(_busy(out))
    except OSError as error:
        raise InputError(f"{out} cannot be used ({error.strerror}); choose another `out`") from error
    if held and resume and STATE not in held:
        raise InputError(
            f"{out} holds {' and '.join(held)} but no {STATE}, so it cannot be resumed; "
            "give `overwrite=True` to replace, or choose another `out`"
        )
    if held and not overwrite and not resume:
        remedy = f"{'`resume=True` to go on, ' if STATE in held else ''}`overwrite=True` to replace"
        raise InputError(f"{out} already holds {' and '.join(held)}; give {remedy}, or choose another `out`")


def make_writable(out: Path) -> None:
    """Create the folder `out`, with its parents, where it is missing. InputError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {out} ({error.strerror}); choose another `out`"
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"the folder {out} cannot be written; choose another `out`")


@contextlib.contextmanager
def made_for(out: Path) -> Iterator[None]:
    """The folder `out`, made before the block so that it need not fail late. Where the block fails and leaves nothing
    in it, it goes again, with the parents that were made. Raises InputError as `make_writable`.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    make_writable(out)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty
            for folder in new:
                folder.rmdir()
        raise


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """The folder `out`, made as by `made_for`, for this training alone, without what killed writers left half-written.

    Raises InputError where another training writes it.
    """
    with made_for(out), contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive(out / _LOCK, _busy(out), remove=True))
        except OSError as error:
            raise InputError(
                f"{out / _LOCK} cannot be locked ({error.strerror}); choose an `out` on another disk"
            ) from error
        for folder in (out, out / BEST):
            if folder.is_dir():
                remove_leftovers(folder, (*WRITTEN, STATE, METRICS))
        yield


def _busy(out: Path) -> str:
    return f"another training is writing {out}: wait for it or stop it, or choose another `out`"


def clear(out: Path) -> None:
    """Remove what an earlier run left in `out`, its state first, so that nothing of it can be resumed or mixed up."""
    for name in (STATE, METRICS, *_OLDER):
        (out / name).unlink(missing_ok=True)
    remove_weights(out)
    if (out / BEST).is_dir():
        remove_weights(out / BEST)
        with contextlib.suppress(OSError):  # something else is in it
            (out / BEST).rmdir()
    if (out / EVENTS).is_dir():
        for file in (out / EVENTS).glob("events.out.tfevents.*"):
            file.unlink()
