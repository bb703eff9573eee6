"""The programs as a user starts them, and the commands in their messages, executed as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.in_process import MAINS, run_here

FOLDER = Path(sys.executable).parent
MODULES = {program: module for program, (module, _) in MAINS.items()}
"""The module of each program, for `python -m`."""


def run(
    program: str, *arguments: object, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder; with environment variables in a process of its own."""
    if environment is None:
        return run_here(program, *arguments, cwd=cwd)
    command = [sys.executable, "-m", MODULES[program], *map(str, arguments)]
    clean = {k: v for k, v in os.environ.items() if k not in ("PROJ_DATA", "PROJ_LIB")}
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=clean | environment,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a request that was refused, exit status 2."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def shell(
    command: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as printed, in a shell that finds the programs that `pip install` has put beside Python."""
    found = {"PATH": f"{FOLDER}:{os.environ['PATH']}"} | (environment or {})
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **found},
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


def advised(message: str, start: str) -> str:
    """The command at the end of a message."""
    assert start in message, message
    return message[message.index(start) :]


def options_in(message: str) -> list[str]:
    """The options that a message advises, with their values: "add --ntl-crs EPSG:4326" → ["--ntl-crs", "EPSG:4326"]."""
    pairs = re.findall(r"(--(?:ntl|dmo|dem)(?:-[a-z]+)*) ('[^']*'|[^\s;,(]*[^\s;:,(])", message)
    assert pairs, message
    return [part.strip("'") for pair in pairs for part in pair]
