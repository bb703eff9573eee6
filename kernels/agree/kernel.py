"""One step towards what the sensor saw: a pass over the radiance for blur and area mean, and one for the change."""

import triton
import triton.language as tl


@triton.jit
def observe(
    radiance,  # [B, 8h, 8w]
    y,  # [B, h, w]
    known,  # [B, h, w]
    saturated,  # [B, h, w]
    rows,  # [B, 7, 8]
    columns,  # [B, 7, 8]
    noise,  # [B]
    power,  # [1]; unused without POWERED
    out,  # [B, h, w]
    height,  # LR pixels
    width,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTP: tl.constexpr,
    POWERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The share by which the radiance should grow at each LR pixel. A program computes ROWS × (BLOCK / 8 − 2·REACH) of
    them.

    Each HR row that is read is added to the sums of those LR rows whose blur reaches it. Then one matrix product blurs
    along the columns.
    """
    taps: tl.constexpr = 2 * REACH + 1
    count: tl.constexpr = BLOCK // 8 - 2 * REACH
    blocks = tl.cdiv(width, count)
    strips = tl.cdiv(height, ROWS)
    pid = tl.program_id(0)
    first_col = (pid % blocks) * count
    first_row = (pid // blocks % strips) * ROWS
    image = pid // blocks // strips
    q = tl.arange(0, BLOCK)
    r = tl.arange(0, ROWS)
    # beyond the edge the outermost block is repeated
    block = tl.minimum(tl.maximum(first_col - REACH + q // 8, 0), width - 1)
    at = radiance + image.to(tl.int64) * 64 * height * width + (8 * block + q % 8)
    line_weights = rows + image * (taps * 8)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for b in range(ROWS + 2 * REACH):
        line = 8 * tl.minimum(tl.maximum(first_row - REACH + b, 0), height - 1)
        k = b - r
        seeing = (k >= 0) & (k < taps)
        for t in tl.static_range(8):
            weight = tl.load(line_weights + k * 8 + t, mask=seeing, other=0.0)
            value = tl.load(at + (line + t).to(tl.int64) * (8 * width))
            total += weight[:, None] * value[None, :]
    o = tl.arange(0, OUTP)
    k = (q // 8)[:, None] - o[None, :]
    across = tl.load(
        columns + image * (taps * 8) + k * 8 + (q % 8)[:, None], mask=(k >= 0) & (k < taps), other=0.0
    )
    seen = tl.dot(total, across, input_precision="ieee")

    live = (first_row + r < height)[:, None] & ((o < count) & (first_col + o < width))[None, :]
    at = image.to(tl.int64) * height * width + (first_row + r)[:, None] * width + (first_col + o)[None, :]
    least = tl.load(noise + image)
    ratio = (tl.load(y + at, mask=live, other=1.0) + least) / (tl.where(live, seen, 1.0) + least)
    if POWERED:
        ratio = tl.exp(tl.log(ratio) * tl.load(power))
    asked = tl.minimum(tl.maximum(ratio, 0.25), 4.0) - 1.0
    more = (tl.maximum(asked, 0.0) - asked) * tl.load(saturated + at, mask=live, other=0.0)
    tl.store(out + at, (asked + more) * tl.load(known + at, mask=live, other=0.0), mask=live)


@triton.jit
def _along(change, row, width, q0, q1, share):
    """Values of an LR row, interpolated between its pixels q0 and q1."""
    start = change + row.to(tl.int64) * width
    a = tl.load(start + q0)
    return a + (tl.load(start + q1) - a) * share


@triton.jit
def rescale(
    radiance,  # [B, 8h, 8w]
    change,  # [B, h, w]
    out,  # [B, 8h, 8w]
    height,  # LR pixels
    width,
    BLOCK: tl.constexpr,
):
    """radiance · (1 + change, interpolated linearly). A program computes BLOCK columns of the 8 HR rows of an LR row.

    Three LR rows of the change are interpolated along the row once, and used for all eight HR rows.
    """
    wide = 8 * width  # this form tells the compiler that rows begin at multiples of 8 pixels
    blocks = tl.cdiv(wide, BLOCK)
    row = tl.program_id(0) // blocks  # of all images
    i = row % height
    j = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    left = (j % 8 < 4).to(tl.int32)
    share = (j % 8).to(tl.float32) * 0.125 + (left.to(tl.float32) - 0.4375)
    q = j // 8 - left
    # for pixels beyond the row, its last cell is used and nothing is stored
    q0 = tl.minimum(tl.maximum(q, 0), width - 1)
    q1 = tl.minimum(q + 1, width - 1)
    above = _along(change, row - tl.minimum(i, 1), width, q0, q1, share)
    here = _along(change, row, width, q0, q1, share)
    below = _along(change, row + tl.minimum(height - 1 - i, 1), width, q0, q1, share)
    live = j < wide
    at = row.to(tl.int64) * 8 * wide + j
    for phase in tl.static_range(8):
        value = tl.load(radiance + at + phase * wide, mask=live, other=0.0)
        if phase < 4:
            asked = above + (here - above) * (phase * 0.125 + 0.5625)
        else:
            asked = here + (below - here) * (phase * 0.125 - 0.4375)
        tl.store(out + at + phase * wide, value * (1.0 + asked), mask=live)
