"""restore: the kernels with the base in them against the definition, what they read, registration, messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Base, Radiance
from deeplight.kernels.expected import TOLERANCE
from deeplight.kernels.interpolation import SCALE, interpolation_kernel, interpolation_line
from deeplight.kernels.launch import Launch
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.restore import reference
from tests.kernels import test_refine
from tests.kernels.parity import assert_close, doubled

CUBIC, LINEAR = interpolation_kernel(2, "cubic"), interpolation_line(SCALE, "linear")


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments of `kernels.restore`."""

    x: Tensor
    base: Base
    parameters: tuple[Any, ...]
    range: Radiance

    def to(self, move: Any) -> Case:
        parameters = tuple([move(t) for t in p] if isinstance(p, list) else move(p) for p in self.parameters)
        return Case(move(self.x), Base(*map(move, self.base)), parameters, self.range)

    def run(self, implementation: kernels.Implementation, **more: Any) -> tuple[Tensor, Tensor]:
        like = self.base.start
        given = {"cubic": CUBIC.to(like), "linear": LINEAR.to(like), "range": self.range, **more}
        return kernels.restore(self.x, self.base, *self.parameters, **given, implementation=implementation)


def case(
    b: int = 1, c: int = 8, h: int = 1, w: int = 2, *, depth: int = 1, dtype: torch.dtype = torch.float32,
    range: Radiance | None = None,
) -> Case:  # fmt: skip
    """h × w LR pixels: dark and bright ones, residuals of both signs, some shares that are 0 or 1."""
    x, _, *parameters = test_refine.case(b, c, 8 * h, 8 * w, depth=depth, dtype=dtype)
    g = torch.Generator().manual_seed(h * w)
    start = 20 * torch.rand(b, 1, 8 * h, 8 * w, generator=g) ** 4
    carried = 0.4 * torch.randn(b, 1, 4 * h, 4 * w, generator=g)
    trust = (1.4 * torch.rand(b, 1, h, w, generator=g) - 0.2).clamp(0, 1)
    return Case(x, Base(start, carried, trust), tuple(parameters), range or Radiance())


def on(device: str, given: Case) -> Case:
    return given.to(lambda t: t.to(device))


def assert_parity(device: str, given: Case) -> tuple[Tensor, Tensor]:
    got = on(device, given).run("triton")
    want = given.to(doubled).run("reference")
    # exp multiplies an error of the normalised value by gain and by the radiance
    inside = TOLERANCE[given.x.dtype] / TOLERANCE[torch.float32]
    assert_close("radiance", got[0], want[0], times=8 * inside)
    assert_close("isp", got[1], want[1], times=2 * inside)
    return got


