"""suggest: the kernel against its definition, what it writes, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels.launch import Launch
from deeplight.kernels.suggest import entry as suggest_entry
from deeplight.kernels.suggest import reference
from tests.kernels.parity import assert_close
from tests.kernels.test_locate import converted, layers


def case(b: int = 1, h: int = 2, w: int = 19, *, c: int = 10, hidden: int = 32, width: int = 32) -> list[Any]:
    g = torch.Generator().manual_seed(h * w + c)
    aux = torch.randn(b, c, 4 * h, 4 * w, generator=g)
    return [aux, layers(g, c, hidden, hidden, 1), layers(g, c + 1, width, width, 1)]


def run(device: str, args: list[Any]) -> Tensor:
    return kernels.suggest(*converted(args, lambda t: t.to(device)), implementation="triton")


def assert_parity(device: str, args: list[Any]) -> Tensor:
    got = run(device, args)
    # two layers of float32 sums before the sigmoid and two after it
    assert_close("lights", got, reference.suggest(*converted(args, lambda t: t.double()))[0], times=2)
    return got


@pytest.mark.parametrize(
    ("b", "h", "w", "c", "hidden", "width"),
    [(2, 2, 19, 10, 32, 32), (1, 1, 1, 10, 32, 64), (1, 3, 16, 5, 7, 9), (1, 1, 3, 17, 20, 40)],
    ids=["tiny", "base-one-pixel", "narrow", "odd"],
)
def test_kernel_is_the_definition(
    device: str, b: int, h: int, w: int, c: int, hidden: int, width: int
) -> None:
    got = assert_parity(device, case(b, h, w, c=c, hidden=hidden, width=width))
    assert got.shape == (b, 1, h, w)


def test_other_memory_and_large_values(device: str) -> None:
    args = case()
    args[0] = (args[0] * 40).contiguous(memory_format=torch.channels_last)
    assert_parity(device, args)


def test_nothing_but_the_result_is_written(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(suggest_entry, "run", launches.append)
    run(device, case())
    (only,) = launches
    sizes = {name: t.numel() for name, t in only.arguments.items() if isinstance(t, Tensor)}
    assert sizes.pop("aux") == 10 * 16 * 2 * 19 and sizes.pop("out") == 2 * 19
    assert max(sizes.values()) <= 32 * 32


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(1, 3, 18)
    whole = run(device, args)
    args[0] = args[0][..., 4:, 20:]
    assert torch.equal(run(device, args), whole[..., 1:, 5:])


def test_opcheck(device: str) -> None:
    aux, impervious, lights = converted(case(1, 1, 3), lambda t: t.to(device))
    flat = [[t for layer in group for t in layer] for group in (impervious, lights)]
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.suggest.default, (aux, *flat), test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    args = case(2, 1, 3)
    args[0] = args[0][:0]
    assert run(device, args).shape == (0, 1, 1, 3)


def test_an_exported_graph_has_the_definition_in_it() -> None:
    aux, impervious, lights = case(1, 1, 3)

    class Network(torch.nn.Module):
        def forward(self, aux: Tensor) -> Tensor:
            return kernels.suggest(aux, impervious, lights)

    with kernels.dispatch.emit_operators():
        program = torch.export.export(Network(), (aux,), strict=False)
    assert not any("deeplight" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], "aux must have shape"),
        (0, lambda t: t[..., 1:], "multiples of 4, not 4 and 11"),
        (1, lambda ls: ls[1:], r"impervious\[0\] weight must have shape"),
        (2, lambda ls: [(w, b[1:]) for w, b in ls], r"lights\[0\] weight must have shape \(31, 11, 1, 1\)"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case(1, 1, 3)
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.suggest(*args)


@pytest.mark.parametrize(
    ("channels", "message"),
    [((11, 8, 1), "3 layers of lights, not 2"), ((11, 8, 16, 1), "equally wide, at most 64, not 8 and 16")],
)
def test_beyond_the_limits_the_reference_runs(device: str, channels: tuple[int, ...], message: str) -> None:
    args = case(1, 1, 3)
    args[2] = layers(torch.Generator().manual_seed(1), *channels)
    with pytest.raises(ValueError, match=message):
        run(device, args)
    assert kernels.suggest(*converted(args, lambda t: t.to(device))).shape == (1, 1, 1, 3)
