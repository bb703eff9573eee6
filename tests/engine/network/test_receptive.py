"""The computed receptive field against the network itself: a NaN spreads as far as the network can see."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.network.config import PRESETS, ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo

SMALL = ModelConfig(main=(4, 4, 4, 4), aux=(4, 4, 4), localise_width=4)
CONFIGS = {
    "tiny's depths": SMALL,
    "deeper": dataclasses.replace(SMALL, body=2, refine=(2, 1, 2)),
    "shallow, short offset": dataclasses.replace(SMALL, refine=(0, 0, 0), d_max=1.0),
    "far offset decides": dataclasses.replace(SMALL, d_max=11.0),
}


def spread(config: ModelConfig, name: str, offset_sign: float) -> int:
    """How many LR pixels away from a NaN's LR pixel the outputs become NaN, with the offset at ±d_max."""
    torch.manual_seed(0)
    model = DeepLightSR(config).eval()
    for p in model.parameters():
        p.data.uniform_(0.05, 0.1)  # positive: no ReLU swallows the trace
    model.localise.correct[-1].bias.data[:2] = 40.0 * config.d_max * offset_sign
    side = 2 * halo(config) + 5
    middle = side // 2
    inputs = {s.name: torch.ones(input_shape(s, 1, side, side)) for s in INPUTS}
    inputs["psf"][:] = 3.0
    f = 1 if name == "ntl" else SCALE
    block = slice(middle * f, (middle + 1) * f)
    inputs[name][0, 0, block, block] = math.nan
    with torch.no_grad():
        out = model(*inputs.values())[0][0, 0]
    touched = torch.isnan(out).nonzero() // SCALE
    return int((touched - middle).abs().max())


@pytest.mark.parametrize("label", CONFIGS)
def test_nan_spreads_exactly_as_far_as_computed(label: str) -> None:
    config = CONFIGS[label]
    seen = [spread(config, "ntl", 1.0), spread(config, "dmo", 1.0), spread(config, "dmo", -1.0)]
    # Interval arithmetic assumes that every tap matters; 4 of 5 cubic taps do at a given phase, so the trace may
    # stop one LR pixel short of the bound, never beyond it.
    assert halo(config) - 1 <= max(seen) <= halo(config)


def test_tiny_is_small_enough_for_cpu_tiles() -> None:
    # (256 + 2·20)² is 12 % more than (256 + 2·12)², what was first aimed at
    assert halo(PRESETS["tiny"]) <= 20


def test_base_fits_its_budget() -> None:
    assert halo(PRESETS["base"]) <= 28
