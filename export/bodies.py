"""The ONNX bodies of the operators deeplight::…: each computes what the operator's reference.py defines.

They are written for ONNX Runtime on a CPU, which computes convolutions in blocks of 8 or 16 channels and moves long
rows fast:

- `align` gathers pixels as rows of all their channels.
- `upsample` moves rows of all channels of two pixels to their places, where DepthToSpace would move single numbers.
- `finest` is `upsample` and `refine` of its result, computed on the coarse grid, with the four pixels of a block as
  channels: 4C of them fill the blocks, C (8 in `tiny`) do not. Its channels are in the order (row in the block,
  channel, column in the block). A 3×3 convolution reaches two of three blocks along columns, so that each row of a
  block has a convolution of its own, of 2×3 blocks.

Constants that follow from weights are folded when a runtime loads the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight import kernels
from deeplight.kernels.fuse.reference import LOGIT_BOUND, MASK_EPSILON

_SCALED = """
    k = Constant <value_float: float = @gain> ()
    scaled = Mul (value, k)
    low = Constant <value_float = 0.0> ()
    high = Constant <value_float: float = @top> ()
    bounded = Clip (scaled, low, high)
    grown = Exp (bounded)
    unity = Constant <value_float = 1.0> ()
    shrunk = Sub (grown, unity)
    u = Constant <value_float: float = @unit> ()
    radiance = Mul (shrunk, u)
"""
"""From `value`, in the log domain, to radiance."""

_BLOCK = """
    ypad = Conv <pads = [1, 1, 1, 1]> (y, weight, bias)
    yact = Relu (ypad)
    z = Add (y, yact)
    base = Cast <to = 1> (level)
"""

_RESIDUAL = """
    residual = Conv (z, residual_weight, residual_bias)
    residual32 = Cast <to = 1> (residual)
"""


def _exact(weight: str, bias: str) -> str:
    """The residual of reduced features. Rounded, it would be wrong by a share of the radiance, its exponential."""
    return f"""
        z32 = Cast <to = 1> (z)
        weight32 = Cast <to = 1> ({weight})
        bias32 = Cast <to = 1> ({bias})
        residual32 = Conv (z32, weight32, bias32)
    """


_RADIANCE = (
    """
    value = Add (base, residual32)
"""
    + _SCALED
)

_PROBABILITY = """
    logits = Conv (x, isp_weight, isp_bias)
    p = Sigmoid (logits)
    isp = Cast <to = 1> (p)
    column = Constant <value_ints = [0, 2, 3]> ()
    direction = Unsqueeze (embed, column)
    push = Mul (p, direction)
    y = Add (x, push)
