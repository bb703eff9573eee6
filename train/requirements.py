"""The packages that training and exporting need and a plain installation leaves out (the extra `train`)."""

from __future__ import annotations

import importlib

from deeplight.engine.errors import InputError

TRAINING = ("torch", "safetensors")
EXPORTING = ("torch", "safetensors", "onnx", "onnxscript")
_TITLES = {"torch": "PyTorch"}


def require(program: str, modules: tuple[str, ...]) -> None:
    """Import `modules` by name. Raises InputError, which says how to install them, at the first that cannot be."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"{program} needs {_TITLES.get(module, module)}: pip install 'deeplight[train]'"
            ) from error
