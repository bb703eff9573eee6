"""Radiance of a tile → output pixels, one element at a time."""

import triton
import triton.language as tl


@triton.jit
def finish(
    radiance,  # [B, H, W]
    valid,  # [B, H/8, W/8]; unused without HAS_VALID
    out,  # [B, H − 2·crop, W − 2·crop]
    height,
    width,
    crop,
    scale,
    offset,
    nodata,
    HAS_VALID: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The halo cut off, steps, nodata, cast. HIGH: highest uint16 value, 0 for float32. One program: BLOCK output
    pixels of a row.
    """
    inner_h = height - 2 * crop
    inner_w = width - 2 * crop
    blocks = tl.cdiv(inner_w, BLOCK)
    pid = tl.program_id(0)
    first = (pid % blocks) * BLOCK
    out_row = pid // blocks
    i = out_row % inner_h + crop
    image = out_row // inner_h
    p = tl.arange(0, BLOCK)
    j = first + crop + p
    live = first + p < inner_w
    at = (image * height + i).to(tl.int64) * width + j
    value = tl.load(radiance + at, mask=live, other=0.0)
    if HIGH > 0:
        # adding 2²³ rounds half to even, as torch.round; the clamp keeps the sum exact
        value = tl.minimum(tl.maximum((value - offset) * (1.0 / scale), LOW), HIGH)
        value = (value + 8388608.0) - 8388608.0
    if HAS_VALID:
        known = tl.load(
            valid + (image * (height // 8) + i // 8).to(tl.int64) * (width // 8) + j // 8, mask=live, other=0
        )
        value = tl.where(known != 0, value, nodata)
    to = out_row.to(tl.int64) * inner_w + first + p
    if HIGH > 0:
        tl.store(out + to, value.to(tl.int32).to(tl.uint16), mask=live)
    else:
        tl.store(out + to, value, mask=live)
