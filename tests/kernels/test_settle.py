"""settle: the kernels against their definition, what they read, registration, messages. What it is for:
tests/engine/network/test_consistency.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Belief, Sensor
from deeplight.kernels.agree.reference import seen
from deeplight.kernels.interpolation import SCALE, interpolation_line
from deeplight.kernels.launch import Launch
from deeplight.kernels.settle import entry as settle_entry
from deeplight.kernels.settle import reference
from tests.kernels import test_agree
from tests.kernels.parity import assert_close
from tests.kernels.test_agree import moved

LINEAR = interpolation_line(SCALE, "linear")
BELIEF = Belief(0.3, 16.0, 0.5)


def case(b: int = 1, h: int = 3, w: int = 4) -> list[Any]:
    """Arguments of `kernels.settle`: images that are near the lights here and far from them there, also below the
    noise; holes and saturation, and a blur that is known."""
    g = torch.Generator().manual_seed(h * w + b)
    sensor = test_agree.case(b, h, w)[0]

    def image(least: float) -> Tensor:
        around = sensor.y.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return around * (least + torch.rand(b, 1, 8 * h, 8 * w, generator=g))

    return [image(0.9), image(0.5), sensor, torch.full((b, 2), 1.2), LINEAR, BELIEF]


def run(device: str, args: list[Any]) -> Tensor:
    images = moved(args[:5], lambda t: t.to(device))
    return kernels.settle(*images, args[5], implementation="triton")


def defined(args: list[Any]) -> Tensor:
    return reference.settle(*moved(args[:5], lambda t: t.double()), args[5])


def assert_parity(device: str, args: list[Any]) -> Tensor:
    got = run(device, args)
    # a difference of sums beside a share of them, and the ratio of sums that follows
    assert_close("radiance", got, defined(args), times=4)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w"), [(2, 3, 12), (1, 9, 2), (1, 1, 1)], ids=["two-blocks", "two-strips", "one-pixel"]
)
def test_kernel_is_the_definition(device: str, b: int, h: int, w: int) -> None:
    args = case(b, h, w)
    got = assert_parity(device, args).cpu()
    assert h * w == 1 or not (torch.allclose(got, args[0]) or torch.allclose(got, args[1]))


@pytest.mark.parametrize("belief", [Belief(0.05, 1.0, 1.0), Belief(2.0, 400.0, 0.01)])
def test_constants(device: str, belief: Belief) -> None:
    args = case()
    got = assert_parity(device, [*args[:5], belief])
    assert not torch.allclose(got, run(device, args))


def test_each_image_has_its_own_blur(device: str) -> None:
    args = case(2)
    args[3][1] = -1.0
    told = case(2)
    got, known = assert_parity(device, args), run(device, told)
    assert torch.equal(got[0], known[0]) and not torch.allclose(got[1], known[1])


def test_what_nobody_knows_changes_nothing(device: str) -> None:
    args = case()
    args[2] = args[2]._replace(known=torch.zeros_like(args[2].known))
    # start + (refined − start) is refined but for two roundings
    assert_close("radiance", run(device, args), args[0])


def test_lights_that_are_a_lower_bound_take_nothing_away(device: str) -> None:
    args = case()
    ones = torch.ones_like(args[2].y)
    args[0] = 100 + args[0]
    args[2] = args[2]._replace(known=ones, saturated=ones)
    assert_close("radiance", run(device, args), args[0])


def test_dark_images_are_finite(device: str) -> None:
    args = case()
    nothing = torch.zeros_like(args[0])
    assert (assert_parity(device, [nothing, nothing, *args[2:]]) == 0).all()


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(1, 6, 12)
    whole = run(device, args)
    maps = {name: getattr(args[2], name)[..., 1:, 2:] for name in ("y", "known", "saturated")}
    images = [image[..., 8:, 16:] for image in args[:2]]
    part = run(device, [*images, args[2]._replace(**maps), *args[3:]])
    # the blur reaches 3 LR pixels, or 2 where belief spreads by one, and the interpolation one more
    assert torch.equal(part[..., 32:, 32:], whole[..., 40:, 48:])


def test_one_image_is_read_thrice_one_twice_and_one_is_written(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(settle_entry, "run", launches.append)
    run(device, case(1, 3, 4))
    wide = [
        (ready.kernel, name)
        for ready in launches
        for name, t in ready.arguments.items()
        if isinstance(t, Tensor) and t.numel() == 64 * 12
    ]
    reads = [(kernel, image) for kernel in ("look", "settle") for image in ("refined", "start")]
    assert wide == [("believe", "refined"), *reads, ("settle", "out")]


def test_opcheck(device: str) -> None:
    refined, start, sensor, psf, linear = moved(case(h=1, w=2)[:5], lambda t: t.to(device))
    given = (refined, start, *sensor, psf, linear, *BELIEF)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.settle.default, given, test_utils=utils)


def test_what_the_step_adds_is_what_the_sensor_misses(device: str) -> None:
    args = case(1, 5, 12)
    sensor = args[2]
    even = torch.full_like(args[0], 3.0)
    even[..., 13, 37] = 900.0
    see = seen(even, sensor.rows, sensor.columns)
    missing = sensor._replace(y=see * (1.0 + torch.linspace(-0.4, 0.7, 12)), known=torch.ones_like(see))
    missing = missing._replace(saturated=torch.zeros_like(see))
    out = assert_parity(device, [even, even, missing, args[3], LINEAR, Belief(0.3, 16.0, 1e-6)])
    added, wanted = (out - even).sum() / 64, (missing.y - see).sum()
    # beyond the edge nothing is reached, where blocks are taken to go on
    assert float(added / wanted) == pytest.approx(1.0, abs=0.1)


def test_an_empty_batch(device: str) -> None:
    refined, start, sensor, psf, *rest = case(2)
    none = [refined[:0], start[:0], Sensor(*(t[:0] for t in sensor)), psf[:0], *rest]
    assert run(device, none).shape == (0, 1, 24, 32)


def test_an_exported_graph_has_the_definition_in_it() -> None:
    refined, *rest = case()

    class Network(torch.nn.Module):
        def forward(self, refined: Tensor) -> Tensor:
            return kernels.settle(refined, *rest)

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (refined,), strict=False)
    assert not any("deeplight" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "refined must have shape"),
        (0, lambda x: x[..., 1:], "multiples of 8, not 24 and 31"),
        (0, lambda x: x.half(), "start is torch.float32, refined is torch.float16"),
        (1, lambda x: x[..., 8:], r"start must have shape \(1, 1, 24, 32\), not \(1, 1, 24, 24\)"),
        (2, lambda s: s._replace(y=s.y[..., 1:]), r"y must have shape \(1, 1, 3, 4\), not \(1, 1, 3, 3\)"),
        (2, lambda s: s._replace(rows=s.rows[:, 1:]), r"rows must have shape \(1, 7, 8\)"),
        (2, lambda s: s._replace(noise=s.noise[0]), r"noise must have shape \(1, 1, 1, 1\)"),
        (3, lambda psf: psf[:, :1], r"psf must have shape \(1, 2\)"),
        (4, lambda line: line[:, 1:], r"linear must have shape \(8, 3\)"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case()
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=f"settle: .*{message}"):
        kernels.settle(*args)
