"""Gives xarray its accessor when somebody imports xarray, before or after deeplight; imports neither it nor the API."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def watch() -> None:
    """Register the accessor now where xarray is imported, else when it is."""
    xarray = sys.modules.get("xarray")
    if xarray is not None and hasattr(xarray, "register_dataarray_accessor"):
        _register(xarray)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(xarray: ModuleType) -> None:
    from deeplight.api.accessor import register

    register(xarray)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds xarray as everybody does, and has a word when it is loaded; being looked for is not yet being loaded."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of xarray, whose loader registers the accessor at its end; None for any other module."""
        if name != "xarray" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as the module's own loader does, then registers."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module as its own loader creates it."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module by its own loader, then register the accessor with it."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        _register(module)
