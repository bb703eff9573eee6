"""Triton's interpreter in less time: what it does in every call, and the same each time, is done once."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def quicken() -> None:
    """Change the interpreter of this process. Its checks stay, and its results but for how products are rounded."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    semantic = importlib.import_module("triton.language.semantic")
    patched: set[str] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        """It patches triton.language anew for every call of a device function, some 20 ms; once a module does.

        A launch itself patches and restores what its kernel sees; patches for Triton's own modules stay.
        """
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    slow_numpy_type = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def numpy_type(kind: Any) -> Any:
        """It makes a table of all types for each look into it."""
        name = kind.scalar.name
        if name not in known:
            known[name] = slow_numpy_type(kind)
        return known[name]

    slow_dot = interpreter.InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        """Its product is that of a BLAS, which may sum one row in another order than the next. In float64 that does not
        show, as it does not on a GPU, where each element is summed alike."""
        if any(x.data.dtype != np.float32 for x in (a, b, d)):
            return slow_dot(self, a, b, d, *options)
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return interpreter.TensorHandle(product.astype(np.float32) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot
    interpreter.InterpretedFunction.__call__ = call
    interpreter._get_np_dtype = numpy_type
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow


def _refuse_overflow(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
    """Integers of up to 32 bits must not overflow. The interpreter says that in ten operations of Triton's language."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64:
        return
    exact = _EXACT[operation.__name__](lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    fits = (exact >= kind.get_int_min_value()) & (exact <= kind.get_int_max_value())
    assert fits.all(), f"int{kind.int_bitwidth} overflow in {operation.__name__}"
