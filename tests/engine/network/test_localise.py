"""The offset: what the estimate can and cannot see, and the training stages that teach it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.engine.core.windows import Window
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.localise import Localise
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.clips.samples import Sample
from deeplight.train.fit.augment import augmented
from deeplight.train.fit.batch import FixedBatches
from deeplight.train.fit.config import AugmentConfig
from deeplight.train.fit.loader import probe, stage_batches
from deeplight.train.fit.losses import offset_error, one_process
from deeplight.train.fit.parts import window_parts
from deeplight.train.fit.pool import REGION, SyntheticSource
from deeplight.train.fit.settings import settings_from
from deeplight.train.fit.stages import TrainingStage, plan, schedule
from deeplight.train.fit.supervision import Supervised, optimiser

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)
INNER = slice(14, -14)
"""Away from the border: the window of 23 and the shift of 2 then see no repeated edge."""


def estimate(ntl: Tensor, lights: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The untrained estimate (2, h, w) where the auxiliary suggests exactly `lights`; both (h, w)."""
    torch.manual_seed(0)
    localise = Localise(SMALL).eval()
    monkeypatch.setattr(kernels, "suggest", lambda *_: lights[None, None])
    with torch.no_grad():
        localise.sharpness.fill_(5.5)  # posterior wider than the lattice, as trained
        found: Tensor = localise(ntl[None, None], torch.zeros(1, 10, 4, 4))[0]
        return found


def town(dx: float, dy: float, side: int = 41) -> Tensor:
    """A lobed settlement, its log radiance sampled at p + (dx, dy)."""
    y, x = torch.meshgrid(torch.arange(side) + float(dy), torch.arange(side) + float(dx), indexing="ij")
    r = torch.hypot(x - 20, y - 20)
    angle = torch.atan2(y - 20, x - 20)
    return torch.sigmoid(2.0 * (4.0 + torch.cos(3 * angle + 0.5) - r))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, -0.5), (0.7, 1.3), (-1.25, 0.2)])
def test_a_town_shows_its_shift(shift: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    # NTL(p) = lights(p + shift), brighter and on a haze: neither may matter
    found = estimate(1.7 * town(*shift) + 0.2, town(0, 0), monkeypatch)
    middle = found[:, 16:25, 16:25]
    # untrained: d_max·tanh alone bends 1.3 down to 1.14, and the prior pulls a little towards 0
    assert (middle - torch.tensor(shift)[:, None, None]).abs().max() < 0.25


def test_where_nothing_can_be_seen_the_offset_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(torch.full((41, 41), 0.3), town(0, 0), monkeypatch)
    assert found.abs().max() < 1e-3


def test_a_lone_road_decides_only_the_shift_across_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(41, dtype=torch.float32)
    road = torch.exp(-(((x - 20) / 1.5) ** 2)).expand(41, 41)
    moved = torch.exp(-(((x + 1.0 - 20) / 1.5) ** 2)).expand(41, 41)
    found = estimate(moved, road, monkeypatch)[:, INNER, 18:22]
    assert (found[0] - 1.0).abs().max() < 0.2
    assert found[1].abs().max() < 1e-3


def region(dx: float, dy: float) -> Sample:
    """A region whose bands rise linearly and whose lights are their first band, seen at p + (dx, dy) LR px."""
    at = (torch.arange(8 * REGION, dtype=torch.float32) + 0.5) / 8
    y, x = torch.meshgrid(at, at, indexing="ij")
    band = 0.02 * x + 0.03 * y
    night = (band + 0.02 * dx + 0.03 * dy)[None]
    ntl = torch.nn.functional.avg_pool2d(night, 8)
    offset = torch.tensor([dx, dy])[:, None, None].expand(2, REGION, REGION).clone()
    layers = (ntl, night, night * 0.1, band.expand(7, -1, -1), band[None] * 100, offset)
    return Sample.complete(*(t.numpy() for t in layers))


def test_windows_are_turned_together() -> None:
    source = SyntheticSource([region(0.8, -0.5)], range(1))
    parts = window_parts(source.read(0, Window(10, 20, 24, 24)), (96, 96), 24, 0)
    only_turned = AugmentConfig(1, 0, 0, 0, 0, 0, 0, 0, (0, 0))
    seen = set()
    for seed in range(40):
        one = augmented(parts, only_turned, np.random.default_rng(seed))
        ntl, offset = one["ntl"][0], one["offset"]
        # night(p) = ground + slope · offset, and the slope of ground is that of night
        slope_x, slope_y = ntl[0, 1] - ntl[0, 0], ntl[1, 0] - ntl[0, 0]
        gain = slope_x * offset[0] + slope_y * offset[1]
        assert torch.allclose(gain, torch.tensor(0.02 * 0.8 - 0.03 * 0.5), atol=1e-4)
        seen.add((round(float(slope_x), 2), round(float(slope_y), 2)))
    assert len(seen) == 8, "all eight symmetries must occur"


def learn(
    model: DeepLightSR, source: SyntheticSource, stage: TrainingStage, aligned: tuple[int, ...]
) -> None:
    """The stage's steps, as the loop makes them."""
    module = Supervised(model, stage, one_process)
    adam = optimiser(model, stage, 1e-4)
    for step, loaded in enumerate(stage_batches(source, stage, aligned if stage.aligned else (), 0, 0)):
        for group in adam.param_groups:
            group["lr"] = schedule(step, stage.rate, stage.horizon, stage.warm_up, stage.floor)
        adam.zero_grad()
        module(loaded.batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()


@pytest.mark.slow
def test_the_stages_teach_the_offset() -> None:
    torch.manual_seed(0)
    model = DeepLightSR(SMALL)
    towns = town(0, 0).roll((-4, -4), (0, 1))[:32, :32].repeat(3, 3)
    ground = towns.repeat_interleave(8, 0).repeat_interleave(8, 1)

    def made(dx: int, dy: int) -> Sample:
        night = 20.0 * ground.roll((-8 * dy, -8 * dx), (0, 1))[None]
        ntl = torch.nn.functional.avg_pool2d(night, 8)
        offset = torch.tensor([dx, dy])[:, None, None].expand(2, 96, 96).float()
        bands = 0.1 + 0.3 * ground.expand(7, -1, -1)
        return Sample.complete(
            *(t.numpy() for t in (ntl, night, night / 20, bands, ground[None] * 0, offset))
        )

    source = SyntheticSource([made(0, 0), made(1, 0), made(0, -1)], range(3))
    facts = probe(source)
    assert facts.aligned == (0,)
    settings = settings_from({"training": {"light_steps": 150, "localise_steps": 40}})
    for stage in plan(settings, facts)[0][:2]:
        learn(model, source, replace(stage, batch=2, crop=40), facts.aligned)
    (batch,) = FixedBatches(SyntheticSource([made(1, 0)], range(1)), 1, 14)
    with torch.no_grad():
        found = model.predict(*batch.inputs).offset
    assert batch.offset is not None
    light = torch.nn.functional.avg_pool2d(batch.ntl_hr, 8)
    error = offset_error(model, found, batch.offset, light, batch.weight * (light > 1))
    assert error < 0.25, "of 0.5 (one of two components is 1) where there is light"
