"""One step of training at the defaults of deeplight-train: batch 4, crops of 44 LR pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.bench_backends import tile_inputs
from bench.conftest import Measure
from bench.network import Network, channels_last
from bench.rates import Work, hr_mpix
from bench.traffic import network as traffic_of
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.checkpoint import load_checkpoint
from deeplight.train.fit.losses import ObjectiveConfig, Truth, objective

BATCH, CROP = 4, 44
FORWARD_AND_BACKWARD = 3
"""How many times the products of the forward pass a step takes: one for the result and two for the gradients."""


@pytest.mark.benchmark(group="training")
def test_training_step(measure: Measure, network: Network) -> None:
    model = channels_last(load_checkpoint(network.run)[0]).train()
    assert isinstance(model, DeepLightSR)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arrays = tile_inputs(BATCH, CROP)
    inputs = [torch.from_numpy(arrays[spec.name]) for spec in INPUTS]
    lights = np.repeat(np.repeat(arrays["ntl"], SCALE, 2), SCALE, 3)
    ones = torch.ones(BATCH, 1, CROP, CROP)
    isp = torch.from_numpy(lights / lights.max())
    truth = Truth(torch.from_numpy(lights), isp, ones, torch.zeros(BATCH, 2, CROP, CROP))

    def step() -> float:
        prediction = model.predict(*inputs)
        loss, _ = objective(model, prediction, truth, ObjectiveConfig())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return float(loss.detach())

    start = step()

    def check(loss: float) -> None:
        assert math.isfinite(loss) and loss < start, "a step on the same batch must lower the loss"

    mpix, threads = hr_mpix(BATCH, CROP), available_cpus()
    flops = FORWARD_AND_BACKWARD * traffic_of("tiny")["network"].flops * mpix * 1e6
    work = Work("training step", "torch fp32", mpix, flops, 0, "matmul", "flops", threads, BATCH, CROP)
    measure(step, check, work, rounds=3)
