"""Output pixels from radiance in one pass."""

import triton
import triton.language as tl


@triton.jit
def _steps(
    value,
    known,
    SCALE: tl.constexpr,
    OFFSET: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    NODATA: tl.constexpr,
):
    """uint16 of round((value − OFFSET) / SCALE) in float64, clamped; NODATA where it is not known."""
    # clamped far beyond the steps, so that it fits int32, which is then clamped to the steps themselves
    value = tl.minimum(tl.maximum(value, OFFSET + (LOW - 65536) * SCALE), OFFSET + (HIGH + 65536) * SCALE)
    step = value.to(tl.float64)
    # a Python number would become float32, in which 0.1 is another number
    if OFFSET != 0.0:
        step -= tl.full((), OFFSET, tl.float64)
    step /= tl.full((), SCALE, tl.float64)
    # adding and subtracting 1.5 · 2⁵² rounds half to even
    step = (step + 6755399441055744.0) - 6755399441055744.0
    whole = tl.minimum(tl.maximum(step.to(tl.int32), LOW), HIGH)
    return tl.where(known, whole, NODATA).to(tl.uint16)


@triton.jit(do_not_specialize=["high", "wide", "row", "col", "rows", "cols"])
def finish(
    radiance,  # [bands, 8·high, 8·wide]
    valid,  # [high, wide]
    pixels,  # [bands, 8·rows, 8·cols]
    halves,  # [bands, 4·rows, 4·cols]; not used without STEPS
    high,
    wide,
    row,
    col,
    rows,
    cols,
    nodata,  # used for float32
    STEPS: tl.constexpr,
    SCALE: tl.constexpr,
    OFFSET: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    NODATA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pixels are cut out and masked, and with STEPS rounded and halved. One program: BLOCK pixels of two output rows.

    Places are in LR pixels, so that the compiler sees that eight pixels begin at a multiple of 16 bytes. The same
    program serves every place.
    """
    groups: tl.constexpr = BLOCK // 8
    blocks = tl.cdiv(cols, groups)
    pair = tl.program_id(0) // blocks
    band = pair // (4 * rows)
    pair = pair % (4 * rows)
    g = (tl.program_id(0) % blocks) * groups + tl.arange(0, groups)
    e = tl.arange(0, 8)
    live = g < cols
    at = g[:, None] * 8 + e[None, :]
    inside = live[:, None] & (e >= 0)[None, :]
    known = tl.load(valid + (row + pair // 4).to(tl.int64) * wide + col + g, mask=live, other=0.0) != 0
    source = radiance + ((band * high + row).to(tl.int64) * 8 + 2 * pair) * (wide * 8) + col * 8
    first = tl.load(source + at, mask=inside, other=0.0)
    second = tl.load(source + wide * 8 + at, mask=inside, other=0.0)
    target = pixels + (band * (4 * rows) + pair).to(tl.int64) * (cols * 16)
    if STEPS:
        tl.store(
            target + at,
            _steps(first, known[:, None] & (first == first), SCALE, OFFSET, LOW, HIGH, NODATA),
            mask=inside,
        )
        tl.store(
            target + cols * 8 + at,
            _steps(second, known[:, None] & (second == second), SCALE, OFFSET, LOW, HIGH, NODATA),
            mask=inside,
        )
        # in the order in which NumPy adds them: rows first
        left, right = tl.split(tl.reshape(first + second, (groups, 4, 2)))
        half = tl.where(known[:, None], (left + right) * 0.25, float("nan"))
        k = tl.arange(0, 4)
        to = halves + (band * (4 * rows) + pair).to(tl.int64) * (cols * 4) + g[:, None] * 4 + k[None, :]
        tl.store(to, half, mask=live[:, None] & (k >= 0)[None, :])
    else:
        tl.store(target + at, tl.where(known[:, None] & (first == first), first, nodata), mask=inside)
        tl.store(
            target + cols * 8 + at, tl.where(known[:, None] & (second == second), second, nodata), mask=inside
        )
