"""locate: the kernels against their definition, against plain loops, registration, messages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import LocateWeights, half_pixel_shifts
from deeplight.kernels.launch import Launch
from deeplight.kernels.locate import entry as locate_entry
from deeplight.kernels.locate import reference
from tests.kernels.parity import assert_close

D_MAX = 2.0
NOISE = 60.0
"""What the offset may differ by, in parts of float32's tolerance: residuals are differences of squares of up to 50, and
are multiplied by a sharpness of some tens before the exponential."""


def window(radius: int = 7) -> Tensor:
    line = torch.hann_window(2 * radius + 3, periodic=False)[1:-1].sqrt()
    return line / line.sum()


def layers(g: torch.Generator, *channels: int) -> list[tuple[Tensor, Tensor]]:
    def r(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    return [(r(b, a, 1, 1, scale=a**-0.5), r(b, scale=0.3)) for a, b in itertools.pairwise(channels)]


def case(
    b: int = 1, h: int = 17, w: int = 20, *, radius: int = 2, hidden: int = 8, taper: int = 7
) -> list[Any]:  # fmt: skip
    """Lights with structure, and NTL that is them moved, brighter and noisy."""
    g = torch.Generator().manual_seed(h * w + b)
    xy, shifts = half_pixel_shifts(radius)
    lights = torch.rand(b, 1, h, w, generator=g) * 3
    ntl = 0.7 * lights.roll((1, -1), (2, 3)) + 0.2 + 0.05 * torch.rand(b, 1, h, w, generator=g)
    n = xy.shape[1]
    weights = LocateWeights(
        torch.tensor(3.0), torch.tensor(-1.2), layers(g, 3, 16, 1), layers(g, n + 3, hidden, hidden, 2)
    )
    return [ntl, lights, window(taper), shifts, xy, weights, D_MAX]


def converted(value: Any, move: Any) -> Any:
    if isinstance(value, LocateWeights):
        return LocateWeights(*(converted(list(v) if isinstance(v, list) else v, move) for v in value))
    if isinstance(value, list):
        return [converted(v, move) for v in value]
    if isinstance(value, tuple):
        return tuple(converted(v, move) for v in value)
    return move(value) if isinstance(value, Tensor) else value


def run(device: str, args: list[Any]) -> Tensor:
    return kernels.locate(*converted(args, lambda t: t.to(device)), implementation="triton")


def assert_parity(device: str, args: list[Any]) -> Tensor:
    got = run(device, args)
    want = reference.locate(*converted(args, lambda t: t.double()))
    assert_close("offset", got, want, times=NOISE)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w"), [(1, 17, 8), (2, 3, 17), (1, 1, 3)], ids=["two-rows-of-blocks", "batch", "one-row"]
)
def test_kernel_is_the_definition(device: str, b: int, h: int, w: int) -> None:
    assert assert_parity(device, case(b, h, w)).std() > 0.05, "not everywhere the same"


@pytest.mark.parametrize(("radius", "hidden", "taper"), [(1, 5, 7), (1, 32, 3), (1, 40, 8)])
def test_other_radii_and_widths(device: str, radius: int, hidden: int, taper: int) -> None:
    assert_parity(device, case(1, 9, 13, radius=radius, hidden=hidden, taper=taper))


def test_in_the_dark(device: str) -> None:
    """No variance: the definition sees shifts at the edges alone, where a moved mean is no mean of what is moved."""
    args = case(1, 3, 18, radius=1, taper=3)
    args[0] = torch.full_like(args[0], 0.3)
    assert_parity(device, args)


def test_bright_places_stay_finite(device: str) -> None:
    args = case(1, 6, 7, radius=1)
    args[0], args[1] = args[0] * 3, args[1] + 6.9  # log1p of the ceiling over two
    args[5] = args[5]._replace(sharpness=torch.tensor(6.0))
    got = run(device, args)
    assert torch.isfinite(got).all() and got.abs().max() <= D_MAX


def test_residuals_are_what_plain_loops_give() -> None:
    h, w, radius = 4, 5, 1
    ntl, lights, line, shifts, xy, *_ = case(1, h, w, radius=radius, taper=1)
    line = line.double()
    ntl, lights = ntl.double(), lights.double()
    means = [reference.window_mean(x, line) for x in (ntl, ntl * ntl, lights)]
    variance = means[1] - means[0] * means[0]
    moved, moved_mean = (reference.move(x, shifts.double()) for x in (lights, means[2]))
    got = reference.residuals(ntl, moved, means[0], variance, moved_mean, line)[0]

    def at(x: Tensor, i: float, j: float) -> float:
        """Linear between pixels, edges repeated."""
        top, left, total = math.floor(i), math.floor(j), 0.0
        for r, wr in ((top, 1 - (i - top)), (top + 1, i - top)):
            for q, wq in ((left, 1 - (j - left)), (left + 1, j - left)):
                total += wr * wq * float(x[0, 0, min(max(r, 0), h - 1), min(max(q, 0), w - 1)])
        return total

    for k in range(got.shape[0]):
        dx, dy = (float(v) for v in xy[:, k, 0, 0])
        for i in range(h):
            for j in range(w):
                sums = [0.0, 0.0]
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        weight = float(line[di + 1] * line[dj + 1])
                        r, q = min(max(i + di, 0), h - 1), min(max(j + dj, 0), w - 1)
                        there = at(lights, r + dy, q + dx)
                        sums[0] += weight * there * there
                        sums[1] += weight * there * float(ntl[0, 0, r, q])
                mean = at(means[2], i + dy, j + dx)
                spread = max(sums[0] - mean * mean, 0.0)
                covariance = sums[1] - float(means[0][0, 0, i, j]) * mean
                gain = min(max(covariance / (spread + 1e-3), 0.0), 3.0)
                want = float(variance[0, 0, i, j]) + gain * (gain * spread - 2 * covariance)
                assert abs(float(got[k, i, j]) - want) < 1e-9


def test_a_pixel_is_the_same_wherever_it_lies(device: str) -> None:
    """Up to the rounding of the narrow maps' convolutions, which the library orders by size."""
    args = case(1, 24, 30, radius=1, taper=3)
    whole = run(device, args)
    args[0], args[1] = args[0][..., 5:, 7:], args[1][..., 5:, 7:]
    part = run(device, args)
    reach = 5  # window 3, shift 1 and its neighbour
    assert_close(
        "part", part[..., reach:, reach:], whole[..., 5 + reach :, 7 + reach :].double(), times=NOISE
    )


