"""The reference operations against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplight import kernels

ROUNDING = 2e-6
"""A handful of float32 operations on values of order 1."""


def plain_sample(x: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Bilinear sample at p + offset(p) with clamped taps; x (C,H,W), offset (2,H,W)."""
    c, h, w = x.shape
    out = np.zeros((c, h, w))
    for i in range(h):
        for j in range(w):
            dx, dy = float(offset[0, i, j]), float(offset[1, i, j])
            x0, y0 = j + math.floor(dx), i + math.floor(dy)
            fx, fy = dx - math.floor(dx), dy - math.floor(dy)
            for yy, wy in ((y0, 1 - fy), (y0 + 1, fy)):
                for xx, wx in ((x0, 1 - fx), (x0 + 1, fx)):
                    out[:, i, j] += wy * wx * x[:, min(max(yy, 0), h - 1), min(max(xx, 0), w - 1)]
    return out


@pytest.mark.parametrize(("h", "w", "reach"), [(5, 9, 1.0), (12, 7, 4.0), (6, 6, 30.0)])
def test_resample_offset_against_loops(h: int, w: int, reach: float) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, h, w, generator=g)
    offset = (torch.rand(2, 2, h, w, generator=g) - 0.5) * 2 * reach
    got = kernels.resample_offset(x, offset)
    want = np.stack(
        [plain_sample(a.double().numpy(), o.double().numpy()) for a, o in zip(x, offset, strict=True)]
    )
    # offsets of order 30 keep 2^-19 of a pixel in float32
    assert np.abs(got.numpy() - want).max() < 2e-5


def test_zero_offset_is_the_identity_to_the_bit() -> None:
    x = torch.randn(1, 2, 6, 5)
    assert torch.equal(kernels.resample_offset(x, torch.zeros(1, 2, 6, 5)), x)


def test_resample_does_not_depend_on_the_position_in_the_image() -> None:
    x, offset = torch.randn(1, 2, 40, 40), torch.rand(1, 2, 40, 40) * 6 - 3
    whole = kernels.resample_offset(x, offset)[..., 10:20, 13:23]
    part = kernels.resample_offset(x[..., 5:25, 8:28], offset[..., 5:25, 8:28])[..., 5:15, 5:15]
    assert torch.equal(whole, part)


def test_resample_gradients() -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    # fractions away from 0 and 1, where the derivative jumps
    offset = (
        torch.rand(1, 2, 4, 5, dtype=torch.float64) * 0.6 + 0.2 + torch.randint(-2, 2, (1, 2, 4, 5))
    ).requires_grad_()
    assert torch.autograd.gradcheck(kernels.resample_offset, (x, offset))


def fusion_inputs(b: int, c: int, a: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> tuple:
    g = torch.Generator().manual_seed(2)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    masks = [torch.rand(b, 1, h, w, generator=g, dtype=dtype).round() for _ in range(2)]
    return r(b, c, h, w), [r(b, a, h, w), r(b, a, h, w)], masks, r(2, a), r(2, c), r(2), r(2 * c, a), r(2 * c)


def test_fuse_against_loops() -> None:
    main, aux, masks, qa, qm, qb, fw, fb = fusion_inputs(2, 4, 3, 3, 5)
    got = kernels.fuse(main, aux, masks, qa, qm, qb, fw, fb)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                x = main[b, :, i, j].numpy()
                e = [a[b, :, i, j].numpy() for a in aux]
                logit = [
                    4 * np.tanh((qa[m].numpy() @ e[m] + qm[m].numpy() @ x + float(qb[m])) / 4)
                    for m in range(2)
                ]
                gate = [float(masks[m][b, 0, i, j]) * np.exp(logit[m]) for m in range(2)]
                mixed = sum(gate[m] * e[m] for m in range(2)) / (sum(gate) + 1e-3)
                gamma, beta = np.split(fw.numpy() @ mixed + fb.numpy(), 2)
                assert np.allclose(got[b, :, i, j].numpy(), x * (1 + gamma) + beta, atol=1e-12)


def test_fuse_ignores_a_missing_modality_entirely() -> None:
    main, aux, masks, *rest = fusion_inputs(1, 4, 3, 4, 4)
    masks[0] = torch.zeros_like(masks[0])
    one = kernels.fuse(main, aux, masks, *rest)
    aux[0] = aux[0] * 1000 + 7
    assert torch.equal(one, kernels.fuse(main, aux, masks, *rest))


def test_fuse_without_any_modality_is_a_constant_modulation() -> None:
    main, aux, masks, qa, qm, qb, fw, fb = fusion_inputs(1, 4, 3, 4, 4)
    none = [torch.zeros_like(m) for m in masks]
    gamma, beta = fb.chunk(2)
    want = main * (1 + gamma[None, :, None, None]) + beta[None, :, None, None]
    assert torch.allclose(kernels.fuse(main, aux, none, qa, qm, qb, fw, fb), want, atol=1e-12)


def test_fuse_gradients() -> None:
    main, aux, masks, *weights = fusion_inputs(1, 3, 2, 2, 3)
    leaves = [main, *aux, *weights]
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, a, b, *ws: kernels.fuse(m, [a, b], masks, *ws), leaves)


