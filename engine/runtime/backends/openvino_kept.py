"""Compiled programs in the user's cache folder, with checksums: OpenVINO's own cache runs damaged weights."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplight.engine.core.cache_folder import cache_folder
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.machine import processor
from deeplight.engine.runtime.backends import openvino_graph

_log = logging.getLogger(__name__)

_MOST = 64
"""Programs in the folder, of 2 MB each: scenes that come in ever other shapes would fill the disk."""
_SUFFIX = ".blob"
_SUM_BYTES = hashlib.sha256().digest_size


class Kept:
    """Programs by all that they are made of. What is lost, damaged or cannot be written costs time alone.

    core: openvino.Core. model: the serialised ModelProto that they compute.
    """

    def __init__(self, core: Any, model: bytes) -> None:
        self._core = core
        self._folder: Path | None = None
        try:
            made_by = (openvino_graph.READERS, processor(), inspect.getsource(openvino_graph))
            self._origin = hashlib.sha256(repr(made_by).encode() + model).hexdigest()
            self._folder = cache_folder("openvino")
        except (OSError, RuntimeError) as e:  # RuntimeError: no home is known
            _log.debug("compiled programs are not kept for the next run: %s", e)

    def program(self, graph: Any, shape: tuple[int, int, int], options: Mapping[str, object]) -> Any:
        """The model's graph as an openvino.CompiledModel for (batch, h, w), h and w in LR pixels. Raises what the
        library raises."""
        options = dict(options)
        path = self._path(shape, options)
        found = None if path is None else self._read(path, options)
        if found is None:
            found = self._core.compile_model(openvino_graph.shaped(graph, *shape), "CPU", options)
            if path is not None:
                self._write(path, found)
        return found

    def _path(self, shape: tuple[int, int, int], options: Mapping[str, object]) -> Path | None:
        if self._folder is None:
            return None
        made_of = repr((self._origin, shape, sorted(options.items())))
        return self._folder / f"{hashlib.sha256(made_of.encode()).hexdigest()}{_SUFFIX}"

    def _read(self, path: Path, options: dict[str, object]) -> Any:
        """A program; None where there is none that is whole."""
        try:
            data = path.read_bytes()
            if data[:_SUM_BYTES] == _checksum(path, data[_SUM_BYTES:]):
                os.utime(path)
                return self._core.import_model(data[_SUM_BYTES:], "CPU", options)
        except (OSError, RuntimeError) as e:  # RuntimeError: OpenVINO's
            _log.debug("the program %s is compiled anew: %s", path, e)
        return None

    def _write(self, path: Path, program: Any) -> None:
        try:
            data = program.export_model().getvalue()
            write_file(path, [_checksum(path, data), data])
            _remove_oldest(path.parent)
        except (OSError, RuntimeError, DeepLightError) as e:
            _log.debug("compiled programs are not kept for the next run: %s", e)
            self._folder = None


def _remove_oldest(folder: Path) -> None:
    """Of the programs that no process has used for the longest time."""
    with contextlib.suppress(OSError):  # another process may remove them, too
        used = {path: path.stat().st_mtime_ns for path in folder.glob(f"*{_SUFFIX}")}
        for path in sorted(used, key=used.__getitem__)[:-_MOST]:
            path.unlink(missing_ok=True)


def _checksum(path: Path, data: bytes) -> bytes:
    """Of a program that has this name: under it no other is of use."""
    return hashlib.sha256(path.name.encode() + data).digest()
