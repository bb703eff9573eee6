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


NATIVE: ModuleType | None = _load()
