"""A device function that several kernels use."""

import triton
import triton.language as tl


@triton.jit
def dot(a, w, acc, PRECISION: tl.constexpr):
    """acc + a · w. "upcast" multiplies in float32: the interpreter cannot multiply bfloat16."""
    if PRECISION == "upcast":
        result = tl.dot(a.to(tl.float32), w.to(tl.float32), acc=acc, input_precision="ieee")
    else:
        result = tl.dot(a, w, acc=acc, input_precision=PRECISION)
    return result