"""

_PHASES = """
        flat = Constant <value_ints = [-1]> ()
        phases = Constant <value_ints = [-1, 2, 2]> ()
        around = Shape <start = 1> (up_weight)
        by_phase = Concat <axis = 0> (phases, around)
        all_of_them = Concat <axis = 0> (flat, around)
        up_phases = Reshape (up_weight, by_phase)
        up_ordered = Transpose <perm = [1, 0, 2, 3, 4, 5]> (up_phases)
        up_kernel = Reshape (up_ordered, all_of_them)
        up_bias3 = Reshape (up_bias, phases)
        up_bias_ordered = Transpose <perm = [1, 0, 2]> (up_bias3)
        up_shift = Reshape (up_bias_ordered, flat)
        up_sum = Conv <pads = [1, 1, 1, 1]> (x, up_kernel, up_shift)
        r = Relu (up_sum)
        same = CastLike (identity, x)
        four_out = Constant <value_ints = [4, -1, 1, 1]> ()
        four_in = Constant <value_ints = [-1, 4, 1, 1]> ()
        fours = Constant <value_ints = [4]> ()
        isp_line = Reshape (isp_weight, flat)
        isp_phases = Einsum <equation = "c,yq,xr->yxqcr"> (isp_line, same, same)
        isp_kernel = Reshape (isp_phases, four_out)
        isp_shift = Expand (isp_bias, fours)
        logits = Conv (r, isp_kernel, isp_shift)
        p = Sigmoid (logits)
        p32 = Cast <to = 1> (p)
        isp = DepthToSpace <blocksize = 2, mode = "CRD"> (p32)
        push_phases = Einsum <equation = "c,yq,xr->qcryx"> (embed, same, same)
        push_kernel = Reshape (push_phases, four_in)
        push = Conv (p, push_kernel)
        y = Add (r, push)
        tap = CastLike (taps, x)
        blocks = Einsum <equation = "oiab,qpka,rslb->qorpiskl"> (weight, tap, tap)
        channels = Shape (up_bias)
        three = Constant <value_ints = [3, 3]> ()
        sides = Concat <axis = 0> (channels, channels, three)
        kernel = Reshape (blocks, sides)
        upper, lower = Split <axis = 0, num_outputs = 2> (kernel)
        upper_kernel, below = Split <axis = 2> (upper, two_one)
        above, lower_kernel = Split <axis = 2> (lower, one_two)
        bias_column = Unsqueeze (bias, axis1)
        twice = Constant <value_ints = [1, 2]> ()
        bias_pairs = Expand (bias_column, twice)
        shift = Reshape (bias_pairs, flat)
        upper_sum = Conv <pads = [1, 1, 0, 1]> (y, upper_kernel, shift)
        lower_sum = Conv <pads = [0, 1, 1, 1]> (y, lower_kernel, shift)
        upper_act = Relu (upper_sum)
        lower_act = Relu (lower_sum)
        act = Concat <axis = 1> (upper_act, lower_act)
        z = Add (y, act)
        residual_line = Reshape (residual_weight, flat)
        residual_phases = Einsum <equation = "c,yq,xr->yxqcr"> (residual_line, same, same)
        residual_kernel = Reshape (residual_phases, four_out)
        residual_shift = Expand (residual_bias, fours)
"""


def _with_float32_einsum(text: str) -> str:
    """A body of reduced features: ONNX has no Einsum of bfloat16. What these make is exact in every type."""
    text = re.sub(r"CastLike \((identity|taps), x\)", r"Identity (\1)", text)
    widened = r"\3_wide = Cast <to = 1> (\3)\n\1_wide = \2 (\3_wide, \4)\n\1 = CastLike (\1_wide, x)"
    return re.sub(r"(\w+) = (Einsum <.*>) \((\w+), (.*)\)", widened, text)


_RESIDUALS = """
        residual4 = Conv (z, residual_kernel, residual_shift)
        residual32 = Cast <to = 1> (residual4)
"""

_FINE_RADIANCE = (
    """
        residual = DepthToSpace <blocksize = 2, mode = "CRD"> (residual32)
        base = Cast <to = 1> (level)
        value = Add (base, residual)
"""
    + _SCALED
)

_SHARES = f"""
        plane = Constant <value_ints = [2, 3]> ()
        query = Unsqueeze (query_main, plane)
        shared = Conv (main, query, query_bias)
        shared0, shared1 = Split <axis = 1, num_outputs = 2> (shared)
        queries = Unsqueeze (query_aux, plane)
        at0 = Constant <value_ints = [0]> ()
        at1 = Constant <value_ints = [1]> ()
        at2 = Constant <value_ints = [2]> ()
        query0 = Slice (queries, at0, at1, at0)
        query1 = Slice (queries, at1, at2, at0)
        own0 = Conv (aux0, query0)
        own1 = Conv (aux1, query1)
        low0 = Add (own0, shared0)
        low1 = Add (own1, shared1)
        logit0 = Cast <to = 1> (low0)
        logit1 = Cast <to = 1> (low1)
        narrow = Constant <value_float = {1 / LOGIT_BOUND}> ()
        wide = Constant <value_float = {LOGIT_BOUND}> ()
        s0 = Mul (logit0, narrow)
        s1 = Mul (logit1, narrow)
        h0 = Tanh (s0)
        h1 = Tanh (s1)
        b0 = Mul (h0, wide)
        b1 = Mul (h1, wide)
        e0 = Exp (b0)
        e1 = Exp (b1)
        k0 = Cast <to = 1> (mask0)
        k1 = Cast <to = 1> (mask1)
        gate0 = Mul (k0, e0)
        gate1 = Mul (k1, e1)
        both = Add (gate0, gate1)
        epsilon = Constant <value_float = {MASK_EPSILON}> ()
        total = Add (both, epsilon)
        scale = Reciprocal (total)
        w0 = Mul (gate0, scale)
        w1 = Mul (gate1, scale)
        share0 = CastLike (w0, main)
        share1 = CastLike (w1, main)
        part0 = Mul (share0, aux0)
        part1 = Mul (share1, aux1)
        mixed = Add (part0, part1)
