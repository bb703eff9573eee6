"""agree: the kernels against their definition, registration, messages. The definition: tests/engine/network."""

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


def case(b: int = 1, h: int = 3, w: int = 4, power: float | None = 3.0) -> list[Any]:
    """Bright and dark pixels, holes, saturation; a blur that is not the same along both axes."""
    g = torch.Generator().manual_seed(h * w + b)

    def r(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    x, y = 50 * r(b, 1, 8 * h, 8 * w) ** 4, 50 * r(b, 1, h, w) ** 4
    rows, columns = (t / t.sum(dim=(1, 2), keepdim=True) for t in (r(b, 7, 8), r(b, 7, 8) ** 3))
    sensor = Sensor(
        y, r(b, 1, h, w).round(), r(b, 1, h, w).round(), rows, columns, 0.05 + 0.1 * r(b, 1, 1, 1)
    )
    return [x, sensor, LINEAR, 1.0 if power is None else torch.tensor(power)]


def moved(args: list[Any], move: Any) -> list[Any]:
    return [
        Sensor(*map(move, a)) if isinstance(a, Sensor) else move(a) if isinstance(a, Tensor) else a
        for a in args
    ]


def run(device: str, args: list[Any]) -> Tensor:
    return kernels.agree(*moved(args, lambda t: t.to(device)), implementation="triton")


def assert_parity(device: str, args: list[Any]) -> Tensor:
    got = run(device, args)
    # the power of a ratio of sums: some roundings, thrice as large
    assert_close("radiance", got, reference.agree(*moved(args, lambda t: t.double())), times=4)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w"), [(2, 3, 12), (1, 17, 2), (1, 1, 1)], ids=["two-blocks", "two-strips", "one-pixel"]
)
def test_kernel_is_the_definition(device: str, b: int, h: int, w: int) -> None:
    args = case(b, h, w)
    got = assert_parity(device, args)
    assert h * w == 1 or not torch.equal(got.cpu(), args[0])


@pytest.mark.parametrize("power", [None, 2.0, 0.5])
def test_powers(device: str, power: float | None) -> None:
    assert_parity(device, case(power=power))


def test_a_plain_number_is_a_power_too(device: str) -> None:
    args = case(power=2.0)
    assert torch.equal(run(device, [*args[:3], 2.0]), run(device, args))


def test_what_nobody_knows_changes_nothing(device: str) -> None:
    args = case()
    args[1] = args[1]._replace(known=torch.zeros_like(args[1].known))
    assert torch.equal(run(device, args).cpu(), args[0])


def test_saturated_pixels_only_grow(device: str) -> None:
    args = case()
    args[1] = args[1]._replace(known=torch.ones_like(args[1].y), saturated=torch.ones_like(args[1].y))
    assert (run(device, args).cpu() >= args[0]).all()


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(1, 6, 12)
    whole = run(device, args)
    cut = args[1]._replace(
        **{name: getattr(args[1], name)[..., 1:, 2:] for name in ("y", "known", "saturated")}
    )
    part = run(device, [args[0][..., 8:, 16:], cut, *args[2:]])
    # the blur reaches 3 LR pixels, the interpolation one more
    assert torch.equal(part[..., 32:, 32:], whole[..., 40:, 48:])


def test_the_radiance_is_read_twice_and_written_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(agree_entry, "run", launches.append)
    run(device, case(1, 3, 4))
    wide = [
        (ready.kernel, name)
        for ready in launches
        for name, t in ready.arguments.items()
        if isinstance(t, Tensor) and t.numel() == 64 * 12
    ]
    assert wide == [("observe", "radiance"), ("rescale", "radiance"), ("rescale", "out")]


def test_opcheck(device: str) -> None:
    x, sensor, linear, power = moved(case(), lambda t: t.to(device))
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.agree.default, (x, *sensor, linear, power), test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    x, sensor, *rest = case(2)
    assert run(device, [x[:0], Sensor(*(t[:0] for t in sensor)), *rest]).shape == (0, 1, 24, 32)