@pytest.mark.parametrize(
    ("factor", "kind", "mode"),
    [(2, "cubic", "bicubic"), (8, "linear", "bilinear"), (2, "linear", "bilinear")],
)
@pytest.mark.parametrize(("h", "w"), [(4, 4), (7, 13)])
def test_resize_fixed_is_torch_interpolation(factor: int, kind: str, mode: str, h: int, w: int) -> None:
    x = torch.randn(2, 3, h, w)
    got = kernels.resize_fixed(x, kernels.interpolation_kernel(factor, kind), factor)
    want = F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)
    assert (got - want).abs().max() < ROUNDING


def test_interpolation_kernels_keep_constants() -> None:
    for factor, kind in ((2, "cubic"), (8, "linear")):
        sums = kernels.interpolation_kernel(factor, kind).sum(dim=(1, 2, 3))
        assert (sums - 1).abs().max() < ROUNDING


def test_upsample_places_channels_as_pixel_shuffle() -> None:
    x, weight, bias = torch.randn(1, 3, 4, 5), torch.randn(8, 3, 3, 3), torch.randn(8)
    got = kernels.upsample(x, weight, bias)
    conv = F.relu(F.conv2d(x, weight, bias, padding=1))
    assert got.shape == (1, 2, 8, 10)
    for channel in range(2):
        for dy in range(2):
            for dx in range(2):
                assert torch.equal(got[:, channel, dy::2, dx::2], conv[:, channel * 4 + dy * 2 + dx])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fusion_in_a_reduced_type_rounds_its_gain_only_with_the_result(dtype: torch.dtype) -> None:
    main, aux, masks, *weights = fusion_inputs(1, 6, 3, 4, 5, torch.float32)
    reduced = [main.to(dtype), [x.to(dtype) for x in aux], [torch.zeros_like(x).to(dtype) for x in masks]]
    weights = [w.to(dtype) for w in weights]
    gamma, beta = weights[-1].float().reshape(2, 1, -1, 1, 1)
    want = (reduced[0].float() * (1.0 + gamma) + beta).to(dtype)
    assert torch.equal(kernels.fuse(*reduced, *weights, implementation="reference"), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_last_residual_of_reduced_features_has_float32(dtype: torch.dtype) -> None:
    """Rounded, it would be wrong by some share of the radiance, which is its exponential."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(1, 8, 6, 7, generator=g).to(dtype)
    weight, bias = torch.rand(1, 8, 1, 1, generator=g).to(dtype), torch.rand(1, generator=g).to(dtype)
    nothing = torch.zeros(8, dtype=dtype)
    level = torch.zeros(1, 1, 6, 7)
    heads = (weight, bias, nothing, [], [], weight, bias)
    radiance, _ = kernels.refine(x, level, *heads, implementation="reference")
    residual = torch.einsum("bchw,c->bhw", x.double(), weight.double()[0, :, 0, 0])[:, None] + bias.double()
    torch.testing.assert_close(radiance.double(), torch.expm1(2.0 * residual), rtol=1e-5, atol=0.0)
