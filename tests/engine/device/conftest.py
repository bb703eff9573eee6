"""Small tiles go through kernels in Triton's interpreter here too."""

from __future__ import annotations

from tests.kernels.conftest import quick_interpreter

__all__ = ["quick_interpreter"]
