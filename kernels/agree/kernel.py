"""One step towards what the sensor saw: a pass over the radiance for blur and area mean, and one for the change. The
base, whose steps begin with the lights enlarged, is computed from maps on the lights' grid alone."""

import triton
import triton.language as tl


@triton.jit
def _columns(j, width):
    """Of HR columns j inside the image: the four LR columns around them, and the place between the middle two."""
    left = (j % 8 < 4).to(tl.int32)
    u = (j % 8).to(tl.float32) * 0.125 + (left.to(tl.float32) - 0.4375)
    q = j // 8 - left
    last = width - 1
    q0 = tl.minimum(tl.maximum(q - 1, 0), last)
    q1 = tl.minimum(tl.maximum(q, 0), last)
    return q0, q1, tl.minimum(q + 1, last), tl.minimum(q + 2, last), u


@triton.jit
def _cubic(a, b, c, d, u):
    """Between b, at 0, and c, at 1, by the cubic convolution with a = −0.5 (Keys 1981)."""
    w0 = ((2.0 - u) * u - 1.0) * u * 0.5
    w1 = (1.5 * u - 2.5) * u * u + 1.0
    w2 = ((2.0 - 1.5 * u) * u + 0.5) * u
    w3 = (u - 1.0) * u * u * 0.5
    return a * w0 + b * w1 + c * w2 + d * w3


@triton.jit
def _row(lights, k, height, width, at):
    """LR row k of an image, enlarged along the row. Beyond the edge the outermost row is repeated."""
    row = lights + tl.minimum(tl.maximum(k, 0), height - 1).to(tl.int64) * width
    return _cubic(
        tl.load(row + at[0]), tl.load(row + at[1]), tl.load(row + at[2]), tl.load(row + at[3]), at[4]
    )


@triton.jit
def _growth(change, k, height, width, at):
    """LR row k of a change, interpolated linearly along the row. Beyond the edge the outermost row is repeated."""
    row = change + tl.minimum(tl.maximum(k, 0), height - 1).to(tl.int64) * width
    a = tl.load(row + at[1])
    return a + (tl.load(row + at[2]) - a) * at[4]


@triton.jit
def _five(lights, k, height, width, at):
    """LR rows k − 2 to k + 2, enlarged along the row."""
    return (
        _row(lights, k - 2, height, width, at),
        _row(lights, k - 1, height, width, at),
        _row(lights, k, height, width, at),
        _row(lights, k + 1, height, width, at),
        _row(lights, k + 2, height, width, at),
    )


@triton.jit
def _three(change, k, height, width, at):
    """Rows k − 1 to k + 1 of a change, interpolated along the row."""
    return (
        _growth(change, k - 1, height, width, at),
        _growth(change, k, height, width, at),
        _growth(change, k + 1, height, width, at),
    )


@triton.jit
def _enlarged(rows, T: tl.constexpr):
    """HR row T of an LR row, bounded below, from the five rows around it."""
    if T < 4:
        value = _cubic(rows[0], rows[1], rows[2], rows[3], T * 0.125 + 0.5625)
    else:
        value = _cubic(rows[1], rows[2], rows[3], rows[4], T * 0.125 - 0.4375)
    return tl.maximum(value, 0.0)


@triton.jit
def _grown(value, rows, T: tl.constexpr):
    """HR row T of an LR row, which grows by a change, from its three rows around it."""
    if T < 4:
        asked = rows[0] + (rows[1] - rows[0]) * (T * 0.125 + 0.5625)
    else:
        asked = rows[1] + (rows[2] - rows[1]) * (T * 0.125 - 0.4375)
    return value * (1.0 + asked)


@triton.jit
def observe(
    radiance,  # [B, 8h, 8w]; unused where it is MADE
    change,  # [B, h, w]: used with MADE > 0
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
    MADE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The share by which the radiance should grow at each LR pixel. A program computes ROWS × (BLOCK / 8 − 2·REACH) of
    them.

    Each HR row that is read is added to the sums of those LR rows whose blur reaches it. Then one matrix product blurs
    along the columns. MADE: −1, the radiance is read; 0, it is y, enlarged; 1, it has grown by `change` since.
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
    here = image.to(tl.int64) * height * width
    between = _columns(8 * block + q % 8, width)
    line_weights = rows + image * (taps * 8)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for b in range(ROWS + 2 * REACH):
        lr = tl.minimum(tl.maximum(first_row - REACH + b, 0), height - 1)
        k = b - r
        seeing = (k >= 0) & (k < taps)
        if MADE >= 0:
            around = _five(y + here, lr, height, width, between)
            if MADE > 0:
                grown = _three(change + here, lr, height, width, between)
        for t in tl.static_range(8):
            weight = tl.load(line_weights + k * 8 + t, mask=seeing, other=0.0)
            if MADE >= 0:
                value = _enlarged(around, t)
                if MADE > 0:
                    value = _grown(value, grown, t)
            else:
                value = tl.load(at + (8 * lr + t).to(tl.int64) * (8 * width))
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
    # for pixels beyond the row, its last cell is used and nothing is stored
    grown = _three(change + (row - i).to(tl.int64) * width, i, height, width, _columns(j, width))
    live = j < wide
    at = row.to(tl.int64) * 8 * wide + j
    for phase in tl.static_range(8):
        value = tl.load(radiance + at + phase * wide, mask=live, other=0.0)
        tl.store(out + at + phase * wide, _grown(value, grown, phase), mask=live)


@triton.jit
def start(
    y,  # [B, h, w]
    change,  # [B, h, w]
    second,  # [B, h, w]
    out,  # [B, 8h, 8w]
    height,  # LR pixels
    width,
    BLOCK: tl.constexpr,
):
    """The lights y, enlarged, which have grown by two changes. A program computes BLOCK columns of the 8 HR rows of an
    LR row."""
    wide = 8 * width
    blocks = tl.cdiv(wide, BLOCK)
    row = tl.program_id(0) // blocks  # of all images
    i = row % height
    j = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = (row - i).to(tl.int64) * width
    between = _columns(j, width)
    lights = _five(y + here, i, height, width, between)
    once = _three(change + here, i, height, width, between)
    twice = _three(second + here, i, height, width, between)
    live = j < wide
    at = out + row.to(tl.int64) * 8 * wide + j
    for phase in tl.static_range(8):
        value = _grown(_grown(_enlarged(lights, phase), once, phase), twice, phase)
        tl.store(at + phase * wide, value, mask=live)
