"""What the sensor sees of an image, and the base, whose steps begin with the lights enlarged: it is computed from maps
on the lights' grid alone."""

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
def _linear(rows, T: tl.constexpr):
    """HR row T of an LR row, interpolated linearly from its three rows."""
    if T < 4:
        value = rows[0] + (rows[1] - rows[0]) * (T * 0.125 + 0.5625)
    else:
        value = rows[1] + (rows[2] - rows[1]) * (T * 0.125 - 0.4375)
    return value


@triton.jit
def _grown(value, rows, T: tl.constexpr):
    """HR row T of an LR row, which grows by a change, from its three rows around it."""
    return value * (1.0 + _linear(rows, T))


@triton.jit
def _all_enlarged(rows):
    """The eight HR rows of an LR row."""
    return (
        _enlarged(rows, 0),
        _enlarged(rows, 1),
        _enlarged(rows, 2),
        _enlarged(rows, 3),
        _enlarged(rows, 4),
        _enlarged(rows, 5),
        _enlarged(rows, 6),
        _enlarged(rows, 7),
    )


@triton.jit
def _all_grown(v, rows):
    return (
        _grown(v[0], rows, 0),
        _grown(v[1], rows, 1),
        _grown(v[2], rows, 2),
        _grown(v[3], rows, 3),
        _grown(v[4], rows, 4),
        _grown(v[5], rows, 5),
        _grown(v[6], rows, 6),
        _grown(v[7], rows, 7),
    )


@triton.jit
def _eight(at, step):
    """Eight values, or rows of values, `step` apart."""
    return (
        tl.load(at),
        tl.load(at + step),
        tl.load(at + 2 * step),
        tl.load(at + 3 * step),
        tl.load(at + 4 * step),
        tl.load(at + 5 * step),
        tl.load(at + 6 * step),
        tl.load(at + 7 * step),
    )


@triton.jit
def _added(total, v, w):
    """total + v · w, in this order."""
    total += v[0] * w[0]
    total += v[1] * w[1]
    total += v[2] * w[2]
    total += v[3] * w[3]
    total += v[4] * w[4]
    total += v[5] * w[5]
    total += v[6] * w[6]
    return total + v[7] * w[7]


