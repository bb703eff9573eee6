"""The term of the objective that looks at the radiance itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.config import ObjectiveConfig
from deeplight.train.fit.losses import objective
from tests.train.fit.test_training import SMALL, toy_batch


def test_the_linear_term_counts_each_window_alike() -> None:
    """However bright a window is; and a constant in place of its truth is half of the most that it can cost."""
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    only = ObjectiveConfig(alpha=0, consistency=0, offset=0, squared=0, linear=1, interval=0)

    def term(truth: torch.Tensor, guess: torch.Tensor) -> float:
        p = model.predict(*batch.inputs)
        p = p._replace(ntl=[*p.ntl[:2], model.normalise.ntl(guess)])
        return float(objective(model, p, replace(batch, ntl_hr=truth), only)[1]["linear"])

    truth = torch.rand_like(batch.ntl_hr) * 20 + 1
    near = truth + 0.5
    assert term(truth, near) == pytest.approx(term(9 * truth, 9 * near), rel=0.01)
    assert term(truth, truth) == pytest.approx(0.0, abs=1e-6)
    assert term(truth, torch.full_like(truth, float(truth.mean()))) == pytest.approx(0.5, abs=0.01)
