"""bench/traffic.py against PyTorch's own count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.network import random_model
from bench.traffic import FLOAT32, network, network_bytes
from deeplight.engine.core.spec import INPUTS, SCALE, input_shape


def test_flops_of_tiny_are_those_that_pytorch_counts() -> None:
    side = 16
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        random_model()(*(torch.rand(input_shape(spec, 1, side, side)) for spec in INPUTS))
    counted = counter.get_total_flops() / (SCALE * side) ** 2
    # PyTorch counts convolutions only, and the rims that padding adds to a tile as small as this
    assert network("tiny")["network"].flops == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("how", ["eager", "compiled", "fused"])
def test_the_offset_is_float32_in_every_precision(how: str) -> None:
    half, single = network_bytes("tiny", 2, how), network_bytes("tiny", 4, how)
    local = 2 * sum(getattr(network("tiny")[row], how) for row in FLOAT32)
    assert half == 2 * getattr(network("tiny")["network"], how)
    assert single - local == pytest.approx(2 * (half - local))