@pytest.mark.parametrize(
    ("b", "c", "h", "w", "depth"), [(2, 8, 3, 1, 1), (1, 5, 1, 3, 1), (1, 16, 2, 1, 1), (1, 48, 1, 3, 2)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernel_is_the_definition(
    device: str, b: int, c: int, h: int, w: int, depth: int, dtype: torch.dtype
) -> None:
    assert_parity(device, case(b, c, h, w, depth=depth, dtype=dtype))


@pytest.mark.parametrize("c", [8, 24], ids=["narrow", "wide"])
def test_rows_of_several_programs(device: str, c: int) -> None:
    assert_parity(device, case(c=c, w=17))


@pytest.mark.parametrize("c", [8, 24], ids=["narrow", "wide"])
def test_without_a_residual_the_base_is_enlarged(device: str, c: int) -> None:
    """The coarse residual alone, in the precision of float32 also where the features are float16."""
    given = case(c=c, h=2, w=3, dtype=torch.float16)
    *parameters, weight, bias = given.parameters
    quiet = dataclasses.replace(
        given,
        base=given.base._replace(trust=torch.ones_like(given.base.trust)),
        parameters=(*parameters, torch.zeros_like(weight), torch.zeros_like(bias)),
    )
    want = torch.expm1(2 * reference.level(Base(*map(doubled, quiet.base)), CUBIC.double(), Radiance()))
    # some roundings of float32, thrice as large behind the exponential
    assert_close("radiance", on(device, quiet).run("triton")[0], want.clamp(min=0.0), times=2)


def test_what_is_not_trusted_stays_as_it_is(device: str) -> None:
    given = case(h=2)
    kept = dataclasses.replace(given, base=given.base._replace(trust=torch.zeros_like(given.base.trust)))
    assert torch.equal(on(device, kept).run("triton")[0].cpu(), given.base.start)


@pytest.mark.parametrize("c", [8, 24], ids=["narrow", "wide"])
def test_unit_gain_and_ceiling(device: str, c: int) -> None:
    got, _ = assert_parity(device, case(c=c, range=Radiance(3.0, 1.5, 12.0)))
    assert got.max() > 11.0, "some of it reaches the ceiling"


@pytest.mark.parametrize("c", [8, 24], ids=["narrow", "wide"])
def test_no_map_of_full_size_is_read_but_features_and_start(
    device: str, c: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(refine_entry, "run", launches.append)
    on(device, case(c=c, h=2, w=3)).run("triton")
    (ready,) = launches
    written = ["radiance", "isp"] if c == 8 else ["radiance"]
    full = [name for name, t in ready.arguments.items() if isinstance(t, Tensor) and t.shape[-2:] == (16, 24)]
    assert full == ["x", "level", *written]


@pytest.mark.parametrize("c", [8, 24], ids=["narrow", "wide"])
def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str, c: int) -> None:
    given = on(device, case(c=c, h=3, w=5))
    cut = Base(given.base.start[..., 8:, 16:], given.base.carried[..., 4:, 8:], given.base.trust[..., 1:, 2:])
    part = dataclasses.replace(given, x=given.x[..., 8:, 16:], base=cut).run("triton")
    # the cubic residual sees four pixels beyond, the shares half of an LR pixel
    for got, want in zip(part, given.run("triton"), strict=True):
        assert torch.equal(got[..., 4:, 4:], want[..., 12:, 20:])


def test_opcheck(device: str) -> None:
    given = on(device, case(h=1, w=1))
    more = CUBIC.to(device), LINEAR.to(device), 1.0, 2.0, 1e6
    utils = ("test_schema", "test_faketensor")
    arguments = (given.x, *given.base, *given.parameters, *more)
    torch.library.opcheck(torch.ops.deeplight.restore.default, arguments, test_utils=utils)


def test_an_exported_graph_has_refine_in_it_and_the_rest_as_pytorch() -> None:
    given = case()  # PyTorch 2.11 does not trace random numbers of a generator of one's own

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, start: Tensor, carried: Tensor, trust: Tensor) -> Tensor:
            return dataclasses.replace(given, x=x, base=Base(start, carried, trust)).run("auto")[0]

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (given.x, *given.base), strict=False)
    assert [str(n.target) for n in program.graph.nodes if "deeplight" in str(n.target)] == [
        "deeplight.refine.default"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 8, 8, 12)}, "multiples of 8, not 8 and 12"),
        ({"start": torch.zeros(1, 1, 8, 8)}, r"start must have shape \(1, 1, 8, 16\)"),
        ({"carried": torch.zeros(1, 1, 8, 16)}, r"carried must have shape \(1, 1, 4, 8\)"),
        ({"trust": torch.zeros(1, 1, 4, 8)}, r"trust must have shape \(1, 1, 1, 2\)"),
        ({"trust": torch.zeros(1, 1, 1, 2).half()}, "trust must be float32"),
        ({"cubic": CUBIC[:2]}, "cubic must have shape"),
        ({"linear": LINEAR[:2]}, "linear must have shape"),
    ],
)
def test_messages_name_the_tensor(change: dict[str, Tensor], message: str) -> None:
    given = case()
    base = given.base._replace(**{k: v for k, v in change.items() if k in Base._fields})
    more = {k: v for k, v in change.items() if k in ("cubic", "linear")}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(given, base=base, x=change.get("x", given.x)).run("auto", **more)


def test_the_limits_are_those_of_refine(device: str) -> None:
    given = on(device, case(c=72, w=1))
    with pytest.raises(ValueError, match="restore: the kernel takes at most 64 channels of float32, not 72"):
        given.run("triton")
    assert given.run("auto")[0].shape == (1, 1, 8, 8), "auto takes the reference"
