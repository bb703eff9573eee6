"""What a CUDA graph is to hold copies nothing from the host: PyTorch refuses that while it captures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import ops
from deeplight.engine.network.precision import in_precision
from deeplight.kernels import dispatch
from deeplight.kernels.interpolation import SCALE, _linear_on_gpu, interpolation_kernel, sample
from tests.engine.network.test_model import inputs, make
from tests.kernels import fake_gpu


class NothingFromTheHost(TorchDispatchMode):
    """Raises where a tensor of the host meets one of a GPU, but for a single number among operands, or is copied."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        crosses = any(t.is_cuda for t in (*given, *made)) and any(t.device.type == "cpu" for t in given)
        copies = "copy" in str(func) or "lift" in str(func)
        if crosses and any(t.device.type == "cpu" and (t.ndim or copies) for t in given):
            raise AssertionError(f"{func} copies from the host")
        return out


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_operations(preset: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels what is done before their operators."""
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "kernel_runs_on", lambda _: True)
    with fake_gpu.fake_cuda():
        for name, op, args, _ in ops.op_cases(preset, torch.float16, 2, fake_gpu.DEVICE):
            if implementation == "triton" and name == "finish":  # no operator is around its launch
                continue
            with torch.inference_mode(), NothingFromTheHost():
                result = op(*args, implementation=implementation)
            first = result if isinstance(result, torch.Tensor) else result[0]
            assert first.is_cuda, name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_network_of_references(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: False)
    network, values = in_precision(make(), precision), inputs(1, 2, 3)
    with fake_gpu.fake_cuda():
        given = [torch.empty(value.shape, device=fake_gpu.DEVICE) for value in values.values()]
        network = fake_gpu.moved(network)
        with torch.inference_mode(), NothingFromTheHost():
            assert all(result.is_cuda for result in network(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_made_on_the_gpu_are_those_of_the_host(dtype: torch.dtype) -> None:
    want = interpolation_kernel(SCALE, "linear").to(dtype)
    assert torch.equal(_linear_on_gpu(torch.zeros(1, dtype=dtype)), want)


def test_a_copy_from_the_host_is_found() -> None:
    with fake_gpu.fake_cuda():
        x, offset = (torch.empty(1, 2, side, side, device=fake_gpu.DEVICE) for side in (16, 2))
        with NothingFromTheHost():
            sample(x, offset)
            for copied in (
                lambda: interpolation_kernel(SCALE, "linear").to(offset),
                lambda: x.new_tensor(2.0),
                lambda: x[0, 0].copy_(torch.tensor(2.0)),
            ):
                with pytest.raises(AssertionError, match="copies from the host"):
                    copied()
