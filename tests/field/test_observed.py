"""Files with several bands, and places that no clear night has seen: 0 there is no darkness."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.clips.index import read_index
from deeplight.train.data_cli import cli
from tests.engine.analytic import write_analytic
from tests.field.lights import hole, infer, lights, put, refusal
from tests.scenes import north_up, open_error

WHOLE = Window(0, 0, 48, 48)
GAP = hole()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def monthly() -> Any:
    """avg_rad with 0 where nothing was observed, and cf_cvg, the count of clear nights."""
    values = np.where(GAP, np.float32(0), np.maximum(lights(), np.float32(0.01)))
    return np.stack([values, np.where(GAP, 0, 8).astype(np.float32)])


def test_several_bands_are_refused_with_a_command_that_works(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = put(tmp_path, monthly(), "two.tif", names=["avg_rad", "cf_cvg"]), tmp_path / "o.tif"
    said = refusal(capfd, tmp_path, "--ntl", path)
    assert "has 2 bands and must have one or be told which to read (1 avg_rad, 2 cf_cvg)" in said
    options = said.split("for example with ")[1].split()
    assert options == ["--ntl-band", "1", "--ntl-valid", path, "--ntl-valid-band", "2"]
    report = tmp_path / "r.json"
    status, said = infer(
        capfd, "--ntl", path, *options, "--out", out, "--model", model, "--bands", "quality", "--tiles", "16",
        "--verify-seams", "4", "--report", report, "--quicklook", tmp_path / "q.png",
    )  # fmt: skip
    assert status == 0 and "seams: 4 places" in said and "warning: NTL" not in said, said
    with rasterio.open(out) as written:
        np.testing.assert_array_equal(np.isnan(written.read(1)), np.kron(GAP, np.ones((8, 8), bool)))
        near = (np.nan_to_num(written.read(2)).astype(int) & 1) != 0
        tags = written.tags()
    assert near[9 * 8 : 10 * 8, 12 * 8 : 24 * 8].all(), "the network saw filled values beside the gap"
    assert tags["DEEPLIGHT_OPTION_NTL_BAND"] == "1" and tags["DEEPLIGHT_OPTION_NTL_VALID_BAND"] == "2"
    assert "DEEPLIGHT_INPUT_NTL_VALID" in tags
    told = json.loads(report.read_text())
    assert told["lights"]["valid_lr_pixels"] == int((~GAP).sum())
    assert told["inputs"]["ntl"]["bands"] == [1] and told["inputs"]["ntl_valid"]["bands"] == [2]
    assert told["lights"]["unit"] == "nW/cm²/sr"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_count_or_a_mask_of_any_type_says_what_is_valid(dtype: str, tmp_path: Path) -> None:
    path = put(tmp_path, monthly()[0])
    counts = np.where(GAP, 0, 5).astype(dtype)
    counts[0, 0], counts[0, 1] = 1, 7
    cover = put(tmp_path, counts, "cf_cvg.tif", nodata=7)
    with Scene.open(SceneOptions(path, ntl_valid=cover)) as scene:
        values, valid = scene.read_ntl(WHOLE)
        part = scene.read_ntl(Window(8, 10, 9, 20))
        inputs = scene.read_inputs(Window(8, 10, 9, 20))
        assert scene.cached_bytes(WHOLE) > 0 and list(scene.describe()) == ["ntl", "ntl_valid"]
    expected = ~GAP
    expected[0, 1] = False  # its nodata
    np.testing.assert_array_equal(valid != 0, expected)
    assert not values[~expected].any()
    np.testing.assert_array_equal(part[0], values[8:17, 10:30])
    np.testing.assert_array_equal(inputs["ntl_valid"][0, 0], valid[8:17, 10:30])


def test_a_fill_value_where_nothing_was_observed_is_no_evidence(tmp_path: Path) -> None:
    path = put(tmp_path, np.where(GAP, np.float32(65535), lights()))
    cover = put(tmp_path, np.where(GAP, 0, 1).astype(np.uint8), "mask.tif")
    with Scene.open(SceneOptions(path, ntl_valid=cover)) as scene:
        np.testing.assert_array_equal(scene.read_ntl(WHOLE)[1] == 0, GAP)


def test_the_band_s_own_type_scale_and_nodata_count(tmp_path: Path) -> None:
    raw = np.rint(lights() * 10)
    raw[GAP] = 9999
    both = np.stack([np.zeros((48, 48)), raw]).astype(np.float32)
    path = put(tmp_path, both, scales=[1.0, 0.1], units=["", "nW/cm2/sr"])
    with Scene.open(SceneOptions(path, ntl_band=2, ntl_nodata=9999)) as scene:
        values, valid = scene.read_ntl(WHOLE)
        assert scene.unit == "nW/cm²/sr"
    np.testing.assert_array_equal(valid == 0, GAP)
    np.testing.assert_allclose(values[~GAP], raw[~GAP] / 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("SVDNB_npp_20200101-20200131_75N060E_vcmcfg_v10.cf_cvg.tif", ""),
        ("VNL_v21_npp_2020_global_vcmslcfg_c202205302300.cvg.dat.tif", ""),
        ("monthly_ntl.tif", "cf_cvg"),
        ("VNP46A4.tif", "NearNadir_Composite_Snow_Free_Num"),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_count_given_as_lights_is_refused(
    name: str, band: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = np.random.default_rng(0).integers(3, 19, (48, 48)).astype(dtype)
    path = put(tmp_path, counts, name, names=[band])
    assert "is called as a count of observations would be" in refusal(capfd, tmp_path, "--ntl", path)
    Scene.open(SceneOptions(path, ntl_scale=(1.0, 0.0))).close()  # the user's word
    ntl = put(tmp_path, monthly()[0], "SVDNB_npp_20200101-20200131_75N060E_vcmcfg_v10.avg_rade9h.tif")
    Scene.open(SceneOptions(ntl, ntl_valid=path)).close()
    both = put(tmp_path, monthly(), "avg_rad_and_cf_cvg.tif", names=["avg_rad", "cf_cvg"])
    Scene.open(SceneOptions(both, ntl_band=1)).close()
    assert "count of observations" in open_error(SceneOptions(both, ntl_band=2))


@pytest.mark.parametrize("order", [("cf_cvg", "avg_rad"), ("avg_rad", "cf_cvg")])
def test_of_a_file_s_datasets_the_right_one_is_proposed(order: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "two.nc"
    with h5py.File(path, "w", track_order=True) as file:
        for name in order:
            file[name] = monthly()[int(name == "cf_cvg")]
    assert re.search(r'name one: `ntl=".*avg_rad"`$', open_error(SceneOptions(str(path))))
    lit = put(tmp_path, monthly()[0])
    said = open_error(SceneOptions(lit, ntl_valid=str(path)))
    assert re.search(r'name one: `ntl_valid=".*cf_cvg"`$', said)


def test_what_does_not_fit_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, monthly()[0])
    two = put(tmp_path, monthly(), "two.tif", names=["avg_rad", "cf_cvg"])
    ones = np.ones((48, 48), np.uint8)
    moved = put(tmp_path, ones, "moved.tif", transform=north_up(west=6.001))
    smaller = put(tmp_path, ones[1:], "smaller.tif")
    place = rasterio.Affine(500, 0, 284_000, 0, -500, 5_544_000)
    other = put(tmp_path, ones, "other.tif", crs="EPSG:32632", transform=place)
    for cover in (moved, smaller, other):
        said = refusal(capfd, tmp_path, "--ntl", path, "--ntl-valid", cover)
        assert "is not on the pixels of NTL raster" in said
        assert f"deeplight-data copy '{cover}' valid.tif --like '{path}'" in said
    nowhere = put(tmp_path, 0 * ones, "nowhere.tif")
    far = put(tmp_path, ones, "far.tif", transform=north_up(west=100))
    for options, piece in (
        (["--ntl", two, "--ntl-band", "3"], "has no band 3; its bands are 1 avg_rad, 2 cf_cvg: correct --ntl-band"),
        (["--ntl", path, "--ntl-valid", two], "choose, for example with --ntl-valid-band 2"),
        (["--ntl", path, "--ntl-valid", two, "--ntl-valid-band", "4"], "has no band 4"),
        (["--ntl", path, "--ntl-valid-band", "1"], "--ntl-valid-band is about the coverage count and there is none"),
        (["--ntl", path, "--ntl-valid", nowhere], f"NTL-valid raster {nowhere} is above 0 at no pixel where NTL"),
        (["--ntl", path, "--ntl-valid", far], f"NTL-valid raster {far} (longitude 100.00"),
        (["--ntl", path, "--ntl-valid", str(tmp_path / "gone.tif")], "does not exist"),
    ):  # fmt: skip
        assert piece in refusal(capfd, tmp_path, *options)
    status, said = infer(capfd, "--ntl", path, "--ntl-valid", moved, "--out", moved, "--overwrite")
    assert status == 2 and "is also an input" in said


def test_a_stopped_run_notices_another_coverage_count(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = put(tmp_path, monthly()[0]), tmp_path / "o.tif"
    cover = put(tmp_path, np.where(GAP, 0, 1).astype(np.uint8), "cover.tif")
    base = ["--ntl", path, "--out", out, "--model", model]
    monkeypatch.setattr("deeplight.engine.output.cog.assemble", _stop)
    status, _ = infer(capfd, *base, "--ntl-valid", cover)
    assert status == 130 and not out.exists()
    monkeypatch.undo()
    put(tmp_path, np.where(GAP, 0, 2).astype(np.uint8), "cover.tif")
    status, said = infer(capfd, *base, "--ntl-valid", cover, "--resume")
    assert status == 2 and "the file of --ntl-valid was" in said
    status, said = infer(capfd, *base, "--resume")
    assert status == 2 and "the file of --ntl-valid was" in said


def _stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_zeros_of_a_monthly_composite_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path, monthly()[0], "avg_rad.tif")
    cover = put(tmp_path, np.where(GAP, 0, 1).astype(np.uint8), "cf_cvg.tif")
    Scene.open(SceneOptions(path, ntl_valid=cover)).close()
    Scene.open(SceneOptions(path, ntl_nodata=0)).close()
    for name in ("lights.tif", "VNL_v21_npp_2020_global_vcmslcfg_c202205302300.average_masked.dat.tif"):
        Scene.open(SceneOptions(put(tmp_path, monthly()[0], name))).close()
    assert "exactly 0" not in caplog.text
    Scene.open(SceneOptions(path)).close()
    assert (
        "5 % of the sampled pixels are exactly 0" in caplog.text and '`ntl_valid="CF_CVG.tif"`' in caplog.text
    )


def test_clips_know_the_band_and_what_was_observed(tmp_path: Path) -> None:
    path, tree = put(tmp_path, monthly(), names=["avg_rad", "cf_cvg"]), tmp_path / "tree"
    lights_of = ["--ntl", path, "--ntl-band", "1", "--ntl-valid", path, "--ntl-valid-band", "2"]
    plan = ["--clip", "8", "--block", "12", "--buffer", "2", "--min-valid", "0", "--min-lit", "0"]
    done = CliRunner().invoke(cli, ["clip", "--out", str(tree), "--place", "here", *lights_of, *plan])
    assert done.exit_code == 0, done.output
    rows = read_index(tree)
    assert {row.unit for row in rows} == {"nW/cm²/sr"}
    shares = {row.clip: float((~GAP[row.row : row.row + 8, row.col : row.col + 8]).mean()) for row in rows}
    assert {row.clip: row.valid for row in rows} == shares and min(shares.values()) < 1
