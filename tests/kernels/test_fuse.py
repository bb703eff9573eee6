"""fuse: the kernel against its definition, its gradients, the operator's registration, its messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import launch as launching
from deeplight.kernels.fuse import entry as fuse_entry
from deeplight.kernels.fuse import reference
from deeplight.kernels.launch import Launch
from tests.kernels.parity import assert_close, assert_on_boundary, doubled, off_boundary

SHAPES = [
    pytest.param(2, 8, 8, 7, 13, id="tiny-x8-odd"),
    pytest.param(1, 32, 16, 5, 9, id="tiny-x4"),
    pytest.param(3, 64, 32, 1, 5, id="tiny-x1-batch"),
    pytest.param(1, 48, 32, 4, 7, id="base-x8-not-a-power-of-two"),
    pytest.param(1, 3, 5, 3, 3, id="narrow"),
]
MASKS = ("on", "off", "mixed", "fractional")


def case(
    b: int,
    c: int,
    a: int,
    h: int,
    w: int,
    *,
    masks: str = "mixed",
    dtype: torch.dtype = torch.float32,
    m: int = 2,
) -> list[Any]:
    g = torch.Generator().manual_seed(b * c + h * w)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    def mask() -> Tensor:
        x = torch.rand(b, 1, h, w, generator=g)
        kinds = {"on": torch.ones_like(x), "off": torch.zeros_like(x), "mixed": x.round(), "fractional": x}
        return kinds[masks].to(dtype)

    aux, all_masks = [r(b, a, h, w) for _ in range(m)], [mask() for _ in range(m)]
    film = r(2 * c, a) * a**-0.5
    return [r(b, c, h, w), aux, all_masks, r(m, a) * a**-0.5, r(m, c) * c**-0.5, r(m), film, r(2 * c) * 0.3]


def on(device: str, args: list[Any]) -> list[Any]:
    return [on(device, a) if isinstance(a, list) else a.to(device) for a in args]


def run(device: str, args: list[Any]) -> Tensor:
    return kernels.fuse(*on(device, args), implementation="triton")


@pytest.mark.parametrize(("b", "c", "a", "h", "w"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernel_is_the_definition(
    device: str, b: int, c: int, a: int, h: int, w: int, dtype: torch.dtype
) -> None:
    args = case(b, c, a, h, w, dtype=dtype)
    got = run(device, args)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert_close("out", got, reference.fuse(*doubled(args)))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("wide", [False, True], ids=["held", "not held"])
def test_a_program_of_several_blocks(
    device: str, m: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as with a block a program, and no pixel left out where the last program has too few."""
    c = 65 if wide else 8
    args = case(1, c, 8, 17, 41, dtype=torch.float16, m=m)  # 697 pixels: not a multiple of any block
    launches: list[Launch] = []
    monkeypatch.setattr(fuse_entry, "run", lambda ready: (launches.append(ready), launching.run(ready)))
    once = run(device, args)
    monkeypatch.setattr(fuse_entry, "PROGRAMS", 1)
    several = run(device, args)
    assert torch.equal(once, several)
    assert_close("out", several, reference.fuse(*doubled(args)))
    before, after = launches
    again = after.arguments["repeat"]
    assert before.arguments["repeat"] == 1 and (again == 1 if wide else again > 1)
    assert after.programs == -(-697 // (again * after.config.block))  # type: ignore[operator]


@pytest.mark.parametrize("masks", MASKS)
def test_masks(device: str, masks: str) -> None:
    args = case(2, 8, 8, 5, 7, masks=masks)
    assert_close("out", run(device, args), reference.fuse(*doubled(args)))


def test_one_modality(device: str) -> None:
    args = case(1, 16, 8, 5, 7, m=1)
    assert_close("out", run(device, args), reference.fuse(*doubled(args)))


def test_a_masked_modality_does_not_matter(device: str) -> None:
    args = case(1, 8, 8, 4, 5)
    args[2][0].zero_()
    one = run(device, args)
    args[1][0] = args[1][0] * 1000 + 7
    assert torch.equal(one, run(device, args))


def test_extreme_logits_stay_finite(device: str) -> None:
    args = case(1, 8, 8, 3, 5)
    args[3] *= 1e4
    assert_close("out", run(device, args), reference.fuse(*doubled(args)))


def test_masks_may_be_channels_of_the_auxiliary(device: str) -> None:
    args = on(device, case(2, 8, 8, 3, 5))
    packed = torch.rand(2, 10, 3, 5).round().to(device).contiguous(memory_format=torch.channels_last)
    args[2] = [packed[:, 7:8], packed[:, 9:10]]
    assert fuse_entry.pixel_stride(args[2][0]) == 10, "this layout is read in place"
    got = kernels.fuse(*args, implementation="triton")
    assert_close("out", got, reference.fuse(*doubled(args)))


def test_masks_of_any_layout_are_accepted(device: str) -> None:
    args = on(device, case(2, 8, 8, 3, 6))
    args[2] = [m.repeat_interleave(2, dim=3)[..., ::2] for m in args[2]]
    args[2][1] = torch.rand(2, 1, 6, 3).round().to(device).transpose(2, 3)
    assert fuse_entry.pixel_stride(args[2][1]) is None
    assert_close("out", kernels.fuse(*args, implementation="triton"), reference.fuse(*doubled(args)))


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(1, 32, 16, 9, 11)
    whole = run(device, args)
    part = [x[..., 2:7, 3:10] if x.ndim == 4 else x for x in (args[0],)]
    cut = [*part, *[[x[..., 2:7, 3:10] for x in xs] for xs in args[1:3]], *args[3:]]
    assert torch.equal(whole[..., 2:7, 3:10], run(device, cut))


def test_float32_weights_with_half_features(device: str) -> None:
    args = case(1, 8, 8, 3, 5, dtype=torch.float16)
    args[3:] = [t.float() for t in args[3:]]
    assert_close("out", run(device, args), reference.fuse(*doubled(args)))


def test_an_empty_batch(device: str) -> None:
    args = case(2, 8, 8, 3, 5)
    empty = [args[0][:0], [x[:0] for x in args[1]], [x[:0] for x in args[2]], *args[3:]]
    assert run(device, empty).shape == (0, 8, 3, 5)


def leaves(args: list[Any]) -> list[Tensor]:
    flat = [t for a in args for t in (a if isinstance(a, list) else [a])]
    return [t.requires_grad_() for t in flat]


def test_gradients_are_those_of_the_definition(device: str) -> None:
    args = case(2, 8, 4, 3, 5, masks="fractional")
    exact = doubled(args)
    upstream = torch.randn(2, 8, 3, 5)
    want = (
        torch.autograd.grad((reference.fuse(*exact) * upstream.double()).sum(), leaves(exact))
        if leaves(exact)
        else ()
    )
    mine = on(device, args)
    flat = leaves(mine)
    out = kernels.fuse(*mine, implementation="triton")
    got = torch.autograd.grad((out * upstream.to(device)).sum(), flat)
    for i, (g, wanted) in enumerate(zip(got, want, strict=True)):
        assert_close(f"gradient {i}", g, wanted, times=4)


def test_gradient_formula_in_float64() -> None:
    args = doubled(case(1, 3, 2, 2, 3, masks="fractional"))
    upstream = torch.randn(1, 3, 2, 3, dtype=torch.float64)
    flat = leaves(args)
    want = torch.autograd.grad((reference.fuse(*args) * upstream).sum(), flat)
    got = fuse_entry.gradients(upstream, *doubled(args))
    flat_got = [t for a in got for t in (a if isinstance(a, list) else [a])]
    for g, wanted in zip(flat_got, want, strict=True):
        assert torch.allclose(g, wanted, rtol=1e-10, atol=1e-12)


def test_opcheck(device: str) -> None:
    args = on(device, case(1, 8, 8, 3, 5))
    for t in leaves(args):
        assert t.requires_grad
    torch.library.opcheck(torch.ops.deeplight.fuse.default, tuple(args))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"main must have shape \(any, any, any, any\)"),
        (
            1,
            lambda ts: [ts[0], ts[1][..., 1:]],
            r"aux\[1\] must have shape \(1, 8, 3, 5\), not \(1, 8, 3, 4\)",
        ),
        (1, lambda ts: ts[:1], "equally many"),
        (2, lambda ts: [ts[0], ts[1].half()], r"masks\[1\] is torch.float16, main is torch.float32"),
        (3, lambda t: t[:, 1:], "query_aux must have shape"),
        (6, lambda t: t.T, "film_weight must have shape"),
        (7, lambda t: t.double(), "film_bias must be float32"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case(1, 8, 8, 3, 5)
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.fuse(*args)


def test_more_modalities_are_the_references_business(device: str) -> None:
    args = case(1, 8, 8, 3, 5, m=3)
    assert kernels.fuse(*args, implementation="reference").shape == (1, 8, 3, 5)
    assert kernels.fuse(*on(device, args)).shape == (1, 8, 3, 5), "auto takes the reference"
    with pytest.raises(ValueError, match="one or two modalities, not 3"):
        run(device, args)


def test_more_channels_are_the_references_business(device: str) -> None:
    args = case(1, 8, 144, 2, 3)
    assert kernels.fuse(*on(device, args)).shape == (1, 8, 2, 3)
    with pytest.raises(ValueError, match="at most 128 channels, not 144"):
        run(device, args)


def test_unaligned_arguments_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(fuse_entry, "run", launches.append)
    monkeypatch.setattr(fuse_entry.dispatch, "kernel_runs_on", lambda _: True)
    args = case(1, 8, 8, 3, 5)
    moved = [[off_boundary(x) for x in a] if isinstance(a, list) else off_boundary(a) for a in args]
    kernels.fuse(*moved, implementation="triton")
    assert_on_boundary(launches)


def test_memory_that_nobody_wrote_is_nan() -> None:
    """Else no comparison here would see a pixel that a kernel leaves out."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        empty = torch.empty(2, 3, 4, 5, dtype=dtype, memory_format=torch.channels_last)
        assert torch.isnan(empty).all()
