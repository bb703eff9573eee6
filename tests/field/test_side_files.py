"""What an earlier file of the same name left beside it must not mask or stretch the new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.engine.analytic import write_analytic
from tests.field.programs import refusal, run
from tests.scenes import NTL, write_raster

STATISTICS = (
    '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MAXIMUM">1</MDI></Metadata></PAMRasterBand>'
    "</PAMDataset>"
)


def stale(folder: Path) -> None:
    """An old output with an external mask that hides half of it, overviews and statistics."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        write_raster(folder / "o.tif", np.ones((104, 136), np.float32))
        with rasterio.open(folder / "o.tif", "r+") as d:
            mask = np.ones((104, 136), bool)
            mask[:52] = False
            d.write_mask(mask)
    (folder / "o.tif.aux.xml").write_text(STATISTICS)
    (folder / "o.tif.ovr").write_bytes(b"II*\0")
    assert (folder / "o.tif.msk").exists()


def test_overwriting_removes_them(tmp_path: Path) -> None:
    write_raster(tmp_path / "n.tif", NTL)
    stale(tmp_path)
    model = write_analytic(tmp_path / "model")
    (tmp_path / "o.tif.txt").write_text("the user's own note")
    done = run(
        "deeplight-infer", "--ntl", "n.tif", "--out", "o.tif", "--model", model, "--overwrite", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob("o.tif*")) == ["o.tif", "o.tif.txt"]
    with rasterio.open(tmp_path / "o.tif") as d:
        assert (d.read_masks(1) > 0).all() and "STATISTICS_MAXIMUM" not in d.tags(1)


def test_a_failed_run_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    stale(tmp_path)
    refusal(run("deeplight-infer", "--ntl", "gone.tif", "--out", "o.tif", "--overwrite", cwd=tmp_path))
    assert len(list(tmp_path.glob("o.tif*"))) == 4


def test_they_are_told_of_where_their_raster_is_gone(tmp_path: Path) -> None:
    write_raster(tmp_path / "n.tif", NTL)
    (tmp_path / "o.tif.aux.xml").write_text(STATISTICS)
    message = refusal(run("deeplight-infer", "--ntl", "n.tif", "--out", "o.tif", cwd=tmp_path))
    assert "o.tif.aux.xml would be taken for a part of o.tif: use --overwrite" in message


@pytest.mark.parametrize("name", ["ntl.tif", "dem.tif"])
def test_the_data_tools_remove_them_too(tmp_path: Path, name: str) -> None:
    call = ("synth", "--out", "s", "--lr-size", "16")
    assert run("deeplight-data", *call, cwd=tmp_path).returncode == 0
    (tmp_path / "s" / f"{name}.aux.xml").write_text(STATISTICS)
    assert run("deeplight-data", *call, "--overwrite", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "s" / f"{name}.aux.xml").exists()
