"""The whole network through each runtime, on declared tile shapes and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.cases import BATCHES, TILES
from bench.conftest import Measure
from bench.network import RUNTIMES, Network, channels_last
from bench.rates import Work, hr_mpix
from bench.traffic import network as traffic_of
from bench.traffic import network_bytes
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.train.fit.checkpoint import load_checkpoint

Inputs = dict[str, NDArray[np.float32]]
Run = Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]
VARIANTS = (*RUNTIMES, "torch bf16")
SHAPES = [(1, side) for side in TILES] + [(batch, TILES[0]) for batch in BATCHES if batch > 1]
MEASURED = [(*shape, variant) for shape in SHAPES for variant in VARIANTS] + [
    (1, TILES[1], "torch compiled fp32")
]
"""(batch, side, variant). torch.compile takes a minute for each shape, so only one is measured."""
RANGE_OF_BF16 = 0.05
"""Allowed difference as a share of the range, for random weights; the export compares trained ones more strictly."""


def tile_inputs(batch: int, side: int) -> Inputs:
    """Return plausible layers without holes, drawn from a seed, in physical units, as `spec.INPUTS` describes them."""
    rng = np.random.default_rng(side + 1000 * batch)
    scales = {"ntl": 40.0, "dmo": 0.4, "dem": 900.0}
    made = {}
    for spec in INPUTS:
        values = rng.random(input_shape(spec, batch, side, side), dtype=np.float32)
        made[spec.name] = (
            values * np.float32(scales[spec.name]) if spec.name in scales else np.ones_like(values)
        )
    assert made["dmo_bands"].shape[1] == len(DMO_SLOTS)
    return made


@pytest.fixture(scope="session")
def eager(network: Network) -> torch.nn.Module:
    """The network with which all variants are compared."""
    return channels_last(load_checkpoint(network.run)[0])


def in_torch(model: Any) -> Run:
    """Return a module as a function of named arrays."""

    def run(inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in INPUTS]
        layout = torch.channels_last
        with torch.inference_mode():
            result = model(*(t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors))
        values: NDArray[np.float32] = result[0].numpy()
        return values

    return run


@pytest.fixture(scope="session")
def runs(network: Network, eager: torch.nn.Module) -> Callable[[str], Run]:
    """The opened runtime of each variant. The benchmark is skipped where the runtime or the device is missing."""
    opened: dict[str, Run] = {}

    def get(variant: str) -> Run:
        if variant not in opened:
            name, *_, precision = variant.split()
            if "compiled" in variant:
                opened[variant] = in_torch(torch.compile(eager, dynamic=False))
            else:
                try:
                    artifact = load_artifact(str(network.artifact))
                    backend = open_backend(name, artifact, precision=precision, threads=available_cpus())
                except InputError as e:
                    pytest.skip(str(e))
                opened[variant] = lambda inputs: backend.run(inputs)["ntl_hr"]
        return opened[variant]

    return get


@pytest.fixture(scope="session")
def wanted(eager: torch.nn.Module) -> Callable[[int, int], tuple[Inputs, NDArray[np.float32]]]:
    """Return inputs of a shape, and what PyTorch makes of them in float32."""
    made: dict[tuple[int, int], tuple[Inputs, NDArray[np.float32]]] = {}

    def get(batch: int, side: int) -> tuple[Inputs, NDArray[np.float32]]:
        if (batch, side) not in made:
            inputs = tile_inputs(batch, side)
            made[batch, side] = inputs, in_torch(eager)(inputs)
        return made[batch, side]

    return get


@pytest.mark.benchmark(group="backends")
@pytest.mark.parametrize(("batch", "side", "variant"), MEASURED)
def test_backend(
    measure: Measure,
    runs: Callable[[str], Run],
    wanted: Callable[[int, int], tuple[Inputs, NDArray[np.float32]]],
    batch: int,
    side: int,
    variant: str,
) -> None:
    run = runs(variant)
    inputs, want = wanted(batch, side)
    if "compiled" in variant:
        try:
            run(inputs)
        except torch._dynamo.exc.TorchDynamoException as e:
            pytest.skip(f"torch.compile cannot compile the network here: {str(e).splitlines()[0]}")
    # float32 in another order, which white noise in every layer amplifies (export's parity holds plausible scenes to
    # 1e-5); bfloat16 has 8 bits
    share = RANGE_OF_BF16 if "bf16" in variant else 2e-4

    def check(got: NDArray[np.float32]) -> None:
        np.testing.assert_allclose(got, want, rtol=0, atol=share * float(want.max()))

    mpix = hr_mpix(batch, side)
    # the bytes of torch.compile are taken for all variants, since no runtime on a CPU has the kernels
    moved = network_bytes("tiny", 2 if "bf16" in variant else 4, "compiled") * mpix * 1e6
    limit = "matmul_bf16" if "bf16" in variant else "matmul"
    threads = available_cpus()
    flops = traffic_of("tiny")["network"].flops * mpix * 1e6
    work = Work("model", variant, mpix, flops, moved, limit, "flops", threads, batch, side)
    measure(lambda: run(inputs), check, work, rounds=1)
