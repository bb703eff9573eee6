"""Raw pixels on their own grid to normalised, aligned features: up to 16 taps from cache, nothing in between."""

import triton
import triton.language as tl


@triton.jit
def _node(whole, fraction, at, base, known):
    """The coordinate of a mesh node relative to the integer `base`."""
    k = tl.load(whole + at, mask=known, other=0)
    return (k - base).to(tl.float32) + tl.load(fraction + at, mask=known, other=0.0)


@triton.jit
def _place(whole, fraction, at, nodes_w, u, v, live):
    """Whole and fraction of a source coordinate, and whether it is known."""
    base = tl.load(whole + at, mask=live, other=0)
    upper_left = _node(whole, fraction, at, base, live)
    lower_left = _node(whole, fraction, at + nodes_w, base, live)
    upper_right = _node(whole, fraction, at + 1, base, live)
    lower_right = _node(whole, fraction, at + nodes_w + 1, base, live)
    left = upper_left + u * (lower_left - upper_left)
    right = upper_right + u * (lower_right - upper_right)
    relative = left + v * (right - left)
    known = relative == relative
    floor = tl.floor(tl.where(known, relative, 0.0))
    return base + floor.to(tl.int32), relative - floor, known


@triton.jit
def _pixel(raw, mask, image, r, q, live, src_h, src_w, c, R: tl.constexpr, MASKED: tl.constexpr):
    """Raw values [BLOCK, CP] and validity [BLOCK] of the source pixels (r, q); 0 where `live` is not set."""
    at = (image * src_h + r).to(tl.int64) * src_w + q
    valid = live
    if MASKED:
        valid = live & (tl.load(mask + at, mask=live, other=0) != 0)
    # All R bands are read, although C are used: 8 bands are one wide load if the mask is the same for the whole pixel.
    values = tl.load(raw + at[:, None] * R + c[None, :], mask=valid[:, None] & (c < R)[None, :], other=0)
    return values.to(tl.float32), valid


@triton.jit
def _cell(at, step, inverse):
    """The cell of the mesh that holds a pixel `at` ≥ 0 pixels behind the first node, and the pixel's place in the cell
    as a share of `step`. No integers are divided.

    (at + ½) / step differs from any whole number by at least 1 / (2·step), which is far more than its rounding error.
    """
    cell = ((at.to(tl.float32) + 0.5) * inverse).to(tl.int32)
    return cell, (at - cell * step).to(tl.float32) * inverse


@triton.jit
def _hr_pixel(
    raw, mask, whole, fraction, image, i, j, live, src_h, src_w, nodes_h, nodes_w, mesh_row, mesh_col, step,
    gain, bias, low, high, c, C: tl.constexpr, R: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, MESH: tl.constexpr,
):  # fmt: skip
    """n and v of HR pixels (i, j), from the same source pixel or, through the mesh, from four of them."""
    if MESH:
        inverse = 1.0 / step
        cell_row, u = _cell(i - mesh_row, step, inverse)
        cell_col, v = _cell(j - mesh_col, step, inverse)
        at = (image * 2 * nodes_h + cell_row) * nodes_w + cell_col
        row, fy, know_row = _place(whole, fraction, at, nodes_w, u, v, live)
        col, fx, know_col = _place(whole, fraction, at + nodes_h * nodes_w, nodes_w, u, v, live)
        known = live & know_row & know_col & (row >= -1) & (row < src_h) & (col >= -1) & (col < src_w)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        values = tl.zeros((BLOCK, CP), dtype=tl.float32)
        for t in tl.static_range(4):
            r = row + t // 2
            q = col + t % 2
            there = known & (r >= 0) & (r < src_h) & (q >= 0) & (q < src_w)
            tap, there = _pixel(raw, mask, image, r, q, there, src_h, src_w, c, R, MASKED)
            wy = fy if t // 2 == 1 else 1.0 - fy
            wx = fx if t % 2 == 1 else 1.0 - fx
            weight = tl.where(there, wy * wx, 0.0)
            total += weight
            values += weight[:, None] * tap
        found = total >= 0.499999
        values = tl.where(found[:, None], values * (1.0 / tl.where(found, total, 1.0))[:, None], 0.0)
        valid = found.to(tl.float32)
    else:
        values, there = _pixel(raw, mask, image, i, j, live, src_h, src_w, c, R, MASKED)
        valid = there.to(tl.float32)
    n = values * gain[None, :] + bias[None, :]
    n = tl.minimum(tl.maximum(n, low), high) * valid[:, None]
    # the last channel is the validity itself
    return tl.where((c == C)[None, :], valid[:, None], n)


