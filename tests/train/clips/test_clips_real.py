"""Real rasters become clip trees through the command line, and Wald's protocol reads sane samples from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.warp import area_mean
from deeplight.train.clips.degrade import Degradation, parse_degradation
from deeplight.train.clips.samples import Sample, SampleSource
from deeplight.train.clips.tree import ClipTree, open_source
from deeplight.train.data_cli import cli

PSF = Degradation(psf_fwhm_lr=1.0)


def clip(tree: Path, place: str, *options: str) -> ClipTree:
    """Run `deeplight-data clip`; all clips of the tree."""
    done = CliRunner().invoke(cli, ["clip", "--out", str(tree), "--place", place, *options])
    assert done.exit_code == 0, done.exception
    return ClipTree.open(tree, "all")


def largest(source: SampleSource) -> int:
    return max(range(len(source)), key=lambda i: np.prod(source.size(i)))


def wald(tree: Path, split: str = "all") -> Sample:
    """The largest place by Wald's protocol, checked for what must hold of any real lights."""
    source = open_source(str(tree), split, "wald", PSF)
    index = largest(source)
    sample = source.read(index, Window(0, 0, *source.size(index)))
    assert sample.ntl_valid.mean() > 0.2 and np.isfinite(sample.ntl).all()
    assert not sample.ntl[sample.ntl_valid == 0].any() and not sample.ntl_hr[sample.ntl_hr_valid == 0].any()
    assert sample.ntl_hr.max() >= sample.ntl.max() > 0
    mean, valid = area_mean(sample.ntl_hr, sample.ntl_hr_valid[0], 8, 8)
    both = (valid == 1) & (sample.ntl_valid[0] == 1)
    assert np.corrcoef(mean[0][both], sample.ntl[0][both])[0, 1] > 0.8  # blurred, and the same place
    return sample


def test_lesotho_with_splits(shared_data: Path, tmp_path: Path) -> None:
    ntl = str(shared_data / "lesotho_maseru" / "ntl.tif")
    options = ("--ntl", ntl, "--clip", "64,32", "--block", "160", "--buffer", "8", "--min-lit", "0")
    source = clip(tmp_path / "tree", "lesotho_maseru", *options)
    assert {row.split for row in source.rows} == {"train", "val", "test"}
    assert all(row.valid >= 0.9 and row.pixel_km == pytest.approx(0.4634, rel=1e-3) for row in source.rows)
    values = [source.read_ntl(i, Window(0, 0, *source.size(i)))[0] for i in range(len(source))]
    least = min(float(v.min()) for v in values)
    assert -0.05 < least < 0  # small negatives stay
    assert wald(tmp_path / "tree", "train").dmo_bands.sum() == 0


def test_new_york_with_its_scale(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "us_nyc"
    whole = ("--clip", "160,100", "--block", "200", "--shares", "1,0,0", "--min-valid", "0.3")
    options = (
        *whole,
        "--ntl",
        str(folder / "ntl.tif"),
        "--ntl-scale",
        "0.1",
        "--isp",
        str(folder / "bld_density.tif"),
    )
    source = clip(tmp_path / "tree", "us_nyc", *options)
    (row,) = source.rows
    assert (row.height, row.width) == (112, 149) and row.crs.startswith("EPSG:32618")
    assert row.pixel_km == pytest.approx(0.463, abs=1e-3)  # 352 × 463 m, not square
    sample = source.read(0, Window(0, 0, 112, 149))
    assert sample.ntl.max() == pytest.approx(413.4, abs=0.1) and row.unit == "nW/cm²/sr"
    assert 0.6 < sample.isp.max() <= 0.677 and sample.isp_valid.mean() == pytest.approx(0.31, abs=0.03)
    assert wald(tmp_path / "tree").ntl.shape == (1, 14, 18)


def test_touggourt_with_imperviousness_in_mollweide(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "touggourt"
    options = ("--ntl", str(folder / "ntl.tif"), "--isp", str(folder / "isp.tif"), "--isp-scale", "0.01")
    source = clip(tmp_path / "tree", "touggourt", *options, "--clip", "112,56", "--shares", "1,0,0")
    (row,) = source.rows
    assert (row.height, row.width) == (62, 112)
    sample = wald(tmp_path / "tree")
    assert sample.ntl.shape == (1, 7, 14)
    fine = source.read(0, Window(0, 0, 62, 112))
    assert fine.isp_valid.mean() > 0.95 and 0.3 < fine.isp.max() <= 0.5115
    # where it is built up, there is light: the two lie on each other
    lit = area_mean(fine.isp, fine.isp_valid[0], 8, 8)[0][0]
    assert np.corrcoef(lit.ravel(), fine.ntl.ravel())[0, 1] > 0.5


def test_san_antonio_paired_from_its_hr_lights(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "san_antonio"
    isp = ("--isp", str(folder / "isp.tif"), "--isp-scale", "0.01")
    lights = ("--ntl-hr", str(folder / "ntl_hr.tif"), "--degrade", "psf=1.2", "--unit", "DN")
    sizes = ("--clip", "24,12", "--block", "42", "--buffer", "4", "--min-valid", "0.8")
    source = clip(tmp_path / "tree", "san_antonio", *lights, *isp, *sizes)
    assert {row.split for row in source.rows} == {"train", "val", "test"}
    row = source.rows[0]
    assert row.layers == "ntl ntl_hr isp" and row.unit == "DN" and row.crs == "EPSG:2278"
    assert row.pixel_km == pytest.approx(0.23992, rel=1e-4)  # 8 × 98.39 US survey feet
    assert (-98.72 < row.west < row.east < -98.25) and (29.23 < row.south < row.north < 29.61)
    built = []
    for index in range(len(source)):
        sample = source.read(index, Window(0, 0, *source.size(index)))
        assert sample.ntl_hr.max() <= 255 and 0 <= sample.isp.min() <= sample.isp.max() <= 1
        known = sample.ntl_hr_valid[0] == 1
        built.append(np.stack([sample.isp[0][known], sample.ntl_hr[0][known]]))
        mean, valid = area_mean(sample.ntl_hr, sample.ntl_hr_valid[0], 8, 8)
        both = (valid == 1) & (sample.ntl_valid[0] == 1)
        assert sample.ntl[0][both].sum() == pytest.approx(mean[0][both].sum(), rel=0.1)
    # imperviousness and lights go together: 0.46, and half of that if they were one LR pixel apart
    assert np.corrcoef(np.concatenate(built, axis=1))[0, 1] > 0.3
    assert open_source(str(tmp_path / "tree"), "test", "paired", PSF).size(0) == source.size(0)
    wald(tmp_path / "tree")


def test_percent_without_its_scale_is_refused(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "san_antonio"
    command = ["clip", "--out", str(tmp_path / "tree"), "--place", "sa", "--ntl-hr", str(folder / "ntl_hr.tif"),
               "--degrade", "default", "--isp", str(folder / "isp.tif")]  # fmt: skip
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, InputError) and "--isp-scale 0.01" in str(done.exception)
    assert not (tmp_path / "tree").exists()
    assert parse_degradation("default").psf_fwhm_lr == 1.0
