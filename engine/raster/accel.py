"""The native module where it is installed, else None: its callers then use NumPy, with the same results.

The environment variable DEEPLIGHT_NO_NATIVE=1, read once at import, leaves it out.
"""

from __future__ import annotations

import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("DEEPLIGHT_NO_NATIVE") == "1":
        return None
    try:
        from deeplight.engine.raster import _native
    except ImportError:
        return None
    return _native


def missing_module() -> str | None:
    """One line for the log where the native module should be and is not; None else, and from the second time on."""
    global _told
    if NATIVE is not None or _told or os.environ.get("DEEPLIGHT_NO_NATIVE") == "1":
        return None
    _told = True
    return (
        "the native module is not installed (there was no C++ compiler): DMO and DEM are brought onto the grid by "
        "NumPy, with the same result and slower; install again with a compiler, or a wheel that make wheel built "
        "elsewhere"
    )


_told = False
NATIVE: ModuleType | None = _load()
