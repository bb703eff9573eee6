"""align without an offset is the engine's resampling on the host. Needs rasterio."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")

from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import Meshes
from deeplight.engine.raster.warp import Warper
from deeplight.kernels.align import reference
from deeplight.kernels.align.reference import TileMesh
from tests.kernels.test_align import raw_pixels, run


def test_it_is_the_hosts_resampling(device: str) -> None:
    """Reprojection through the engine's mesh, without an offset: the same pixels as Warper.resample."""
    hr = Grid(CRS.from_epsg(4326), Affine(0.001, 0, 10.0, 0, -0.001, 50.0), 512, 512)
    aux = Grid(CRS.from_epsg(32632), Affine(60.0, 0, 571600.0, 0, -60.0, 5539000.0), 700, 500)
    window = Window(40, 64, 16, 24)
    warper = Warper(hr, aux)
    source = warper.source_window(window)
    assert source is not None
    raw = raw_pixels(1, 8, source.height, source.width, torch.uint16)
    mask = (torch.rand(1, 1, source.height, source.width) > 0.2).to(torch.uint8)
    want, want_mask = warper.resample(raw[0].float().numpy(), mask[0, 0].numpy(), source, window)

    (mesh,) = Meshes(hr, aux).covering(window)
    nodes = torch.from_numpy(mesh.nodes - np.array([source.row, source.col]).reshape(2, 1, 1))
    whole, fraction = reference.split_nodes(nodes[None])
    ours = TileMesh(whole, fraction, mesh.row - window.row, mesh.col - window.col, mesh.step)
    gain, bias = torch.full((1, 7), 1e-4), torch.full((1, 7), -1.0)
    values = {"raw": raw, "gain": gain, "bias": bias, "mask": mask, "mesh": ours, "size": (16, 24)}
    got = run(device, values)
    assert np.array_equal(got[0, 7].cpu().numpy() != 0, want_mask != 0)
    expected = np.where(want_mask != 0, want[:7] * np.float32(1e-4) - 1, 0)
    # float32 coordinates in the kernel, float64 on the host: 2⁻¹⁸ of a pixel between neighbours 6 apart
    assert np.abs(got[0, :7].cpu().numpy() - expected).max() < 5e-5