def test_an_exported_graph_has_the_definition_in_it() -> None:
    x, *rest = case()

    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return kernels.agree(x, *rest)

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (x,), strict=False)
    assert not any("deeplight" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], "x must have shape"),
        (0, lambda x: x[..., 1:], "multiples of 8, not 24 and 31"),
        (1, lambda s: s._replace(y=s.y[..., 1:]), r"y must have shape \(1, 1, 3, 4\), not \(1, 1, 3, 3\)"),
        (1, lambda s: s._replace(rows=s.rows[:, 1:]), r"rows must have shape \(1, 7, 8\)"),
        (1, lambda s: s._replace(noise=s.noise[0]), r"noise must have shape \(1, 1, 1, 1\)"),
        (2, lambda line: line[:, 1:], r"linear must have shape \(8, 3\)"),
        (3, lambda p: p[None], r"power must have shape \(\)"),
        (0, lambda x: x.half(), "is torch.float32, x is torch.float16"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case()
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.agree(*args)


def lights(device: str, args: list[Any]) -> tuple[Any, ...]:
    """Arguments of `kernels.base`, of those of `agree`."""
    _, sensor, linear, power = moved(args, lambda t: t.to(device))
    return sensor, CUBIC.to(device), linear, power


def assert_base(device: str, args: list[Any]) -> Tensor:
    got = kernels.base(*lights(device, args), implementation="triton")
    sensor, linear, power = moved(args[1:], lambda t: t.double())
    want = reference.base(sensor, CUBIC.double(), linear, power)
    # two steps, each with the power of a ratio of sums
    assert_close("radiance", got, want, times=8)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w"), [(2, 3, 12), (1, 17, 2), (1, 1, 1)], ids=["two-blocks", "two-strips", "one-pixel"]
)
def test_the_base_is_its_definition(device: str, b: int, h: int, w: int) -> None:
    assert_base(device, case(b, h, w))


def test_the_base_is_bounded_below_beside_bright_pixels(device: str) -> None:
    args = case(1, 5, 5)
    y = torch.zeros_like(args[1].y)
    y[..., 2, 2] = 100.0
    args[1] = args[1]._replace(y=y)
    got = assert_base(device, args)
    assert (got >= 0).all() and (got[..., 4:12, 16:24] == 0).any(), "the cubic's negative lobes"


def test_the_base_reads_maps_on_the_grid_of_lights_alone(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(agree_entry, "run", launches.append)
    kernels.base(*lights(device, case(1, 3, 4)), implementation="triton")
    wide = [
        (ready.kernel, name)
        for ready in launches
        for name, t in ready.arguments.items()
        if isinstance(t, Tensor) and t.numel() == 64 * 12
    ]
    assert [ready.kernel for ready in launches] == ["observe", "observe", "start"]
    assert wide == [("start", "out")]


def test_the_base_has_the_same_bits_wherever_a_pixel_lies(device: str) -> None:
    args = case(1, 12, 14)
    whole = kernels.base(*lights(device, args), implementation="triton")
    cut = {name: getattr(args[1], name)[..., 1:, 2:] for name in ("y", "known", "saturated")}
    part = kernels.base(
        *lights(device, [args[0], args[1]._replace(**cut), *args[2:]]), implementation="triton"
    )
    # two steps of 3 and 1 LR pixels each, and two of the cubic
    assert torch.equal(part[..., 80:, 80:], whole[..., 88:, 96:])


def test_opcheck_of_the_base(device: str) -> None:
    sensor, cubic, linear, power = lights(device, case(h=1, w=2))
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.base.default, (*sensor, cubic, linear, power), test_utils=utils)


def test_the_base_names_the_tensor_that_does_not_fit() -> None:
    sensor, cubic, linear, power = lights("cpu", case())
    for given, message in (
        ((sensor, cubic[:, 1:], linear, power), r"cubic must have shape \(8, 5\)"),
        ((sensor._replace(known=sensor.known[..., 1:]), cubic, linear, power), "known must have shape"),
        ((sensor, cubic, linear, power[None]), r"power must have shape \(\)"),
    ):
        with pytest.raises(ValueError, match=f"base: {message}"):
            kernels.base(*given)
