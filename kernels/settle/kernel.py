"""The last step in passes over the images: how far the refined one is believed, what the sensor sees of both, and the
mixture, which grows. Before the last, on the grid of the lights: how far belief spreads, and how much is missing."""

import triton
import triton.language as tl

from deeplight.kernels.agree.kernel import (
    _across,
    _asked,
    _columns,
    _down,
    _grown,
    _here,
    _linear,
    _place,
    _three,
)


@triton.jit
def _reached(
    radiance,
    place,
    height,
    width,
    ROWS: tl.constexpr,
    OUTP: tl.constexpr,
):
    """How much of the radiance changes of LR pixels multiply, [ROWS, OUTP], per HR pixel: sixteen times sixteen HR
    pixels by the weights of linear interpolation. The program reads its images a second time later."""
    image, first_row, first_col = place
    i = (first_row + tl.arange(0, ROWS))[:, None, None]
    o = (first_col + tl.arange(0, OUTP))[None, :, None]
    s = tl.arange(0, 4)[None, None, :]
    at = radiance + image.to(tl.int64) * 64 * height * width + s
    # beyond the edge the outermost block is repeated
    left = at + 8 * tl.minimum(tl.maximum(o - 1, 0), width - 1)
    middle = at + 8 * tl.minimum(o, width - 1)
    right = at + 8 * tl.minimum(o + 1, width - 1)
    rising = s.to(tl.float32) * 0.125 + 0.0625
    total = tl.zeros((ROWS, OUTP), dtype=tl.float32)
    for t in range(16):
        block = tl.minimum(tl.maximum(i + (t + 4) // 8 - 1, 0), height - 1)
        row = (8 * block + (t + 4) % 8).to(tl.int64) * 8 * width
        across = tl.load(left + 4 + row) * rising + tl.load(middle + row) * (rising + 0.5)
        across += tl.load(middle + 4 + row) * (1.0 - rising) + tl.load(right + row) * (0.5 - rising)
        total += tl.sum(across, axis=2) * (1.0 - tl.abs(t * 0.125 - 0.9375))
    return total * 0.015625


@triton.jit
def _gathered(weights, image, FIRST: tl.constexpr, BLOCKS: tl.constexpr):
    """The sum of BLOCKS of a sensor's seven blocks of weights, from block FIRST on."""
    k = tl.arange(0, 64)
    mine = (k >= 8 * FIRST) & (k < 8 * (FIRST + BLOCKS))
    return tl.sum(tl.load(weights + image * 56 + k, mask=mine, other=0.0), axis=0)


@triton.jit
def believe(
    refined,  # [B, 8h, 8w]
    y,  # [B, h, w]
    known,  # [B, h, w]
    saturated,  # [B, h, w]
    rows,  # [B, 7, 8]
    columns,  # [B, 7, 8]
    noise,  # [B]
    psf,  # [B, 2]
    root,  # [B, h, w]
    height,  # LR pixels
    width,
    gap,
    noises,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The square root of how far each LR pixel of `refined` is believed, by a sensor whose weights lack the outermost
    blocks. A program computes ROWS rows of BLOCK / 8 − 2·REACH LR pixels."""
    place = _place(height, width, REACH, ROWS, BLOCK)
    image = place[0]
    # a product has at least 16 rows
    total = tl.zeros((16, BLOCK), dtype=tl.float32)
    total = _down(total, refined, y, y, rows, place, height, width, 0, REACH, ROWS, -1, 1, BLOCK)
    seen = _across(total, columns, image, REACH, OUTP, 1, BLOCK)
    seen /= _gathered(rows, image, 1, 5) * _gathered(columns, image, 1, 5)
    live, at = _here(tl.arange(0, 16), place, height, width, REACH, ROWS, OUTP, BLOCK)
    seen = tl.where(live, seen, 1.0)
    lights = tl.load(y + at, mask=live, other=1.0)
    bound = tl.load(saturated + at, mask=live, other=0.0)
    least = tl.load(noise + image)
    told = (tl.load(psf + 2 * image) >= 0.0).to(tl.float32)
    off = (seen - lights) * tl.load(known + at, mask=live, other=0.0) * told
    off += (tl.minimum(off, 0.0) - off) * bound
    spared = gap * gap * (seen + least) * (lights + least) + noises * least * least
    tl.store(root + at, tl.sqrt(spared / (spared + off * off)), mask=live)


@triton.jit
def look(
    refined,  # [B, 8h, 8w]
    start,  # [B, 8h, 8w]
    rows,  # [B, 7, 8]
    columns,  # [B, 7, 8]
    seen,  # [B, h, w]
    gained,  # [B, h, w]
    reached,  # [B, h, w]
    raised,  # [B, h, w]
    height,  # LR pixels
    width,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the sensor sees of `start`, and what changes reach of it; and how much more both are of `refined`.

    A program computes eight rows of BLOCK / 8 − 2·REACH LR pixels: what is seen of both images are the sixteen rows
    that a product has at least.
    """
    tl.static_assert(ROWS == 8, "two images, sixteen rows")
    place = _place(height, width, REACH, ROWS, BLOCK)
    # first, since beside the sums and the product below the compiler would spill
    of_refined = _reached(refined, place, height, width, ROWS, OUTP)
    of_start = _reached(start, place, height, width, ROWS, OUTP)
    live, at = _here(tl.arange(0, ROWS), place, height, width, REACH, ROWS, OUTP, BLOCK)
    tl.store(reached + at, of_start, mask=live)
    tl.store(raised + at, of_refined - of_start, mask=live)
    total = tl.zeros((16, BLOCK), dtype=tl.float32)
    total = _down(total, refined, refined, refined, rows, place, height, width, 0, REACH, ROWS, -1, 0, BLOCK)
    total = _down(total, start, start, start, rows, place, height, width, ROWS, REACH, ROWS, -1, 0, BLOCK)
    both = _across(total, columns, place[0], REACH, OUTP, 0, BLOCK).reshape(2, ROWS, OUTP)
    of_refined, of_start = tl.split(both.permute(1, 2, 0))
    tl.store(seen + at, of_start, mask=live)
    tl.store(gained + at, of_refined - of_start, mask=live)


@triton.jit
def _spread_down(root, above, middle, below, column, weights):
    """The mean of a column of three LR rows by the sensor's weights along the rows."""
    upper = tl.load(root + above + column) * weights[0]
    return upper + tl.load(root + middle + column) * weights[1] + tl.load(root + below + column) * weights[2]


@triton.jit
def _thirds(weights, image):
    """What the sensor gathers from the block before, its own and the one after, together 1."""
    before, own, after = (
        _gathered(weights, image, 2, 1),
        _gathered(weights, image, 3, 1),
        _gathered(weights, image, 4, 1),
    )
    whole = before + own + after
    return before / whole, own / whole, after / whole


@triton.jit
def decide(
    root,  # [B, h, w]
    seen,  # [B, h, w]
    gained,  # [B, h, w]
    reached,  # [B, h, w]
    raised,  # [B, h, w]
    y,  # [B, h, w]
    known,  # [B, h, w]
    saturated,  # [B, h, w]
    rows,  # [B, 7, 8]
    columns,  # [B, 7, 8]
    noise,  # [B]
    spread,  # [B, h, w]
    change,  # [B, h, w]
    height,  # LR pixels
    width,
    last,
    BLOCK: tl.constexpr,
):
    """The root, spread over the LR pixels around by what the sensor gathers from each of them, and by which share the
    mixture should grow. A program computes BLOCK pixels of a row."""
    blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks  # of all images
    image, i = row // height, row % height
    j = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = j < width
    # beyond the edge the outermost pixels are repeated
    middle = row.to(tl.int64) * width
    above = middle - tl.minimum(i, 1) * width
    below = middle + tl.minimum(height - 1 - i, 1) * width
    here = tl.minimum(j, width - 1)
    down, across = _thirds(rows, image), _thirds(columns, image)
    left = _spread_down(root, above, middle, below, tl.maximum(here - 1, 0), down)
    own = _spread_down(root, above, middle, below, here, down)
    right = _spread_down(root, above, middle, below, tl.minimum(here + 1, width - 1), down)
    # the shares may sum to a little more than 1, and more than all of a dark image would be less than nothing
    wide = tl.minimum(left * across[0] + own * across[1] + right * across[2], 1.0)
    at = middle + j
    tl.store(spread + at, wide, mask=live)

    share = wide * wide
    least = tl.load(noise + image) * last
    mixed = tl.load(seen + at, mask=live, other=1.0) + tl.load(gained + at, mask=live, other=0.0) * share
    raise_by = tl.load(raised + at, mask=live, other=0.0) * share
    touched = tl.load(reached + at, mask=live, other=1.0) + raise_by
    lights = tl.load(y + at, mask=live, other=1.0)
    bound = tl.load(saturated + at, mask=live, other=0.0)
    asked = _asked((lights + least) / (mixed + least), bound) * tl.load(known + at, mask=live, other=0.0)
    asked *= (mixed + least) / (touched + least)
    tl.store(change + at, tl.minimum(tl.maximum(asked, -0.75), 3.0), mask=live)


@triton.jit
def settle(
    refined,  # [B, 8h, 8w]
    start,  # [B, 8h, 8w]
    spread,  # [B, h, w]
    change,  # [B, h, w]
    out,  # [B, 8h, 8w]
    height,  # LR pixels
    width,
    BLOCK: tl.constexpr,
):
    """(start + (refined − start) · spread²) · (1 + change), both maps interpolated linearly. A program computes BLOCK
    columns of the 8 HR rows of an LR row.

    Three LR rows of each map are interpolated along the row once, and used for all eight HR rows.
    """
    wide = 8 * width  # this form tells the compiler that rows begin at multiples of 8 pixels
    blocks = tl.cdiv(wide, BLOCK)
    row = tl.program_id(0) // blocks  # of all images
    i = row % height
    j = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    # for pixels beyond the row, its last cell is used and nothing is stored
    here = (row - i).to(tl.int64) * width
    between = _columns(j, width)
    roots = _three(spread + here, i, height, width, between)
    grown = _three(change + here, i, height, width, between)
    live = j < wide
    at = row.to(tl.int64) * 8 * wide + j
    for phase in tl.static_range(8):
        low = tl.load(start + at + phase * wide, mask=live, other=0.0)
        high = tl.load(refined + at + phase * wide, mask=live, other=0.0)
        share = _linear(roots, phase)
        share *= share
        mixed = low + (high - low) * share
        tl.store(out + at + phase * wide, _grown(mixed, grown, phase), mask=live)
