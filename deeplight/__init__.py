"""DeepLight: coarse nighttime-light rasters in, 8× finer ones out. The import loads nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError, Interrupted

    __version__: str

_HOMES = {
    "ArtifactError": "deeplight.engine.core.errors",
    "DeepLightError": "deeplight.engine.core.errors",
    "InputError": "deeplight.engine.core.errors",
    "Interrupted": "deeplight.engine.core.errors",
}
"""Public name → the module that defines it."""

__all__ = ["ArtifactError", "DeepLightError", "InputError", "Interrupted", "__version__"]


def __getattr__(name: str) -> Any:
    """The public name, imported when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("deeplight")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'deeplight' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
