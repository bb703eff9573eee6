"""What a launch should compute agrees with what the kernels compute, and tells when one does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import expected, launch
from deeplight.kernels.expected import filled, worst
from deeplight.kernels.launch import Launch
from deeplight.kernels.variants import DTYPES, variants

SIDE = 16


def launches(preset: str, dtype: str) -> list[Launch]:
    return list(variants(PRESETS[preset], DTYPES[dtype], side=SIDE))


def assert_computed(device: str, launches: list[Launch]) -> None:
    for ready in launches:
        trial = filled(ready, device)
        want = expected.expected(trial)
        # NaN is nodata in the overview that finish makes
        assert all(torch.isfinite(t).all() for name, t in want.items() if name != "halves"), ready.key
        assert worst(trial, expected.run(trial), want) <= 1, ready.key


@pytest.mark.parametrize(("preset", "dtype"), [("tiny", "fp16"), ("base", "fp32")])
def test_a_launch_of_each_kernel_computes_what_is_expected(device: str, preset: str, dtype: str) -> None:
    assert_computed(device, list({v.kernel: v for v in reversed(launches(preset, dtype))}.values()))


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_launch_computes_what_is_expected(device: str, preset: str, dtype: str) -> None:
    assert_computed(device, launches(preset, dtype))


@pytest.mark.parametrize("kernel", sorted(launch.MODULES))
def test_random_arguments_leave_nothing_constant(kernel: str) -> None:
    """Zeros would hide what a kernel does wrong; a mask, an offset and places outside the raster have an effect."""
    for ready in launches("tiny", "fp16"):
        if ready.kernel != kernel:
            continue
        for name, result in expected.expected(filled(ready, "cpu")).items():
            assert result[torch.isfinite(result)].std() > 0.01, (ready.key, name)
            if kernel == "align" and ready.constants["MESH"]:
                valid = result[:, -1]
                assert (valid == 0).any() and (valid == 1).any(), ready.key


def wrong(name: str, at: tuple[int, ...], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next launches compute what is expected, but for one value."""

    def run(ready: Launch) -> None:
        for output, right in expected.expected(ready).items():
            ready.arguments[output].copy_(right)  # type: ignore[union-attr]
        ready.arguments[name][at] += value  # type: ignore[index]

    monkeypatch.setattr(launch, "run", run)


@pytest.mark.parametrize("value", [0.0, 0.1, torch.nan])
def test_one_wrong_pixel_is_found(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = filled(next(v for v in launches("tiny", "fp16") if v.kernel == "upsample_conv"), "cpu")
    wrong("out", (0, 3, 5, 7), value, monkeypatch)
    assert (worst(ready, expected.run(ready), expected.expected(ready)) <= 1) == (value == 0.0)


def test_what_a_kernel_does_not_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", lambda ready: None)
    for ready in launches("tiny", "fp16"):
        trial: Any = filled(dataclasses.replace(ready), "cpu")
        assert not worst(trial, expected.run(trial), expected.expected(trial)) <= 1, ready.key