@triton.jit
def _offset(offset, image, axis, i, j, lr_h, lr_w):
    """8 × the LR offset, interpolated linearly at HR pixels j of row i; edges are repeated. i is a scalar."""
    up = (i % 8 < 4).to(tl.int32)
    left = (j % 8 < 4).to(tl.int32)
    fy = (i % 8).to(tl.float32) * 0.125 + (up.to(tl.float32) - 0.4375)
    fx = (j % 8).to(tl.float32) * 0.125 + (left.to(tl.float32) - 0.4375)
    r = i // 8 - up
    q = j // 8 - left
    base = offset + ((image * 2 + axis) * lr_h).to(tl.int64) * lr_w
    above = base + tl.maximum(r, 0) * lr_w
    below = base + tl.minimum(r + 1, lr_h - 1) * lr_w
    q0 = tl.maximum(q, 0)
    q1 = tl.minimum(q + 1, lr_w - 1)
    a = tl.load(above + q0).to(tl.float32)
    b = tl.load(above + q1).to(tl.float32)
    d = tl.load(below + q0).to(tl.float32)
    e = tl.load(below + q1).to(tl.float32)
    top = a * (1.0 - fx) + b * fx
    bottom = d * (1.0 - fx) + e * fx
    return 8.0 * (top * (1.0 - fy) + bottom * fy)


@triton.jit
def align(
    raw,  # [B, h, w, R]
    mask,  # [B, h, w]; unused without MASKED
    gain,  # [B, C]
    bias,  # [B, C]
    offset,  # [B, 2, H/8, W/8]; unused without OFFSET
    whole,  # [B, 2, N, M]; unused without MESH
    fraction,  # [B, 2, N, M]
    out,  # [B, H, W, OUT]
    height,
    width,
    src_h,
    src_w,
    nodes_h,
    nodes_w,
    mesh_row,
    mesh_col,
    step,
    low,
    high,
    C: tl.constexpr,
    R: tl.constexpr,
    OUT: tl.constexpr,
    CP: tl.constexpr,
    MASKED: tl.constexpr,
    MESH: tl.constexpr,
    OFFSET: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[n, v] at p + 8·offset(p). One program computes BLOCK pixels of an output row. OUT: C, or C + 1 if v is written.

    PLAIN: raw is normalised already, lies on the HR grid and has no mask, so that it is only moved.
    """
    blocks = tl.cdiv(width, BLOCK)
    first = (tl.program_id(0) % blocks) * BLOCK
    row = tl.program_id(0) // blocks
    image = row // height
    p = tl.arange(0, BLOCK)
    c = tl.arange(0, CP)
    live = first + p < width
    # for places beyond the row, its last pixel is computed and not stored
    j = tl.minimum(first + p, width - 1)
    i = row % height
    if PLAIN:
        scale = c
        shift = c
    else:
        scale = tl.load(gain + image * C + c, mask=c < C, other=0.0).to(tl.float32)
        shift = tl.load(bias + image * C + c, mask=c < C, other=0.0).to(tl.float32)
    if OFFSET:
        dx = _offset(offset, image, 0, i, j, height // 8, width // 8)
        dy = _offset(offset, image, 1, i, j, height // 8, width // 8)
        # split before the position is added, so that the bits of the fraction do not depend on the tile
        x_whole = tl.floor(dx)
        y_whole = tl.floor(dy)
        fx = dx - x_whole
        fy = dy - y_whole
        r = i + y_whole.to(tl.int32)
        q = j + x_whole.to(tl.int32)
        r0 = tl.minimum(tl.maximum(r, 0), height - 1)
        r1 = tl.minimum(tl.maximum(r + 1, 0), height - 1)
        q0 = tl.minimum(tl.maximum(q, 0), width - 1)
        q1 = tl.minimum(tl.maximum(q + 1, 0), width - 1)
        result = tl.zeros((BLOCK, CP), dtype=tl.float32)
        for t in tl.static_range(4):
            rt = r1 if t // 2 == 1 else r0
            qt = q1 if t % 2 == 1 else q0
            if PLAIN:
                at = (
                    raw
                    + (image * src_h).to(tl.int64) * src_w * R
                    + (rt * src_w + qt).to(tl.int64)[:, None] * R
                )
                n = tl.load(at + c[None, :], mask=(c < R)[None, :], other=0.0).to(tl.float32)
            else:
                n = _hr_pixel(
                    raw, mask, whole, fraction, image, rt, qt, live, src_h, src_w, nodes_h, nodes_w, mesh_row,
                    mesh_col, step, scale, shift, low, high, c, C, R, CP, BLOCK, MASKED, MESH,
                )  # fmt: skip
            wy = fy if t // 2 == 1 else 1.0 - fy
            wx = fx if t % 2 == 1 else 1.0 - fx
            result += (wy * wx)[:, None] * n
    else:
        result = _hr_pixel(
            raw, mask, whole, fraction, image, i, j, live, src_h, src_w, nodes_h, nodes_w, mesh_row, mesh_col,
            step, scale, shift, low, high, c, C, R, CP, BLOCK, MASKED, MESH,
        )  # fmt: skip
    at = (row.to(tl.int64) * width + first) * OUT
    tl.store(
        out + at + (p[:, None] * OUT + c[None, :]),
        result.to(out.dtype.element_ty),
        mask=live[:, None] & (c < OUT)[None, :],
    )
