"""Bytes and FLOPs per HR pixel, computed and not measured.

python -m bench.traffic prints the tables; python -m bench.traffic docs/kernels.md replaces those in the document.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from deeplight.engine.network.config import PRESETS

SHARE = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""How many pixels at ×1, ×2, ×4 and ×8 there are per HR pixel."""
COPY, MATRIX = 4.3e12, 790e12
"""Limits measured on an H200: bytes/s of a copy, and FLOP/s of a large bf16 product."""

FINISH_FLOPS = 7.0
"""Operations of `finish` per pixel: a subtraction, a division, two clamps, two additions that round, and one for the
mean of four. The network does not use it."""


@dataclass(frozen=True)
class Cost:
    """Values (2 bytes each) moved per HR pixel: eager, with pointwise chains fused (torch.compile), by our kernels."""

    eager: float = 0.0
    compiled: float = 0.0
    fused: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.eager + other.eager,
            self.compiled + other.compiled,
            self.fused + other.fused,
            self.flops + other.flops,
        )

    def __mul__(self, f: float) -> Cost:
        return Cost(self.eager * f, self.compiled * f, self.fused * f, self.flops * f)


def fuse(c: int, a: int) -> Cost:
    return Cost(9 * c + 11 * a + 40, 7 * c + 7 * a + 12, 2 * c + 2 * a + 2, 4 * c * a + 4 * c + 10 * a)


def upsample(k: int, c: int) -> Cost:
    """Costs per input pixel."""
    from deeplight.kernels.upsample.entry import prefers_gemm  # imports PyTorch

    ours = k + 4 * c if prefers_gemm(k, 4 * c) else k + 12 * c
    return Cost(k + 20 * c, k + 12 * c, ours, 2 * 9 * k * 4 * c)


def block(c: int) -> Cost:
    return Cost(7 * c, 5 * c, 5 * c, 2 * 9 * c * c)


def embedding(c: int) -> Cost:
    return Cost(5 * c + 4, 3 * c + 2, 3 * c + 2, 4 * c)


def head(c: int) -> Cost:
    return Cost(c + 7, c + 5, c + 5, 2 * c)


def restore(c: int, depth: int) -> Cost:
    """The refinement at ×8 on its base, to radiance. A value of float32 counts as two.

    PyTorch enlarges the coarse residual by a convolution (four values at a quarter of the pixels) and writes the level;
    it enlarges the shares by two products, of which the second reads three eighths of a map and writes a whole one, and
    blends. The kernels read features, base and the coarse residual, and write radiance and probability.
    """
    tail = Cost(c + 26, c + 12, 0, 2 * c + 20)
    around = Cost(29.5 + 22.5, 9.5 + 12, 0, 60)
    before = block(c) * (depth - 1) + (embedding(c) if depth > 1 else Cost())
    ours = before.fused + c + 2 * (3 + SHARE[2] + SHARE[0])
    whole = embedding(c) + block(c) * depth + tail + around
    return Cost(whole.eager, whole.compiled, ours, whole.flops)


def base() -> Cost:
    """The lights enlarged, and two steps, in float32 (two values each).

    PyTorch's second product reads five eighths of a map and writes one, which is bounded in another pass. The kernels
    read maps on the lights' grid, some ten in all, and write the result.
    """
    enlarged = Cost(10, 9, 0, 14)
    ours = 2 + 2 * 10 * SHARE[0]
    steps = agreement() * 2
    return Cost(enlarged.eager + steps.eager, enlarged.compiled + steps.compiled, ours, 14 + steps.flops)


def agreement() -> Cost:
    """One step of the base towards what the sensor saw, in float32 (two values each), in PyTorch.

    Its products read the image, write ⅞ of it, read that, write the enlarged change, and read it and the image for the
    result. Compilers do not fuse products; they fuse the rest.
    """
    return Cost(17, 13.5, 13.5, 2 * 7 + 2 * 3 + 2)


def last_step() -> Cost:
    """The step that believes the refined radiance as far as the lights do, in float32 (two values each).

    In PyTorch two images are seen, each by products that read it, write ⅞ of it and read that, one of them once more
    with ⅝, and their reach is taken by products that write and read ⅜ of each; two maps are enlarged by products; then
    both images and both maps are read and the result is written. The kernels read five images, write one, and move
    twenty maps on the lights' grid.
    """
    return Cost(78, 2 * 6 + 5 + 2 * 3.5 + 2 * 3.75 + 10, 2 * 6 + 2 * 20 * SHARE[0], 69)


def interval() -> Cost:
    """Both ends of the interval, in float32: eager some twenty passes; fused, one that reads radiance and widths."""
    return Cost(118, 8, 8, 40)


def inputs() -> Cost:
    """Standardising, bounding and masking eight bands, joining them with their masks as features, and the area mean of
    the ten channels. What is read and what the mean gives is float32 (two values each).

    On the engine's device path `align` writes the features from raw pixels, and only the mean is left: 15 values.
    """
    steps = 5 * 14 + 3 * 2 + 3  # of seven bands and their mask, and of elevation and its own
    return Cost(2 * (steps + 20) + 30 + 15, 20 + 10 + 15, 20 + 10 + 15, 8 * 6 + 10)


def align() -> Cost:
    """Reading ten channels of features at an offset and writing them: four gathers and three interpolations.

    A float32 value counts as two values; offset maps are float32.
    """
    return Cost(4 * 20 + 3 * 80 + 40, 10 + 10 + 16, 10 + 10 + 0.1, 10 * 12)


