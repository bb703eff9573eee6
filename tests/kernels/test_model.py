"""The network with kernels against the network without, and which implementation is taken when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeplight import kernels
from deeplight.kernels import dispatch
from tests.kernels.test_fuse import case
from tests.train.test_model import inputs, make


def test_the_network_is_the_same_with_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = make(wild=0.15).to(device), inputs(1, 2, 3)
    values = {k: v.to(device) for k, v in values.items()}
    values["dem_valid"][..., :7] = 0
    values["dem"] *= values["dem_valid"]
    asked: list[str] = []

    def always(op: str, *_: Any, **__: Any) -> bool:
        asked.append(op)
        return True

    with torch.no_grad():
        monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: False)
        want = model(*values.values())
        monkeypatch.setattr(dispatch, "use_kernel", always)
        got = model(*values.values())
    assert set(asked) == {"align", "fuse", "upsample", "refine"}
    for name, g, w in zip(("ntl_hr", "isp", "offset"), got, want, strict=True):
        # float32 through some ten layers, then exp; offsets move the samples
        assert (g - w).abs().max() <= 1e-4 * max(1.0, float(w.abs().max())), name


def test_auto_is_the_reference_on_a_cpu() -> None:
    args = case(1, 8, 8, 3, 5)
    assert torch.equal(kernels.fuse(*args), kernels.fuse(*args, implementation="reference"))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, triton, reference, not 'cuda'"):
        kernels.fuse(*case(1, 8, 8, 3, 5), implementation="cuda")  # type: ignore[arg-type]


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs CUDA tensors and Triton"):
        kernels.fuse(*case(1, 8, 8, 3, 5), implementation="triton")


class Fusion(torch.nn.Module):
    def __init__(self, implementation: kernels.Implementation) -> None:
        super().__init__()
        self.implementation = implementation

    def forward(self, main: Any, aux: Any, masks: Any, *weights: Any) -> Any:
        return kernels.fuse(main, aux, masks, *weights, implementation=self.implementation)


@pytest.mark.parametrize("implementation", ["auto", "triton"])
def test_export_decomposes_unless_the_operator_is_asked_for(implementation: kernels.Implementation) -> None:
    program = torch.export.export(Fusion(implementation), tuple(case(1, 8, 8, 3, 5)), strict=False)
    has_operator = any("deeplight.fuse" in str(node.target) for node in program.graph.nodes)
    assert has_operator == (implementation == "triton")
