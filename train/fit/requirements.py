"""The packages that training and exporting need and a plain installation leaves out (the extra `train`)."""

from __future__ import annotations

import importlib
import importlib.util

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command

TRAINING = ("torch", "safetensors", "lightning", "tensorboard")
EXPORTING = ("torch", "safetensors", "onnx", "onnxscript")
_TITLES = {"torch": "PyTorch", "lightning": "Lightning", "tensorboard": "TensorBoard"}


def require(program: str, modules: tuple[str, ...]) -> None:
    """Import `modules` by name. Raises InputError, which says how to install them, at the first that cannot be."""
    # importing takes seconds, so look first whether all are there
    for attempt in (_find, importlib.import_module):
        for module in modules:
            try:
                attempt(module)
            except ImportError as error:
                raise InputError(
                    f"{program} needs {_TITLES.get(module, module)}: {install_command('train')}"
                ) from error


def _find(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(module)