def test_only_the_residuals_are_as_wide_as_the_shifts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(locate_entry, "run", launches.append)
    run(device, case(1, 4, 5))
    assert [ready.kernel for ready in launches] == ["residuals", "posterior"]
    wide = [n for n, t in launches[0].arguments.items() if isinstance(t, Tensor) and t.numel() >= 81 * 20]
    assert wide == ["out"]


def test_opcheck(device: str) -> None:
    ntl, lights, line, shifts, xy, weights, d_max = converted(case(1, 5, 7, radius=1), lambda t: t.to(device))
    flat = [[t for layer in group for t in layer] for group in (weights.certainty, weights.correct)]
    given = (ntl, lights, line, shifts, xy, weights.sharpness, weights.prior, *flat, d_max)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.locate.default, given, test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    args = case(2, 4, 5, radius=1)
    args[0], args[1] = args[0][:0], args[1][:0]
    assert run(device, args).shape == (0, 2, 4, 5)


def test_an_exported_graph_has_the_definition_in_it() -> None:
    args = case(1, 4, 5, radius=1)

    class Network(torch.nn.Module):
        def forward(self, ntl: Tensor, lights: Tensor) -> Tensor:
            return kernels.locate(ntl, lights, *args[2:])

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (args[0], args[1]), strict=False)
    assert not any("deeplight" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], "ntl must have shape"),
        (1, lambda t: t[..., 1:], r"lights must have shape \(1, 1, 4, 5\), not \(1, 1, 4, 4\)"),
        (2, lambda t: t[1:], "odd length, not 14"),
        (3, lambda t: t[1:], r"shifts must have shape \(25, 1, 3, 3\)"),
        (4, lambda t: t[:, 1:], "shift_xy must have shape"),
        (5, lambda w: w._replace(certainty=w.correct), r"certainty\[0\] weight must have shape"),
        (6, lambda d: 0.0, "d_max must be above 0, not 0"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case(1, 4, 5, radius=1)
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.locate(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certainty": lambda g: layers(g, 3, 1)}, r"2 layers of certainty and 3 of correct, not \(1, 3\)"),
        ({"correct": lambda g: layers(g, 28, 4, 8, 2)}, "equally wide, not 4 and 8"),
        ({"correct": lambda g: layers(g, 28, 136, 136, 2)}, "at most 128 channels, not 136"),
    ],
)
def test_beyond_the_limits_the_reference_runs(device: str, change: Any, message: str) -> None:
    args = case(1, 4, 5, radius=1)
    made = {name: make(torch.Generator().manual_seed(1)) for name, make in change.items()}
    args[5] = args[5]._replace(**made)
    with pytest.raises(ValueError, match=message):
        run(device, args)
    assert kernels.locate(*converted(args, lambda t: t.to(device))).shape == (1, 2, 4, 5)