def pointwise(*channels: int) -> Cost:
    """1×1 convolutions through these channel counts with ReLU between them. Compilers do not fuse convolutions."""
    layers = list(pairwise(channels))
    moved = sum(a + b for a, b in layers) + sum(2 * b for _, b in layers[:-1])
    return Cost(moved, moved, moved, sum(2 * a * b for a, b in layers))


def suggested(width: int) -> Cost:
    """The lights that the bands suggest, in float32 (two values each): impervious share at ×4, its area mean, ×1."""
    share = pointwise(10, 32, 32, 1) + Cost(35, 11)  # sigmoid, concatenation, area mean
    both = share * SHARE[2] + pointwise(11, width, width, 1) * SHARE[0]
    ours = 10 * SHARE[2] + SHARE[0]
    return Cost(2 * both.eager, 2 * both.compiled, 2 * ours, both.flops)


def locate(width: int) -> Cost:
    """The offset, in float32 (two values each), at ×1.

    Two maps are shifted 81 times with 25 taps. Window means with 15 + 15 taps are taken of three maps and of twice 81.
    Some 20 operations on each of the 81 residuals move each map 60 times without fusion and, means included, 26 times
    with it. The kernels write the residuals and read them once, and move some 40 values of maps with few channels.
    """
    shifts, maps = 81, 3 + 2 * 81
    flops = 2 * 2 * shifts * 25 + maps * 2 * 2 * 15 + 20 * shifts + 2 * 2 * shifts
    layers = pointwise(3, 16, 1) + pointwise(shifts + 3, width, width, 2)
    field = Cost(
        60 * shifts + layers.eager, 26 * shifts + layers.compiled, 2 * shifts + 40, flops + layers.flops
    )
    return Cost(2 * field.eager, 2 * field.compiled, 2 * field.fused, field.flops) * SHARE[0]


def encoders(a: tuple[int, ...]) -> Cost:
    """The encoders of two modalities. The channels of each lie by themselves, since convolutions copy what does not."""
    first = Cost(10, 10, 10) + Cost(6 * a[2], 6 * a[2], 6 * a[2], 2 * 16 * 10 * a[2]) * SHARE[2]
    for s in (1, 0):
        moved = 2 * a[s + 1] * 4 + 6 * a[s]
        first += Cost(moved, moved, moved, 2 * 2 * 4 * a[s + 1] * a[s]) * SHARE[s]
    return first


def network(name: str) -> dict[str, Cost]:
    config = PRESETS[name]
    main, aux = config.main, config.aux
    rows = {
        "inputs (PyTorch)": inputs(),
        "suggest": suggested(config.localise_width),
        "locate": locate(config.localise_width),
        "align": align(),
        "fuse, ×1 to ×4": sum((fuse(c, a) * f for c, a, f in zip(main, aux, SHARE, strict=False)), Cost()),
        "upsample ×1 → ×4": upsample(main[0], main[1]) * SHARE[0] + upsample(main[1], main[2]) * SHARE[1],
        "upsample ×4 → ×8": upsample(main[2], main[3]) * SHARE[2],
        "base": base(),
        "restore ×8": restore(main[3], config.refine[2]),
        "settle": last_step(),
        "interval (PyTorch)": interval(),
        "encoders (PyTorch)": encoders(aux),
    }
    rest = Cost(4, 4, 4, 18 * 2 * main[0]) * SHARE[0] + block(main[0]) * config.body * SHARE[0]
    for s in (1, 2):
        c = main[s]
        rest += (embedding(c) + block(c) * config.refine[s - 1] + head(c)) * SHARE[s]
    rows["body, refine ×2 and ×4 (PyTorch)"] = rest
    rows["network"] = sum(rows.values(), Cost())
    return rows


FLOAT32 = ("suggest", "locate", "base", "settle", "interval (PyTorch)")
"""Rows whose values have four bytes in every precision."""


def network_bytes(name: str, size: int, how: str = "fused") -> float:
    """Bytes per HR pixel of a preset with features of `size` bytes. how: eager, compiled or fused."""
    rows = network(name)
    always = sum(float(getattr(rows[row], how)) for row in FLOAT32)
    return size * (float(getattr(rows["network"], how)) - always) + 2 * always


def table(name: str) -> str:
    """The Markdown table of one preset."""
    lines = [
        f"| {name}, 2-byte features | eager B | compiled B | fused B | kFLOP | floor, HR Mpix/s | bound |",
        "|---" * 7 + "|",
    ]
    for op, cost in network(name).items():
        memory, matrix = COPY / (2 * cost.fused), MATRIX / cost.flops
        bound = "memory" if memory < matrix else "arithmetic"
        moved = " | ".join(f"{2 * values:.0f}" for values in (cost.eager, cost.compiled, cost.fused))
        floor = min(memory, matrix) / 1e6
        lines.append(f"| {op} | {moved} | {cost.flops / 1e3:.2f} | {floor:,.0f} | {bound} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return `text` with the present table of every preset in place of the old one."""
    for name in PRESETS:
        present = table(name)
        text = re.sub(rf"(?m)^\| {name}, 2-byte features.*\n(?:\|.*\n)+", lambda _, t=present: t + "\n", text)
    return text


def main() -> None:
    if len(sys.argv) > 1:
        document = Path(sys.argv[1])
        document.write_text(updated(document.read_text()))
    else:
        print("\n\n".join(map(table, PRESETS)))


if __name__ == "__main__":
    main()
