"""Output pixels of radiance in one pass."""

import triton
import triton.language as tl


@triton.jit
def finish(
    radiance,  # [B, H, W]
    valid,  # [B, H/8, W/8]
    pixels,  # [B, H − 2·crop, W − 2·crop]
    height,
    width,
    crop,
    per_unit,
    offset,
    nodata,
    low,
    high,
    INTEGER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Crop, steps with INTEGER, nodata, cast. per_unit: steps per unit. One program: BLOCK output pixels of a row."""
    inner_h = height - 2 * crop
    inner_w = width - 2 * crop
    blocks = tl.cdiv(inner_w, BLOCK)
    out_row = tl.program_id(0) // blocks
    p = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = p < inner_w
    image = out_row // inner_h
    i = out_row % inner_h + crop
    value = tl.load(radiance + (image * height + i).to(tl.int64) * width + crop + p, mask=live, other=0.0)
    coarse = (image * (height // 8) + i // 8).to(tl.int64) * (width // 8)
    known = tl.load(valid + coarse + (crop + p) // 8, mask=live, other=0)
    known = (known != 0) & (value == value)
    if INTEGER:
        # adding 2²³ rounds half to even, as torch.round; the clamp keeps the sum exact
        value = tl.minimum(tl.maximum((value - offset) * per_unit, low), high)
        value = (value + 8388608.0) - 8388608.0
    value = tl.where(known, value, nodata)
    to = pixels + out_row.to(tl.int64) * inner_w + p
    if INTEGER:
        tl.store(to, value.to(tl.int32).to(tl.uint16), mask=live)
    else:
        tl.store(to, value, mask=live)