"""
"""What the modalities give, mixed."""


def _film(wide: str = "", out: str = "out") -> str:
    """The modulation of `main` by what was mixed. wide: a suffix of the names of its inputs."""
    return f"""        film = Unsqueeze (film_weight{wide}, plane)
        all = Shape (film_bias{wide})
        half = Div (all, at2)
        gain_weight = Slice (film, at0, half, at0)
        beta_weight = Slice (film, half, all, at0)
        gamma_bias = Slice (film_bias{wide}, at0, half, at0)
        beta_bias = Slice (film_bias{wide}, half, all, at0)
        unity = Constant <value_float = 1.0> ()
        unity_like = CastLike (unity, film_bias{wide})
        gain_bias = Add (gamma_bias, unity_like)
        factor = Conv (mixed{wide}, gain_weight, gain_bias)
        beta = Conv (mixed{wide}, beta_weight, beta_bias)
        modulated = Mul (main{wide}, factor)
        {out} = Add (modulated, beta)
    """


def _exact_film() -> str:
    """The same of reduced features: 1 + γ in few bits is wrong by the same share at all pixels."""
    widened = "".join(
        f"{name}32 = Cast <to = 1> ({name})\n" for name in ("main", "mixed", "film_weight", "film_bias")
    )
    return widened + _film("32", "out32") + "out = CastLike (out32, main)\n"


BODIES = {
    "align": """
        eight = Constant <value_float = 8.0> ()
        scaled = Mul (offset, eight)
        border = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
        wide = Pad <mode = "edge"> (scaled, border)
        phases = Conv <group = 2> (wide, linear)
        dense = DepthToSpace <blocksize = 8, mode = "CRD"> (phases)
        floor = Floor (dense)
        fraction = Sub (dense, floor)
        whole = Cast <to = 7> (floor)
        across, down = Split <axis = 1, num_outputs = 2> (whole)
        fx4, fy4 = Split <axis = 1, num_outputs = 2> (fraction)
        channel = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [3]> ()
        dx = Squeeze (across, channel)
        dy = Squeeze (down, channel)
        fx3 = Squeeze (fx4, channel)
        fy3 = Squeeze (fy4, channel)
        fx32 = Unsqueeze (fx3, last)
        fy32 = Unsqueeze (fy3, last)
        fx = CastLike (fx32, x)
        fy = CastLike (fy32, x)
        nought = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        size = Shape (x)
        i1 = Constant <value_int = 1> ()
        i2 = Constant <value_int = 2> ()
        i3 = Constant <value_int = 3> ()
        b = Gather (size, nought)
        c = Gather (size, i1)
        h = Gather (size, i2)
        w = Gather (size, i3)
        columns = Range (nought, w, one)
        rows1 = Range (nought, h, one)
        second = Constant <value_ints = [1]> ()
        rows = Unsqueeze (rows1, second)
        col = Add (columns, dx)
        row = Add (rows, dy)
        right = Sub (w, one)
        bottom = Sub (h, one)
        colnext = Add (col, one)
        rownext = Add (row, one)
        col0 = Clip (col, nought, right)
        col1 = Clip (colnext, nought, right)
        rowa = Clip (row, nought, bottom)
        rowb = Clip (rownext, nought, bottom)
        images = Range (nought, b, one)
        area = Mul (h, w)
        starts = Mul (images, area)
        behind = Constant <value_ints = [1, 2]> ()
        first = Unsqueeze (starts, behind)
        linea = Mul (rowa, w)
        lineb = Mul (rowb, w)
        row0 = Add (first, linea)
        row1 = Add (first, lineb)
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        rest = Constant <value_ints = [-1]> ()
        cc = Unsqueeze (c, axis0)
        flat = Concat <axis = 0> (rest, cc)
        pixels = Reshape (nhwc, flat)
        p00 = Add (row0, col0)
        p01 = Add (row0, col1)
        p10 = Add (row1, col0)
        p11 = Add (row1, col1)
        t00 = Gather (pixels, p00)
        t01 = Gather (pixels, p01)
        t10 = Gather (pixels, p10)
        t11 = Gather (pixels, p11)
        d0 = Sub (t01, t00)
        d1 = Sub (t11, t10)
        m0 = Mul (d0, fx)
        m1 = Mul (d1, fx)
        upper = Add (t00, m0)
        lower = Add (t10, m1)
        d = Sub (lower, upper)
        m = Mul (d, fy)
        moved = Add (upper, m)
        out = Transpose <perm = [0, 3, 1, 2]> (moved)
    """,
    "fuse": _SHARES + _film(),
    "upsample": """
        flat = Constant <value_ints = [-1]> ()
        phases = Constant <value_ints = [-1, 4]> ()
        around = Shape <start = 1> (weight)
        by_phase = Concat <axis = 0> (phases, around)
        all_of_them = Concat <axis = 0> (flat, around)
        weight5 = Reshape (weight, by_phase)
        weight_ordered = Transpose <perm = [1, 0, 2, 3, 4]> (weight5)
        kernel = Reshape (weight_ordered, all_of_them)
        bias2 = Reshape (bias, phases)
        bias_ordered = Transpose <perm = [1, 0]> (bias2)
        shift = Reshape (bias_ordered, flat)
        y = Conv <pads = [1, 1, 1, 1]> (x, kernel, shift)
        r = Relu (y)
        nhwc = Transpose <perm = [0, 2, 3, 1]> (r)
        rows_of_two = Constant <value_ints = [0, 0, 0, 2, -1]> ()
        split = Reshape (nhwc, rows_of_two)
        joined = Transpose <perm = [0, 1, 3, 2, 4]> (split)
        size = Shape (joined)
        i0 = Constant <value_ints = [0]> ()
        i1 = Constant <value_ints = [1]> ()
        i2 = Constant <value_ints = [2]> ()
        i3 = Constant <value_ints = [3]> ()
        i4 = Constant <value_ints = [4]> ()
        b = Slice (size, i0, i1)
        h = Slice (size, i1, i2)
        w = Slice (size, i3, i4)
        h2 = Mul (h, i2)
        w2 = Mul (w, i2)
        all = Shape (bias)
        c = Div (all, i4)
        twice = Concat <axis = 0> (b, h2, w2, c)
        large = Reshape (joined, twice)
        out = Transpose <perm = [0, 3, 1, 2]> (large)
    """,
    "refine": _PROBABILITY + _BLOCK + _RESIDUAL + _RADIANCE,
    "refine_last": _BLOCK + _RESIDUAL + _RADIANCE,
    "finest": _PHASES + _RESIDUALS + _FINE_RADIANCE,
}
"""Operator → body for float32."""

REDUCED = BODIES | {
    "fuse": _SHARES + _exact_film(),
    "refine": _PROBABILITY + _BLOCK + _exact("residual_weight", "residual_bias") + _RADIANCE,
    "refine_last": _BLOCK + _exact("residual_weight", "residual_bias") + _RADIANCE,
    "finest": _with_float32_einsum(_PHASES) + _exact("residual_kernel", "residual_shift") + _FINE_RADIANCE,
}
"""Operator → body for features of a reduced type, with float32 where the operator's reference.py has it."""

TENSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "align": lambda: {
        "linear": kernels.interpolation_kernel(8, "linear").repeat(2, 1, 1, 1).numpy(),
        "axis0": np.zeros(1, np.int64),
    },
    "finest": lambda: {
        "identity": np.eye(2, dtype=np.float32),
        "taps": _taps(),
        "axis1": np.array([1]),
        "one_two": np.array([1, 2]),
        "two_one": np.array([2, 1]),
    },
}
"""Operator → constants of its body that are tensors."""


def _taps() -> NDArray[np.float32]:
    """Which tap of a convolution of 3 pixels joins two pixels of blocks of 2: (2, 2, 3, 3) of 0 and 1, for the pixel in
    its block, the pixel that it takes in, that one's block (before, the same, behind) and the tap."""
    at = np.indices((2, 2, 3, 3))
    met: NDArray[np.bool_] = 2 * (at[2] - 1) + at[1] - at[0] == at[3] - 1
    return met.astype(np.float32)
