"""Command lines as a user starts them, but in this process, where Python and its libraries are loaded already.

A process of its own costs one to three seconds of imports. It is needed only for tests of what depends on the process,
such as environment variables, signals, and which modules are loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

MAINS = {
    "deeplight-infer": ("deeplight.engine.cli", "main"),
    "deeplight-data": ("deeplight.train.data_cli", "main"),
    "deeplight-train": ("deeplight.train.cli", "main"),
    "deeplight-score": ("deeplight.train.cli", "score_main"),
    "deeplight-eval": ("deeplight.train.eval_cli", "main"),
    "deeplight-export": ("deeplight.export.cli", "main"),
    "deeplight-zonal": ("deeplight.engine.zonal.cli", "main"),
}
Done = subprocess.CompletedProcess[str]
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python does not show by default."""


def run_here(program: str, *arguments: object, cwd: Path) -> Done:
    """Run a program in the folder cwd. Returns its exit status and all that it prints, also from C libraries."""
    command = [program, *map(str, arguments)]
    module, name = MAINS[program]
    main = getattr(import_module(module), name)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _redirected(1, out), _redirected(2, err), _as_outside_of_pytest(), contextlib.chdir(cwd):
            status = _status(main, command)
        return Done(command, status, *(_text(file) for file in (out, err)))


def _status(main: Callable[[], Any], command: list[str]) -> int:
    before, sys.argv = sys.argv, command
    try:
        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    finally:
        sys.argv = before
    raise AssertionError(f"{command[0]} returned without an exit status")


@contextlib.contextmanager
def _redirected(number: int, file: IO[bytes]) -> Iterator[None]:
    """Redirect a file descriptor of this process, and Python's stream on it, into a file."""
    kept = os.dup(number)
    redirect: Any = contextlib.redirect_stdout if number == 1 else contextlib.redirect_stderr
    os.dup2(file.fileno(), number)
    try:
        with open(number, "w", encoding="utf-8", buffering=1, closefd=False) as stream, redirect(stream):
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextlib.contextmanager
def _as_outside_of_pytest() -> Iterator[None]:
    """Send warnings and unhandled logs to stderr, as in a program, and not to pytest."""

    def show(message: Warning | str, category: type[Warning], file: str, line: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, file, line))

    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for category in _QUIET:
                warnings.simplefilter("ignore", category)
            warnings.showwarning = show
            yield
    finally:
        root.handlers = handlers


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
