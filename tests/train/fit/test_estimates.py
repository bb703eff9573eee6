"""Offsets estimated for whole places, and the stages that use them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplight.engine.core.windows import Window
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit import estimates
from deeplight.train.fit.batch import FixedBatches
from deeplight.train.fit.estimates import EstimatedSource, affordable
from deeplight.train.fit.losses import one_process
from deeplight.train.fit.stages import DataFacts, plan
from deeplight.train.fit.supervision import Supervised
from tests.train.fit.fake_source import FakeSource, small_settings

FACTS = DataFacts(offset=True, isp=True, aligned=(0,))


def network() -> DeepLightSR:
    torch.manual_seed(0)
    model = DeepLightSR(small_settings().model).eval()
    torch.nn.init.normal_(model.localise.correct[-1].weight, std=0.3)
    return model


def test_a_window_brings_its_part_of_the_whole_place_s_estimate() -> None:
    model, source = network(), FakeSource()
    estimated = EstimatedSource(source, model)
    whole = Window(0, 0, *source.size(1))
    offset = estimated.read(1, whole).offset
    assert offset is not None and np.ptp(offset) > 0.01
    part = estimated.read(1, Window(3, 5, 9, 7)).offset
    assert part is not None and np.array_equal(part, offset[:, 3:12, 5:12])
    alone = EstimatedSource(FakeSource(sizes=((24, 40),) * 2), model).read(1, whole).offset
    assert alone is not None and np.array_equal(alone, offset)


def test_a_damaged_place_is_left_to_the_loader() -> None:
    estimated = EstimatedSource(FakeSource(broken=frozenset({1})), network())
    assert len(estimated) == 3 and estimated.name(1) == "place 1"


def test_resting_layers_are_not_asked_again() -> None:
    whole = next(s for s in plan(small_settings(), FACTS)[0] if s.name == "whole")
    assert whole.estimated and not replace(whole, localise_rate=0.1).estimated
    assert not replace(whole, told=True).estimated
    model = network()
    batch = next(iter(FixedBatches(EstimatedSource(FakeSource(), model), 1, 0)))
    given = Supervised(model, whole, one_process, estimated=True)
    before = float(given(batch)[0])
    asked = float(Supervised(model, whole, one_process)(batch)[0])
    with torch.no_grad():
        model.localise.correct[-1].bias.fill_(1.5)
    assert float(given(batch)[0]) == before
    assert float(Supervised(model, whole, one_process)(batch)[0]) != asked


def test_large_sources_are_not_estimated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert affordable(FakeSource())
    monkeypatch.setattr(estimates, "LARGEST_LR_PX", 100)
    assert not affordable(FakeSource())
