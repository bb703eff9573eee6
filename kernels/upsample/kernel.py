"""×2 upsampling: the epilogue of a convolution, and the convolution with that epilogue as an implicit GEMM.

Both take the 4C output channels in *phase order*, (2·dy + dx)·C + c, so that PixelShuffle moves contiguous runs.
"""

import triton
import triton.language as tl

from deeplight.kernels.dot import dot


@triton.jit
def upsample_epilogue(
    y,  # [B·H, W, 4C] convolution without bias
    bias,  # [4C]
    skip,  # [B·2H, 2W, C]; unused without HAS_SKIP
    out,  # [B·2H, 2W, C]
    width,
    C: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = PixelShuffle(ReLU(y + bias)) (+ skip). A program computes BLOCK values of the two rows of an input row."""
    run: tl.constexpr = 2 * C
    blocks = tl.cdiv(width * run, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    f = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = f < width * run
    # a pixel of y holds the runs of both output rows, one after the other
    source = f + (f // run) * run
    for dy in tl.static_range(2):
        value = tl.load(y + row * width * (2 * run) + source + dy * run, mask=live, other=0.0)
        shift = tl.load(bias + f % run + dy * run, mask=live, other=0.0)
        result = tl.maximum(value.to(tl.float32) + shift.to(tl.float32), 0.0)
        at = (2 * row + dy) * width * run + f
        if HAS_SKIP:
            result += tl.load(skip + at, mask=live, other=0.0).to(tl.float32)
        tl.store(out + at, result.to(value.dtype), mask=live)


@triton.jit
def upsample_conv(
    x,  # [B, H, W, K]
    weight,  # [9, K, 4C]
    bias,  # [4C]
    skip,  # [B, 2H, 2W, C]; unused without HAS_SKIP
    out,  # [B, 2H, 2W, C]
    height,
    width,
    K: tl.constexpr,
    C: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = PixelShuffle(ReLU(conv3×3(x) + bias)) (+ skip). A program: BLOCK pixels of a row × BLOCK_N channels."""
    parts: tl.constexpr = (4 * C + BLOCK_N - 1) // BLOCK_N
    blocks = tl.cdiv(width, BLOCK)
    pid = tl.program_id(0)
    n = (pid % parts) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = (pid // parts % blocks) * BLOCK
    row = pid // parts // blocks  # of all images
    i = row % height
    p = tl.arange(0, BLOCK)
    k = tl.arange(0, KP)
    acc = tl.zeros((BLOCK, BLOCK_N), dtype=tl.float32)
    for tap in range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        start = ((row + dy).to(tl.int64) * width + first + dx) * K
        col = first + p + dx
        inside = (col >= 0) & (col < width) & (i + dy >= 0) & (i + dy < height)
        a = tl.load(
            x + start + (p[:, None] * K + k[None, :]), mask=inside[:, None] & (k < K)[None, :], other=0.0
        )
        w = tl.load(
            weight + tap * (K * 4 * C) + (k[:, None] * (4 * C) + n[None, :]),
            mask=(k < K)[:, None] & (n < 4 * C)[None, :],
            other=0.0,
        )
        acc = dot(a, w, acc, PRECISION)
    shift = tl.load(bias + n, mask=n < 4 * C, other=0.0).to(tl.float32)
    result = tl.maximum(acc + shift[None, :], 0.0)
    run: tl.constexpr = 2 * C
    begin = 2 * row.to(tl.int64) * width * run + first * run
    at = (n // run) * (width * run) + n % run
    at = begin + (p[:, None] * run + at[None, :])
    live = (first + p < width)[:, None] & (n < 4 * C)[None, :]
    if HAS_SKIP:
        result += tl.load(skip + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=live)
