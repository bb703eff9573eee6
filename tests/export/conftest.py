"""One export of a small network, shared by the tests of this folder."""

from __future__ import annotations

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
    out = tmp_path_factory.mktemp("export") / "artifact"
    request = Request(("onnx",), ("fp32", "fp16", "bf16"))
    return export_artifact(model, {"step": 7, "data": {"kind": "test"}}, out, request)