@triton.jit
def _place(height, width, REACH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's image, and its first row and column of LR pixels. It computes ROWS × (BLOCK / 8 − 2·REACH)."""
    count: tl.constexpr = BLOCK // 8 - 2 * REACH
    blocks = tl.cdiv(width, count)
    strips = tl.cdiv(height, ROWS)
    pid = tl.program_id(0)
    return pid // blocks // strips, (pid // blocks % strips) * ROWS, (pid % blocks) * count


@triton.jit
def _down(
    total,
    radiance,
    change,
    y,
    rows,
    place,
    height,
    width,
    FIRST: tl.constexpr,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    MADE: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`total`, [16, BLOCK], with the radiance as the sensor's blur along the rows sees it in rows FIRST and following.

    A row of LR pixels is seen in seven rows of the result, with other weights in each: seven sums run, of which one is
    finished with each row. MADE: −1, the radiance is read; 0, it is y, enlarged; 1, it has grown by `change` since.
    SKIP: 1 leaves the outermost blocks of the weights out.
    """
    tl.static_assert(REACH == 3, "seven sums")
    taps: tl.constexpr = 2 * REACH + 1
    image, first_row, first_col = place
    q = tl.arange(0, BLOCK)
    r = tl.arange(0, 16)
    # beyond the edge the outermost block is repeated
    j = 8 * tl.minimum(tl.maximum(first_col - REACH + q // 8, 0), width - 1) + q % 8
    at = radiance + image.to(tl.int64) * 64 * height * width + j
    here = image.to(tl.int64) * height * width
    line = rows + image * (taps * 8)
    w0 = _eight(line, 1)
    w1 = _eight(line + 8, 1)
    w2 = _eight(line + 16, 1)
    w3 = _eight(line + 24, 1)
    w4 = _eight(line + 32, 1)
    w5 = _eight(line + 40, 1)
    w6 = _eight(line + 48, 1)
    none = tl.zeros((BLOCK,), dtype=tl.float32)
    s0, s1, s2, s3, s4, s5 = none, none, none, none, none, none
    k = tl.minimum(tl.maximum(first_row - REACH, 0), height - 1)
    if MADE >= 0:
        between = _columns(j, width)
        around = _five(y + here, k, height, width, between)
    if MADE > 0:
        grown = _three(change + here, k, height, width, between)
    for b in range(ROWS + 2 * REACH):
        if MADE >= 0:
            v = _all_enlarged(around)
            if MADE > 0:
                v = _all_grown(v, grown)
        else:
            v = _eight(at + k.to(tl.int64) * 64 * width, 8 * width)
        done = s5 if SKIP else _added(s5, v, w6)
        s5 = _added(s4, v, w5)
        s4 = _added(s3, v, w4)
        s3 = _added(s2, v, w3)
        s2 = _added(s1, v, w2)
        s1 = _added(s0, v, w1)
        s0 = none if SKIP else _added(none, v, w0)
        mine = (r >= FIRST) & (r - FIRST == b - 2 * REACH)
        total = tl.where(mine[:, None], done[None, :], total)
        following = tl.minimum(tl.maximum(first_row - REACH + b + 1, 0), height - 1)
        moves = following != k
        k = following
        if MADE >= 0:
            last = _row(y + here, k + 2, height, width, between)
            around = _moved(around, last, moves)
        if MADE > 0:
            last = _growth(change + here, k + 1, height, width, between)
            grown = _moved_three(grown, last, moves)
    return total


@triton.jit
def _across(
    total, columns, image, REACH: tl.constexpr, OUTP: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows of HR columns as the sensor's blur along the columns sees them, [16, OUTP], by one matrix product. SKIP: as
    in `_down`."""
    taps: tl.constexpr = 2 * REACH + 1
    q = tl.arange(0, BLOCK)
    o = tl.arange(0, OUTP)
    k = (q // 8)[:, None] - o[None, :]
    line = columns + image * (taps * 8)
    weight = tl.load(line + k * 8 + (q % 8)[:, None], mask=(k >= SKIP) & (k < taps - SKIP), other=0.0)
    return tl.dot(total, weight, input_precision="ieee")


@triton.jit
def _here(
    r, place, height, width, REACH: tl.constexpr, ROWS: tl.constexpr, OUTP: tl.constexpr, BLOCK: tl.constexpr
):
    """Of the program's rows r: which LR pixels are its own and in the image, and where they are in a map."""
    image, first_row, first_col = place
    o = tl.arange(0, OUTP)
    own = o < BLOCK // 8 - 2 * REACH
    live = ((r < ROWS) & (first_row + r < height))[:, None] & (own & (first_col + o < width))[None, :]
    row = image.to(tl.int64) * height * width + (first_row + r)[:, None] * width
    return live, row + (first_col + o)[None, :]


@triton.jit
def observe(
    change,  # [B, h, w]; used with MADE = 1
    y,  # [B, h, w]
    known,  # [B, h, w]
    saturated,  # [B, h, w]
    rows,  # [B, 7, 8]
    columns,  # [B, 7, 8]
    noise,  # [B]
    power,  # [1]
    out,  # [B, h, w]
    height,  # LR pixels
    width,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTP: tl.constexpr,
    MADE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The share by which the base should grow at each LR pixel. MADE: how often it has grown before, at most once."""
    place = _place(height, width, REACH, ROWS, BLOCK)
    # a product has at least 16 rows
    total = tl.zeros((16, BLOCK), dtype=tl.float32)
    total = _down(total, y, change, y, rows, place, height, width, 0, REACH, ROWS, MADE, 0, BLOCK)
    seen = _across(total, columns, place[0], REACH, OUTP, 0, BLOCK)
    live, at = _here(tl.arange(0, 16), place, height, width, REACH, ROWS, OUTP, BLOCK)
    least = tl.load(noise + place[0])
    ratio = (tl.load(y + at, mask=live, other=1.0) + least) / (tl.where(live, seen, 1.0) + least)
    ratio = tl.exp(tl.log(ratio) * tl.load(power))
    asked = _asked(ratio, tl.load(saturated + at, mask=live, other=0.0))
    tl.store(out + at, asked * tl.load(known + at, mask=live, other=0.0), mask=live)


@triton.jit
def _asked(ratio, saturated):
    """The change that a ratio asks for: bounded, and at least 0 where the lights are a lower bound."""
    asked = tl.minimum(tl.maximum(ratio, 0.25), 4.0) - 1.0
    return asked + (tl.maximum(asked, 0.0) - asked) * saturated


@triton.jit
def _moved(rows, last, moves):
    """Rows k − 2 to k + 2, of those of the row before; the same where the image ends, so that k stays."""
    return (
        tl.where(moves, rows[1], rows[0]),
        tl.where(moves, rows[2], rows[1]),
        tl.where(moves, rows[3], rows[2]),
        tl.where(moves, rows[4], rows[3]),
        last,
    )


@triton.jit
def _moved_three(rows, last, moves):
    """As `_moved`, rows k − 1 to k + 1."""
    return tl.where(moves, rows[1], rows[0]), tl.where(moves, rows[2], rows[1]), last


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
