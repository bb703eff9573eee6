"""The network itself over the device path, on a stand-in, in the parts that torch.compile gets on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeplight.engine.network import model as network_model
from deeplight.engine.network import tile_program
from deeplight.engine.network.compiled import Compiled
from deeplight.engine.network.precision import in_precision
from deeplight.engine.network.receptive import halo
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.runtime.backends import torch_backend
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import pixels, run
from tests.engine.device.standin import StandIn
from tests.engine.network.test_model import SMALL, make
from tests.scenes import write_scene


def unchanged(part: nn.Module, _: torch.device) -> Compiled:
    """A compiler that changes nothing, in the place of Inductor."""
    return Compiled(part, backend="eager")


@pytest.mark.parametrize(
    ("layers", "precision", "tolerance"),
    [
        # float32 through some ten layers, and coordinates that round otherwise
        ("dmo and dem", "fp32", 1e-4),
        *(pytest.param(layers, "fp32", 1e-4, marks=pytest.mark.slow) for layers in ("dmo", "dem", "none")),
        # layers of 11 bits, rounded before they are moved and not behind that
        ("dmo and dem", "fp16", 2e-2),
        *(pytest.param(layers, "fp16", 2e-2, marks=pytest.mark.slow) for layers in ("dmo", "dem")),
    ],
)
def test_the_network_in_its_compiled_parts_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str, precision: str, tolerance: float
) -> None:
    network = in_precision(make(SMALL, wild=0.05), precision)
    files = write_scene(tmp_path, 9, 14)
    chosen = {name: str(getattr(files, name)) for name in ("dmo", "dem") if name in layers}
    scene = SceneOptions(ntl=str(files.ntl), **chosen)
    model = str(write_model(tmp_path / "model", onnx_bytes(), halo_lr=halo(SMALL)))

    def host(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            found: Sequence[Tensor] = network(*inputs)
        return found

    more = {"compute": host, "bands": ("isp", "offset", "interval"), "core": 7}
    run(monkeypatch, scene, model, tmp_path / "host.tif", None, **more)  # type: ignore[arg-type]
    torch.compiler.reset()
    monkeypatch.setattr(network_model, "apart", lambda _: True)  # as of tensors on a GPU
    for module in (torch_backend, tile_program):
        monkeypatch.setattr(module, "compiled", unchanged)
    computing = torch_backend.Computing(network, precision, torch.device("cpu"))
    with torch.no_grad():
        run(monkeypatch, scene, model, tmp_path / "device.tif", StandIn(1), on_device=computing, **more)  # type: ignore[arg-type]
    assert computing.fallbacks == {}
    got, want = pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif")
    assert np.array_equal(np.isnan(got), np.isnan(want))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.nanmax(np.abs(b))))
