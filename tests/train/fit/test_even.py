"""The term of the objective that looks at even lights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit import even
from deeplight.train.fit.batch import Batch
from deeplight.train.fit.checkpoint import load_checkpoint
from deeplight.train.fit.even import even_errors
from deeplight.train.fit.losses import one_process
from deeplight.train.fit.settings import Settings
from deeplight.train.fit.stages import DataFacts, plan
from deeplight.train.fit.supervision import Supervised
from deeplight.train.trials.probes import pattern
from tests.train.fit.test_training import SMALL, toy_batch


def wild() -> DeepLightSR:
    """A network whose residuals are noise."""
    torch.manual_seed(0)
    model = DeepLightSR(SMALL)
    for parameter in model.refines.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_base_without_residual_leaves_even_lights_even() -> None:
    model = DeepLightSR(SMALL).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("refines."):
                parameter.zero_()
        pattern, border = even_errors(model, toy_batch(), one_process, holds_sums=True)
    assert float(pattern) < 1e-5
    assert float(border) < 1e-4, "nodata is filled with what is beside it"


def test_it_is_what_the_probe_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model in the package, which nothing makes noisy here; the probe takes the largest of the 64 places."""
    model, _ = load_checkpoint("deeplight-tiny")
    model.eval()
    batch = toy_batch()
    told = (torch.full_like(batch.inputs[-2], 1.0), torch.tensor([[-1.0, 0.05]]).expand_as(batch.inputs[-1]))
    batch = replace(batch, inputs=(torch.full_like(batch.inputs[0], 20.0), *batch.inputs[1:-2], *told))
    with torch.no_grad():
        near = [float(x) for x in even_errors(model, batch, one_process, holds_sums=True)]
        monkeypatch.setattr(even, "_RIM", 12)
        far = [float(x) for x in even_errors(model, batch, one_process, holds_sums=True)]
    assert near == pytest.approx(far, rel=0.05), "edges are hardly seen"
    # of 64 places the largest deviation is one to eight times their RMS; belief, which the probe has in its way and
    # training has not, changes even lights by a few per cent of the pattern
    assert 0.9 * near[0] <= pattern(model, 20.0) <= 8 * near[0]


def test_lights_end_on_each_side() -> None:
    numbers = torch.tensor([7.0, 7.001, 7.002, 7.003, 7.0, 7.001]) + 1e-4
    valid = even._cut(numbers, 2 * even._RIM + even._INNER)[:, 0]
    assert torch.equal(valid[:2], valid[4:])
    sides = [valid[:4, -1], valid[:4, 0], valid[:4, :, -1], valid[:4, :, 0]]
    assert sorted((s.sum(dim=1) == 0).tolist().index(True) for s in sides) == [0, 1, 2, 3]
    inner = slice(even._RIM, -even._RIM)
    assert valid[:, inner, inner].all(), "what is looked at is given"
    assert (valid.sum(dim=(1, 2)) == (even._RIM + even._INNER) * (2 * even._RIM + even._INNER)).all()


def test_a_step_against_it_makes_it_less() -> None:
    model, batch = wild(), toy_batch()
    steps = torch.optim.Adam(model.parameters(), lr=1e-3)
    errors = []
    for _ in range(8):
        found = even_errors(model, batch, one_process, holds_sums=True)
        steps.zero_grad()
        sum(found).backward()
        steps.step()
        errors.append([float(x.detach()) for x in found])
    assert errors[-1][0] < 0.8 * errors[0][0]
    assert errors[-1][1] < 0.8 * errors[0][1]


def test_only_the_last_stage_looks_at_it() -> None:
    stages, _ = plan(Settings(), DataFacts(isp=True, offset=True, dmo=True, dem=True, aligned=(0,)))
    assert {s.name: s.objective.pattern for s in stages if s.validated and s.objective.pattern} == {
        "finish": 1.0
    }
    model, batch = wild(), toy_batch()
    loss, parts = Supervised(model, stages[-1], lambda x: x)(batch)
    assert float(parts["pattern"]) > 0
    assert float(parts["border"]) > 0
    without = replace(stages[-1], objective=replace(stages[-1].objective, pattern=0.0))
    less, others = Supervised(model, without, lambda x: x)(batch)
    assert not {"pattern", "border"} & set(others)
    assert float((loss - less).detach()) == pytest.approx(float(parts["pattern"] + parts["border"]), rel=1e-3)


def test_several_processes_see_the_same() -> None:
    """The mean of what processes find in their parts of a batch, which differ in size, is that of the whole."""
    model, windows = wild(), [toy_batch(seed) for seed in (0, 1, 2)]

    def together(*batches: Batch) -> Batch:
        both = zip(*(batch.inputs for batch in batches), strict=True)
        return replace(batches[0], inputs=tuple(torch.cat(each) for each in both))

    def across(number: torch.Tensor) -> torch.Tensor:
        """Levels of one window and of two, two each: what the mean over the processes is."""
        assert float(number) in (2.0, 4.0)
        return torch.tensor(3.0)

    parts = together(windows[0]), together(*windows[1:])
    with torch.no_grad():
        each = [even_errors(model, part, across, holds_sums=True) for part in parts]
        whole = even_errors(model, together(*windows), one_process, holds_sums=True)
    for term in (0, 1):
        assert float(whole[term]) == pytest.approx(np.mean([float(part[term]) for part in each]), rel=1e-4)
        assert float(each[0][term]) != float(each[1][term])
