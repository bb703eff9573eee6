"""The folder of an output that consists of several files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import make_folder
from deeplight.engine.output.parts import check_utf8


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """The folder, which is made if it does not exist, and removed again if nothing was written into it.

    Raises InputError where it cannot be made.
    """
    check_utf8(folder)
    made = not os.path.lexists(folder)
    if not made and not folder.is_dir():
        raise InputError(f"{folder} is not a folder, and the output is one: choose another name")
    if made and not folder.parent.is_dir():
        what = "is a file" if folder.parent.exists() else "is not there; create it first"
        raise InputError(f"the folder {folder} cannot be made: {folder.parent} {what}")
    try:
        make_folder(folder)
    except DeepLightError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise InputError(f"the folder {folder} cannot be made ({reason}): choose another one") from None
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
