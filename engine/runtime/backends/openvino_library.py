"""OpenVINO, imported without the package by which it reports every import to its makers."""

from __future__ import annotations

import sys

_REPORTS = "openvino_telemetry"

_hidden = _REPORTS not in sys.modules
if _hidden:
    sys.modules[_REPORTS] = None  # type: ignore[assignment]  # so that its import fails, which OpenVINO allows for
try:
    import openvino as ov
finally:
    if _hidden:
        del sys.modules[_REPORTS]

__all__ = ["ov"]
