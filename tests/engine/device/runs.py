"""Whole runs with a stand-in for the device and a small model, to compare with the same runs on the host's path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import paths, pipeline
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.backends.base import Resident
from deeplight.engine.runtime.backends.torch_backend import TorchBackend
from tests.engine.analytic import BLUR, DEM_WEIGHT, DMO_WEIGHT
from tests.engine.device.standin import StandIn

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def analytic(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The model of tests.engine.analytic in PyTorch, in float64, so that both paths round alike at the end."""
    ntl, valid, dmo, dmo_valid, bands, dem, dem_valid, psf, limits = (x.double() for x in inputs)
    soft = F.avg_pool2d(F.pad(ntl.clamp(min=0) * valid, (BLUR,) * 4), 2 * BLUR + 1, 1)
    up = soft.repeat_interleave(8, 2).repeat_interleave(8, 3)
    mean = (dmo * bands[:, :, None, None]).mean(dim=1, keepdim=True)
    out = up + DMO_WEIGHT * mean * dmo_valid + DEM_WEIGHT * dem.abs() * dem_valid
    told = psf[0, 0] + limits[0, 1]
    found = [
        out,
        torch.sigmoid(mean),
        torch.cat([ntl, valid], dim=1),
        torch.cat([out / 2, out * 2 + told], dim=1),
    ]
    return [x.float() for x in found]


class OnDevice(TorchBackend):
    """The model for both paths; without a stand-in only the host has one. on_device: another model for the device."""

    def __init__(self, compute: Compute, device: StandIn | None, on_device: Compute | None = None) -> None:
        super().__init__(compute, torch.device("cpu"))
        self._stand_in, self._on_device = device, on_device or compute

    def resident(self) -> Resident | None:
        if self._stand_in is None:
            return None
        parts = {name: getattr(self._on_device, name, None) for name in ("alone", "divided")}
        return Resident(self._stand_in, self._on_device, **parts)


def run(
    monkeypatch: pytest.MonkeyPatch,
    scene: SceneOptions,
    model: str,
    out: Path,
    device: StandIn | None,
    core: int = 6,
    compute: Compute = analytic,
    on_device: Compute | None = None,
    threads: int = 2,
    **more: Any,
) -> pipeline.RunReport:
    """Make one run. device: None for the host's path. core: 0 for automatic tiles."""
    monkeypatch.setattr(paths, "open_model", lambda *_: OnDevice(compute, device, on_device))
    tiles = TileRequest(core or None)
    options = RunOptions(scene=scene, out=out, model=model, tiles=tiles, threads=threads, **more)
    report = pipeline.infer(options)
    assert report is not None
    return report


def pixels(path: Path) -> np.ndarray:
    """All bands of the output; NaN is nodata."""
    with rasterio.open(path) as file:
        return np.asarray(file.read(masked=True).astype(np.float64).filled(np.nan))
