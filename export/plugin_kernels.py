"""The Triton kernels with parameters in the order that TensorRT's AOT plugins pass: inputs, int32 scalars, outputs.

Float scalars are compile-time constants there.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from deeplight.kernels.fuse.kernel import fuse
from deeplight.kernels.refine.kernel import refine_narrow
from deeplight.kernels.upsample.kernel import upsample_conv


@triton.jit
def fuse_plugin(
    main,
    aux0,
    aux1,
    mask0,
    mask1,
    query_aux,
    query_main,
    query_bias,
    film_weight,
    film_bias,
    pixels,
    stride0,
    stride1,
    out,
    C: tl.constexpr,
    A: tl.constexpr,
    CP: tl.constexpr,
    AP: tl.constexpr,
    MODALITIES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`fuse`: the arguments and the result are those of deeplight.kernels.fuse.kernel. One block a program."""
    fuse(
        main, aux0, aux1, mask0, mask1, query_aux, query_main, query_bias, film_weight, film_bias, out,
        pixels, stride0, stride1, 1, C, A, CP, AP, MODALITIES, False, PRECISION, BLOCK,
    )  # fmt: skip


@triton.jit
def upsample_plugin(
    x,
    weight,
    bias,
    height,
    width,
    out,
    K: tl.constexpr,
    C: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`upsample`: the arguments and the result are those of deeplight.kernels.upsample.kernel."""
    upsample_conv(x, weight, bias, out, out, height, width, K, C, KP, BLOCK_N, False, PRECISION, BLOCK)


@triton.jit
def refine_plugin(
    x,
    level,
    isp_weight,
    isp_bias,
    embed,
    weight,
    bias,
    residual_weight,
    residual_bias,
    height,
    width,
    radiance,
    isp,
    UNIT: tl.constexpr,
    GAIN: tl.constexpr,
    TOP: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`refine`: the arguments and the result are those of deeplight.kernels.refine.kernel."""
    refine_narrow(
        x, level, level, level, weight, bias, isp_weight, isp_bias, embed, residual_weight, residual_bias, radiance,
        isp, height, width, UNIT, GAIN, TOP, TOP, C, CP, KP, ROWS, False, PRECISION, BLOCK,
    )  # fmt: skip
