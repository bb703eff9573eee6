"""Exports of a small network, shared by the tests of this folder: in float32, and, for slow tests, in every precision.
An export takes half a minute of a CPU for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.export.build import Exported, Request, export_artifact

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)


def wild_model() -> DeepLightSR:
    """A network in which every parameter has an effect; new networks have zeros in the offset and residual heads."""
    torch.manual_seed(0)
    model = DeepLightSR(SMALL).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope="session")
def model() -> DeepLightSR:
    return wild_model()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, model: DeepLightSR) -> Exported:
    return _exported(model, tmp_path_factory.mktemp("export"), ("fp32",))


@pytest.fixture(scope="session")
def exported_all(tmp_path_factory: pytest.TempPathFactory, model: DeepLightSR) -> Exported:
    return _exported(model, tmp_path_factory.mktemp("all"), ("fp32", "fp16", "bf16"))


def _exported(model: DeepLightSR, folder: Path, precisions: tuple[str, ...]) -> Exported:
    """In a folder artifact/."""
    training = {"step": 7, "data": {"kind": "test"}}
    return export_artifact(model, training, folder / "artifact", Request(("onnx",), precisions))


@pytest.fixture(params=["fp32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "bf16"))])
def onnx_file(request: pytest.FixtureRequest) -> Path:
    """The file of one precision."""
    if request.param == "fp32":
        return Path(request.getfixturevalue("exported").path) / "model.onnx"
    return Path(request.getfixturevalue("exported_all").path) / f"model.{request.param}.onnx"
