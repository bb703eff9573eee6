"""base: the kernels against their definition, registration, messages. The definition: tests/engine/network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Sensor
from deeplight.kernels.agree import entry as agree_entry
from deeplight.kernels.agree import reference
from deeplight.kernels.interpolation import SCALE, interpolation_line
from deeplight.kernels.launch import Launch
from tests.kernels.parity import assert_close

CUBIC, LINEAR = interpolation_line(SCALE, "cubic"), interpolation_line(SCALE, "linear")


def case(b: int = 1, h: int = 3, w: int = 4, power: float = 3.0) -> list[Any]:
    """Arguments of `kernels.base`: bright and dark pixels, holes, saturation; a blur that is not the same along both
    axes."""
    g = torch.Generator().manual_seed(h * w + b)

    def r(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    y = 50 * r(b, 1, h, w) ** 4
    rows, columns = (t / t.sum(dim=(1, 2), keepdim=True) for t in (r(b, 7, 8), r(b, 7, 8) ** 3))
    sensor = Sensor(
        y, r(b, 1, h, w).round(), r(b, 1, h, w).round(), rows, columns, 0.05 + 0.1 * r(b, 1, 1, 1)
    )
    return [sensor, CUBIC, LINEAR, torch.tensor(power)]


def moved(args: list[Any], move: Any) -> list[Any]:
    return [
        Sensor(*map(move, a)) if isinstance(a, Sensor) else move(a) if isinstance(a, Tensor) else a
        for a in args
    ]


def run(device: str, args: list[Any]) -> Tensor:
    return kernels.base(*moved(args, lambda t: t.to(device)), implementation="triton")


def assert_parity(device: str, args: list[Any]) -> Tensor:
    got = run(device, args)
    # two steps, each with the power of a ratio of sums
    assert_close("radiance", got, reference.base(*moved(args, lambda t: t.double())), times=8)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w"), [(2, 3, 12), (1, 17, 2), (1, 1, 1)], ids=["two-blocks", "two-strips", "one-pixel"]
)
def test_kernel_is_the_definition(device: str, b: int, h: int, w: int) -> None:
    assert_parity(device, case(b, h, w))


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_powers(device: str, power: float) -> None:
    args = case(power=power)
    got = assert_parity(device, args)
    assert torch.equal(run(device, [*args[:3], power]), got), "a plain number is a power too"


def test_what_nobody_knows_changes_nothing(device: str) -> None:
    args = case()
    args[0] = args[0]._replace(known=torch.zeros_like(args[0].known))
    want = reference.enlarged(args[0].y.double(), CUBIC.double()).clamp(min=0.0)
    assert_close("radiance", run(device, args), want)


def test_it_is_bounded_below_beside_bright_pixels(device: str) -> None:
    args = case(1, 5, 5)
    y = torch.zeros_like(args[0].y)
    y[..., 2, 2] = 100.0
    args[0] = args[0]._replace(y=y)
    got = assert_parity(device, args)
    assert (got >= 0).all() and (got[..., 4:12, 16:24] == 0).any(), "the cubic's negative lobes"


def test_maps_on_the_grid_of_lights_alone_are_read(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(agree_entry, "run", launches.append)
    run(device, case(1, 3, 4))
    wide = [
        (ready.kernel, name)
        for ready in launches
        for name, t in ready.arguments.items()
        if isinstance(t, Tensor) and t.numel() == 64 * 12
    ]
    assert [ready.kernel for ready in launches] == ["observe", "observe", "start"]
    assert wide == [("start", "out")]


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(1, 12, 14)
    whole = run(device, args)
    cut = {name: getattr(args[0], name)[..., 1:, 2:] for name in ("y", "known", "saturated")}
    part = run(device, [args[0]._replace(**cut), *args[1:]])
    # two steps of 3 and 1 LR pixels each, and two of the cubic
    assert torch.equal(part[..., 80:, 80:], whole[..., 88:, 96:])


def test_opcheck(device: str) -> None:
    sensor, cubic, linear, power = moved(case(h=1, w=2), lambda t: t.to(device))
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.base.default, (*sensor, cubic, linear, power), test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    sensor, *rest = case(2)
    assert run(device, [Sensor(*(t[:0] for t in sensor)), *rest]).shape == (0, 1, 24, 32)


def test_an_exported_graph_has_the_definition_in_it() -> None:
    sensor, *rest = case()

    class Network(torch.nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return kernels.base(sensor._replace(y=y), *rest)

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (sensor.y,), strict=False)
    assert not any("deeplight" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda s: s._replace(y=s.y[0]), "y must have shape"),
        (
            0,
            lambda s: s._replace(known=s.known[..., 1:]),
            r"known must have shape \(1, 1, 3, 4\), not \(1, 1, 3, 3\)",
        ),
        (0, lambda s: s._replace(rows=s.rows[:, 1:]), r"rows must have shape \(1, 7, 8\)"),
        (0, lambda s: s._replace(noise=s.noise[0]), r"noise must have shape \(1, 1, 1, 1\)"),
        (0, lambda s: s._replace(y=s.y.half()), "y is torch.float16, cubic is torch.float32"),
        (1, lambda line: line[:, 1:], r"cubic must have shape \(8, 5\)"),
        (2, lambda line: line[:, 1:], r"linear must have shape \(8, 3\)"),
        (3, lambda p: p[None], r"power must have shape \(\)"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case()
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=f"base: {message}"):
        kernels.base(*args)
