"""Trouble of the environment that a program runs in, told as such: neither a defect of DeepLight nor of a file."""

from __future__ import annotations

import os

_PROJ_VARIABLES = ("PROJ_DATA", "PROJ_LIB")


def proj_trouble() -> str | None:
    """A sentence where PROJ finds no coordinate systems because the environment sends it to other files; else None."""
    named = [name for name in _PROJ_VARIABLES if name in os.environ]
    if not named:
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        CRS.from_epsg(4326)
    except CRSError:
        told = " and ".join(f"{name}={os.environ[name]}" for name in named)
        return (
            f"{told} sends PROJ to files of another installation, which it cannot read: "
            f"run it again after unset {' '.join(named)}"
        )
    return None


def environment_trouble(error: BaseException) -> str | None:
    """A sentence for an exception that the environment is to blame for; None for any other."""
    if isinstance(error, UnicodeEncodeError):
        return (
            f"a name or a text cannot be written in the encoding that is set here ({error}): "
            "run it again after export PYTHONUTF8=1"
        )
    if type(error).__module__.startswith("rasterio"):
        return proj_trouble()
    return None
