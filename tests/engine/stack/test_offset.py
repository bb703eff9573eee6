"""One alignment for all dates: what it is, what the maps are made with, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import ArtifactError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.shared_offset import SharedOffset
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from deeplight.engine.runtime.onnx_offset import with_offset
from deeplight.engine.stack import alignment
from deeplight.engine.stack.report import StackReport
from deeplight.engine.stack.run import infer_dates
from tests.engine.analytic import onnx_bytes
from tests.engine.stack.months import NODATA, Months, name
from tests.scenes import write_raster

TINY = "deeplight-tiny"
ALL = [spec.name for spec in OUTPUTS]


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    """With the shipped model: that of other tests does not align."""
    return replace(Months.write(tmp_path_factory.mktemp("months")), model=TINY)


def shared(months: Months, out: Path, *ntl: object, **changes: Any) -> StackReport:
    request = months.request(out, *ntl, tiles=TileRequest(32), **changes)
    report = infer_dates(replace(request, offset="stack"))
    assert isinstance(report, StackReport)
    return report


def tile() -> dict[str, np.ndarray]:
    """Inputs of a tile of 11 × 13 LR pixels, all valid."""
    random = np.random.default_rng(2)
    found = {}
    for spec in INPUTS:
        scale = {None: 1, False: 1, True: 8}[spec.hr]
        shape = (1, spec.channels) if spec.hr is None else (1, spec.channels, 11 * scale, 13 * scale)
        found[spec.name] = random.gamma(0.5, 1.0, shape).astype(np.float32)
        if spec.name.endswith("valid") or spec.name == "dmo_bands":
            found[spec.name][:] = 1
    found["psf"][:], found["limits"][:] = -1, -1
    return found


def test_an_offset_that_is_given_is_used_as_if_it_were_estimated() -> None:
    inputs, model = tile(), load_artifact(TINY)
    with open_backend("onnxruntime", model, threads=1) as backend:
        own = backend.run(inputs, ALL)
        with pytest.raises(Exception, match="say before that it is given"):
            backend.run({**inputs, "offset": own["offset"]}, ALL)
        backend.split(1, 1, ALL, offset=True)
        again = backend.run({**inputs, "offset": own["offset"]}, ALL)
        for output in ALL:
            np.testing.assert_array_equal(again[output], own[output])
        other = own["offset"][..., ::-1, :].copy()
        moved = backend.run({**inputs, "offset": other}, ALL)
    assert np.abs(moved["ntl_hr"] - own["ntl_hr"]).max() > 1e-3 * own["ntl_hr"].max()
    with open_backend("torch", model, threads=1) as backend:
        backend.split(1, 1, ALL, offset=True)
        same = backend.run({**inputs, "offset": other}, ALL)
    # sums in another order
    np.testing.assert_allclose(same["ntl_hr"], moved["ntl_hr"], rtol=0, atol=1e-5 * moved["ntl_hr"].max())
    np.testing.assert_array_equal(same["offset"], other)


def test_a_model_that_does_not_align_cannot_be_given_an_offset(months: Months, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no node reads the offset"):
        with_offset(onnx_bytes())
    analytic = str(months.folder / "analytic")
    with pytest.raises(ArtifactError, match="the model cannot be given an offset"):
        shared(replace(months, model=analytic), tmp_path / "out")


def test_all_dates_have_the_alignment_of_their_mean(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "CORE", 16)  # several tiles
    shared(months, tmp_path / "out", bands=("offset", "quality"))
    with rasterio.open(tmp_path / "out" / "offset.tif") as d:
        offset = d.read()
        assert d.descriptions == ("offset_x (LR pixels)", "offset_y (LR pixels)")
    for month in months.with_data:
        with rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as d:
            valid = np.isfinite(d.read(1))
            for band, axis in ((2, 0), (3, 1)):
                wanted = offset[axis].repeat(8, 0).repeat(8, 1)
                np.testing.assert_array_equal(d.read(band)[valid], wanted[valid])
            assert d.tags()["DEEPLIGHT_INPUT_OFFSET"]
    # a run over the mean as one raster
    known = months.lights != NODATA
    mean = np.where(known, months.lights, 0).sum(0, dtype=np.float64) / np.maximum(known.sum(0), 1)
    values = np.where(known.any(0), mean, NODATA).astype(np.float32)
    file = write_raster(tmp_path / "mean.tif", values, nodata=NODATA, units=["nW/cm²/sr"])
    months.single(tmp_path / "of_mean.tif", file, bands=("offset",))
    with rasterio.open(tmp_path / "of_mean.tif") as d:
        wanted = d.read((2, 3))[:, ::8, ::8]
    valid = known.any(0)
    # what tiles and sums of a mean in another order cost, of offsets up to 2 LR pixels
    np.testing.assert_allclose(offset[:, valid], wanted[:, valid], rtol=0, atol=1e-4)


def test_a_resumed_run_keeps_the_alignment(months: Months, tmp_path: Path) -> None:
    out, files = tmp_path / "out", [months.folder / f"ntl-{name(m)}.tif" for m in months.with_data]
    shared(months, out, *files[:2])
    path, last = out / "offset.tif", out / f"{name(months.with_data[1])}.tif"
    before, content = path.stat().st_mtime_ns, last.read_bytes()
    last.unlink()
    assert shared(months, out, *files[:2], mode=Mode.RESUME).computed == 1
    assert path.stat().st_mtime_ns == before and last.read_bytes() == content
    with pytest.raises(InputError, match=r"offset\.tif is the alignment of other dates"):
        shared(months, out, *files, mode=Mode.RESUME)
    with pytest.raises(InputError, match=r"of another run .*DEEPLIGHT_INPUT_OFFSET"):
        months.run(out, *files[:2], mode=Mode.RESUME)
    assert path.stat().st_mtime_ns == before


def test_a_zarr_group_with_one_alignment(months: Months, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    files = [months.folder / f"ntl-{name(m)}.tif" for m in (1, 2)]
    shared(months, tmp_path / "out", *files)
    shared(months, tmp_path / "x.zarr", *files)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "x.zarr"}
    again = shared(months, tmp_path / "x.zarr", *files, mode=Mode.RESUME)
    assert again.computed == 0
    group: Any = zarr.open_group(str(tmp_path / "x.zarr"), mode="r")
    for at, month in enumerate((1, 2)):
        with rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as d:
            np.testing.assert_array_equal(group["ntl"][at], d.read(1))


def test_what_is_refused(months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = months.folder / f"ntl-{name(1)}.tif"
    with pytest.raises(InputError, match=r"is one alignment for several dates and .* is for one"):
        shared(months, tmp_path / "o.tif", one)
    request = months.request(tmp_path / "out")
    alone = replace(request.run, scene=replace(request.run.scene, dmo=None, dem=None))
    with pytest.raises(InputError, match="there are none: leave it out, or give `dmo` or `dem`"):
        infer_dates(replace(request, run=alone, offset="stack"))
    monkeypatch.setattr(OnnxRuntimeBackend, "takes_offset", False)
    with pytest.raises(
        InputError, match="backend onnxruntime estimates the alignment of each date by itself"
    ):
        shared(months, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("deeplight.engine.stack.run.check_all_space", _full)
    with pytest.raises(InputError, match="no space"):
        shared(months, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _full(*_: object) -> None:
    raise InputError("no space")


def test_an_offset_is_0_beyond_the_scene() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    found = SharedOffset(values).read(Window(-1, 1, 4, 3))
    assert found.shape == (1, 2, 4, 3)
    np.testing.assert_array_equal(found[0, :, 1:3, :2], values[:, :, 1:])
    assert not found[0, :, [0, 3]].any() and not found[0, :, :, 2].any()
    assert not SharedOffset(values).read(Window(5, 5, 2, 2)).any()
