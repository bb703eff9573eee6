"""Probes find what is known of models without any training, and of one that is wrong on purpose."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplight.engine.network.config import PRESETS
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.pool import synthetic_source
from deeplight.train.trials import probes


def _hr(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=8)


@pytest.fixture(scope="module")
def base() -> DeepLightSR:
    """The network before any training: its residual is 0, so it gives its base."""
    torch.manual_seed(0)
    return DeepLightSR(PRESETS["tiny"]).eval()


@pytest.fixture(scope="module")
def sets(base: DeepLightSR) -> list[Batch]:
    """Two countries, 32 LR pixels along each side: enough to tell right from wrong."""

    def cut(x: torch.Tensor) -> torch.Tensor:
        scale = x.shape[-1] // 80 if x.ndim == 4 else 0
        return x[..., 24 * scale : 56 * scale, 24 * scale : 56 * scale] if scale else x

    made = FixedBatches(synthetic_source(range(970_000, 970_002), 2), 2, halo(base.config))
    return [batch._map(cut) for batch in made]


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_lone_lights_that_a_model_dims_are_found_dimmed(share: float) -> None:
    def dims(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [_hr(inputs[0]) * share]

    model = cast(DeepLightSR, dims)
    found = [probes._kept(model, np.random.default_rng(0), f, 1.0, 6400.0, 0.0) for f in (0.0, 1.0, 2.0)]
    kept, peaks = zip(*found, strict=True)
    # noise of 0.02 in 80 LR pixels, 64 HR pixels each, is a mean of 0.2 % of the light
    assert kept == pytest.approx([share] * 3, rel=0.01)
    assert peaks == pytest.approx([share] * 3), "an HR pixel is as bright as the LR pixel that holds it"


def test_a_pattern_that_is_put_in_is_found(base: DeepLightSR) -> None:
    def with_pattern(*inputs: torch.Tensor) -> list[torch.Tensor]:
        even = torch.full((1, 1, 8 * inputs[0].shape[2], 8 * inputs[0].shape[3]), 20.0)
        even[..., 3::8, 5::8] *= 1.064
        return [even]

    assert probes.pattern(base, 20.0) < 0.002, "interpolation alone leaves none"
    assert probes.pattern(cast(DeepLightSR, with_pattern), 20.0) == pytest.approx(0.064 * 63 / 64, rel=0.01)


def test_layers_do_nothing_to_a_model_that_does_not_look_at_them(
    base: DeepLightSR, sets: list[Batch]
) -> None:
    assert probes.foreign_layers(base, sets) == [(0.0, 0.0)] * 2


def test_layers_do_something_to_a_model_that_copies_them(sets: list[Batch]) -> None:
    def copies(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[2][:, :1] * 100.0 + 1.0]

    found = probes.foreign_layers(cast(DeepLightSR, copies), sets)
    assert all(abs(total) > 0.01 for _, total in found)


def test_light_beside_holes_is_what_the_model_leaves_there(base: DeepLightSR, sets: list[Batch]) -> None:
    def forgets(*inputs: torch.Tensor) -> list[torch.Tensor]:
        """Half of the light within reach of a missing pixel is gone."""
        missing = F.max_pool2d(1.0 - inputs[1], 3, 1, 1)
        return [_hr(inputs[0].clamp(min=0.0) * (1.0 - 0.5 * missing))]

    assert 0.9 < probes.beside_nodata(base, sets) < 1.1
    assert probes.beside_nodata(cast(DeepLightSR, forgets), sets) == pytest.approx(0.5)


def test_a_rim_beside_a_border_is_found(base: DeepLightSR) -> None:
    def with_rim(*inputs: torch.Tensor) -> list[torch.Tensor]:
        """A fifth more light in LR pixels beside nodata, a tenth less in the next."""
        beside, near = (F.max_pool2d(1.0 - inputs[1], side, 1, side // 2) for side in (3, 5))
        return [_hr(inputs[0] * (1.0 + 0.3 * beside - 0.1 * near))]

    least, most = probes.beside_border(base, 1.0)
    assert 0.99 < least <= most < 1.01, "the base leaves none"
    assert probes.beside_border(cast(DeepLightSR, with_rim), 1.0) == pytest.approx((0.9, 1.2), rel=0.01)


def test_coverage_counts_what_lies_within(sets: list[Batch]) -> None:
    def all_of_it(*inputs: torch.Tensor) -> list[torch.Tensor]:
        size = (1, 1, 8 * inputs[0].shape[2], 8 * inputs[0].shape[3])
        ends = torch.cat([torch.zeros(size), torch.full(size, 1e9)], 1)
        return [ends, ends, ends, ends.expand(len(inputs[0]), -1, -1, -1)]

    found = probes.coverage(cast(DeepLightSR, all_of_it), iter(sets))
    assert set(found.values()) == {1.0}


@pytest.mark.slow
def test_the_shipped_model_is_probed_from_end_to_end() -> None:
    told: list[str] = []
    text = probes.probe("deeplight-tiny", told.append, countries=2, worlds=2)
    assert len(told) == 5
    assert all(
        title in text
        for title in ("Lone lights", "Pattern", "single missing", "a border", "another country", "90 %")
    )
