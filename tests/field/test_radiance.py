"""Numbers that are not radiance, or not only: what the command line says, and that its remedy gives the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.units import canonical, radiance_factor
from tests.engine.analytic import write_analytic
from tests.field.lights import hole, infer, lights, put, refusal
from tests.scenes import north_up, open_error, write_raster

WHOLE = Window(0, 0, 48, 48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def remedy(sentence: str) -> list[str]:
    """The first option and value that a message names."""
    found = re.search(r"(--ntl-(?:scale|nodata)) ([-+0-9.,e]+)", sentence)
    assert found is not None, sentence
    return [found[1], found[2].rstrip(",.")]


def warnings(said: str) -> list[str]:
    """Those about the input; the analytic model's blur moves light, which the run says too."""
    told = [line for line in said.splitlines() if line.startswith("warning: ")]
    return [line for line in told if "--conserve-radiance" not in line]


def calculated(said: str, folder: Path, out: str) -> np.ndarray:
    """What the command gives that a message prints, run as printed (with the `rio` of this Python)."""
    command = said[said.index("deeplight-data copy ") :].splitlines()[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        command, shell=True, check=True, capture_output=True, cwd=folder, env=os.environ | {"PATH": path}
    )
    with rasterio.open(folder / out) as made:
        return made.read(1, masked=True)


@pytest.mark.parametrize(
    ("unit", "factor"), [("W/m2/sr", 1e-5), ("W/cm2/sr", 1e-9), ("W m-2 sr-1", 1e-5), ("µW/cm²/sr", 1e-3)]
)
def test_another_unit_in_the_file_is_refused_and_its_factor_named(
    unit: str, factor: float, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    truth = lights()
    path = put(tmp_path, (truth * factor).astype(np.float32), units=[unit])
    said = refusal(capfd, tmp_path, "--ntl", path)
    assert f"is in {unit} and nW/cm²/sr is needed" in said
    report, out = tmp_path / "r.json", tmp_path / "o.tif"
    status, said = infer(
        capfd, "--ntl", path, *remedy(said), "--out", out, "--model", model, "--report", report
    )
    assert status == 0 and warnings(said) == [], said
    assert json.loads(report.read_text())["lights"]["mean_in"] == pytest.approx(truth.mean(), rel=1e-4)
    with rasterio.open(out) as written:
        assert written.units == ("nW/cm²/sr",)


@pytest.mark.parametrize(("factor", "unit"), [(1e-5, "W/m²/sr"), (1e-9, "W/cm²/sr")])
def test_values_in_watts_are_refused_without_a_unit_too(
    factor: float, unit: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    truth = lights()
    path = put(tmp_path, (truth * factor).astype(np.float32))
    said = refusal(capfd, tmp_path, "--ntl", path)
    assert "less than noise" in said and f"for {unit} pass" in said
    scale = float(remedy(said)[1])
    with Scene.open(SceneOptions(path, ntl_scale=(scale, 0.0))) as scene:
        np.testing.assert_allclose(scene.read_ntl(WHOLE)[0], truth, rtol=1e-5)
        assert scene.unit == "nW/cm²/sr"


def test_a_unit_given_by_the_user_is_the_output_s(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = put(tmp_path, lights()), tmp_path / "o.tif"
    status, said = infer(
        capfd, "--ntl", path, "--ntl-unit", "nW/cm2/sr", "--out", out, "--model", model, "--stac"
    )
    assert status == 0 and "says its unit" not in said
    with rasterio.open(out) as written:
        assert written.units == ("nW/cm²/sr",)
    item = json.loads((tmp_path / "o.stac.json").read_text())
    assert item["assets"]["data"]["raster:bands"][0]["unit"] == "nW/cm²/sr"
    assert "pass --ntl-scale 100000" in refusal(capfd, tmp_path, "--ntl", path, "--ntl-unit", "W/m2/sr")


def test_an_unknown_unit_is_never_claimed(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A square-root composite: nothing in the values or the file says what they are."""
    path, out, report = put(tmp_path, 5 * np.sqrt(lights())), tmp_path / "o.tif", tmp_path / "r.json"
    status, said = infer(
        capfd, "--ntl", path, "--out", out, "--model", model, "--report", report, "--stac",
        "--quicklook", tmp_path / "q.png",
    )  # fmt: skip
    assert status == 0 and "nothing says its unit" in said and "--ntl-unit nW/cm²/sr" in said
    with rasterio.open(out) as written:
        assert written.units == (None,)
    values = json.loads(report.read_text())
    assert values["lights"]["unit"] == values["inputs"]["ntl"]["unit"] == "unknown unit"
    item = json.loads((tmp_path / "o.stac.json").read_text())
    assert "unit" not in item["assets"]["data"]["raster:bands"][0]


@pytest.mark.parametrize(
    ("name", "names", "unit"),
    [
        ("SVDNB_npp_20200101-20200131_75N060W_vcmcfg_v10.avg_rade9h.tif", [], "nW/cm²/sr"),
        ("clip.tif", ["avg_rad"], "nW/cm²/sr"),
        ("VNP46A3.A2021001.h18v04.tif", [], "nW/cm²/sr"),
        ("clip.tif", ["NearNadir_Composite_Snow_Free"], "nW/cm²/sr"),
        ("clip.tif", ["b1"], ""),
    ],
)
def test_names_of_products_say_the_unit(name: str, names: list[str], unit: str, tmp_path: Path) -> None:
    path = put(tmp_path, np.maximum(lights(), 0.01), name, names=names or None)
    with Scene.open(SceneOptions(path)) as scene:
        assert scene.unit == unit


def test_a_logarithm_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(capfd, tmp_path, "--ntl", put(tmp_path, np.log10(lights() + np.float32(1e-3))))
    assert "as of a logarithm; undo it and give the result" in said
    undone = calculated(said, tmp_path, "radiance.tif")
    np.testing.assert_allclose(undone, lights() + np.float32(1e-3), rtol=1e-4)
    (tmp_path / "radiance.tif").unlink()
    for unit, stored in (
        ("ln(nW/cm2/sr)", np.log(lights() + np.float32(1))),
        ("dB", 10 * np.log10(lights() + np.float32(1))),
    ):
        said = refusal(capfd, tmp_path, "--ntl", put(tmp_path, stored, units=[unit]))
        np.testing.assert_allclose(calculated(said, tmp_path, "radiance.tif"), lights() + 1, rtol=1e-4)
        (tmp_path / "radiance.tif").unlink()
    declared = put(tmp_path, np.log1p(lights()), units=["log(nW/cm2/sr)"])
    assert "a logarithm, and nW/cm²/sr is needed" in refusal(capfd, tmp_path, "--ntl", declared)


def test_a_likely_logarithm_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Scene.open(SceneOptions(put(tmp_path, np.log1p(lights(cities=60))))) as scene:
        assert scene.unit == ""
    assert "looks like a logarithm" in caplog.text


FILLS: list[tuple[float, str]] = [
    (65535, "uint16"), (65535, "float32"), (65535, "int32"), (65535, "float64"), (6553.5, "float32"),
    (655.35, "float32"), (255, "float32"), (255, "float64"), (32767, "int16"), (3276.7, "float32"), (9999, "float32"),
    (9999, "int16"), (-99.99, "float32"), (-999.9, "float32"), (-9999, "int16"), (-1, "int16"), (-1, "float32"),
    (-99, "float64"), (99999, "float32"), (777.25, "float32"), (-31.5, "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("fill", "dtype"), FILLS)
def test_an_undeclared_fill_value_is_refused_and_its_nodata_named(
    fill: float, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last two are no product's: a plateau far outside of the rest."""
    gap = hole()
    truth = lights().astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(lights()).astype(dtype)
    path = put(tmp_path, np.where(gap, np.asarray(fill, dtype), truth))
    said = refusal(capfd, tmp_path, "--ntl", path)
    flag, value = remedy(said)
    assert flag == "--ntl-nodata"
    with Scene.open(SceneOptions(path, ntl_nodata=float(value), ntl_scale=(1.0, 0.0))) as scene:
        values, valid = scene.read_ntl(WHOLE)
    np.testing.assert_array_equal(valid == 0, gap)
    np.testing.assert_array_equal(values[~gap], truth[~gap].astype(np.float32))


def test_a_fill_value_that_fires_hide_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = np.where(hole(), np.float32(255), lights())
    values[40, 40] = 1234.5
    assert "--ntl-nodata 255" in refusal(capfd, tmp_path, "--ntl", put(tmp_path, values))


def test_fill_beside_another_declared_nodata_value_is_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path, np.where(hole(), np.float32(65535), lights()), nodata=-999.0)
    said = refusal(capfd, tmp_path, "--ntl", path)
    assert "--ntl-nodata 65535" in said
    np.testing.assert_array_equal(calculated(said, tmp_path, "one.tif").mask, hole())
    Scene.open(SceneOptions(path, ntl_nodata=-1.0)).close()
    assert "`ntl_nodata` names another value, so this one counts as light" in caplog.text


def test_infinite_values_never_count(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gap, truth = hole(), lights()
    for value in (-np.inf, np.inf, np.nan):
        path = put(tmp_path, np.where(gap, np.float32(value), truth))
        with Scene.open(SceneOptions(path)) as scene:
            np.testing.assert_array_equal(scene.read_ntl(WHOLE)[1] == 0, gap)
    report = tmp_path / "r.json"
    status, _ = infer(capfd, "--ntl", path, "--out", tmp_path / "o.tif", "--model", model, "--report", report)
    assert status == 0
    counted = json.loads(report.read_text())["lights"]
    assert counted["valid_lr_pixels"] == int((~gap).sum())
    assert counted["mean_in"] == pytest.approx(truth[~gap].mean(), rel=1e-5)


def terrain(low: float, high: float) -> Any:
    y, x = np.mgrid[:48, :48]
    return low + (high - low) * (0.5 + 0.25 * np.sin(x / 7) + 0.25 * np.cos(y / 9))


@pytest.mark.parametrize(
    ("values", "name", "header", "piece"),
    [
        (terrain(200, 540).astype(np.int16), "n.tif", {}, "looks like elevation"),
        (terrain(4, 60).astype(np.float32), "dem.tif", {}, "is called as elevations would be"),
        (terrain(4, 60).astype(np.float32), "n.tif", {"names": ["elevation"]}, "is called as elevations would be"),
        (terrain(4, 60).astype(np.float32), "n.tif", {"units": ["m"]}, "is in m, as elevations are"),
        (terrain(-0.1, 0.8).astype(np.float32), "ndvi_2020.tif", {}, "is called as a vegetation or water index"),
    ],
)  # fmt: skip
def test_other_layers_given_as_lights_are_refused(
    values: Any, name: str, header: Any, piece: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path, values, name, **header)
    assert piece in refusal(capfd, tmp_path, "--ntl", path)
    with Scene.open(SceneOptions(path, ntl_scale=(1.0, 0.0))) as scene:  # the user's word
        np.testing.assert_allclose(scene.read_ntl(WHOLE)[0], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "piece"),
    [
        (terrain(0.05, 0.8).astype(np.float32), "looks like an index such as NDVI or a fraction"),
        (np.rint(lights() * 10).astype(np.uint16), "whole numbers only, up to 1424"),
        (10 + lights(cities=80) * 20, "has a median of"),
    ],
    ids=["NDVI", "Black Marble's integers", "Black Marble's tenths as float"],
)
def test_what_is_likely_no_radiance_is_warned_of_with_the_remedy(
    values: Any, piece: str, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.tif"
    status, said = infer(capfd, "--ntl", put(tmp_path, values), "--out", out, "--model", model)
    assert status == 0 and any(piece in line and "--ntl-scale" in line for line in warnings(said)), said
    with rasterio.open(out) as written:
        assert written.units == (None,)


def test_black_marble_by_name_and_unscaled_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = np.rint(lights() * 10).astype(np.uint16)
    path = put(tmp_path, raw, "VNP46A4_2020.tif", nodata=65535)
    assert remedy(refusal(capfd, tmp_path, "--ntl", path)) == ["--ntl-scale", "0.1"]
    with Scene.open(SceneOptions(path, ntl_scale=(0.1, 0.0))) as scene:
        np.testing.assert_allclose(scene.read_ntl(WHOLE)[0], raw / 10, rtol=1e-6)


def test_a_scale_that_the_user_gives_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is likely is not said again; what cannot be is."""
    raw = np.rint(lights() * 10).astype(np.uint16)
    Scene.open(SceneOptions(put(tmp_path, raw), ntl_scale=(1.0, 0.0))).close()
    assert caplog.text == ""
    Scene.open(SceneOptions(put(tmp_path, lights()), ntl_scale=(1e-9, 0.0))).close()
    assert "cannot be in nW/cm²/sr" in caplog.text


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_dmsp_is_dn_and_saturated_in_any_type(
    dtype: str, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = np.minimum(np.rint(lights()), 63).astype(dtype)
    path, out = put(tmp_path, values), tmp_path / "o.tif"
    status, said = infer(capfd, "--ntl", path, "--out", out, "--model", model, "--bands", "quality")
    assert status == 0 and warnings(said) == [], said
    with rasterio.open(out) as written:
        assert written.units[0] == "DN"
        saturated = (written.read(2).astype(int) & 8) != 0
    np.testing.assert_array_equal(saturated, np.kron(values >= 63, np.ones((8, 8), bool)))


def test_dmsp_on_its_own_pixels_is_known_before_it_saturates(tmp_path: Path) -> None:
    values = np.minimum(np.rint(lights()), 40).astype(np.int16)
    with Scene.open(SceneOptions(put(tmp_path, values, transform=north_up(30 / 3600)))) as scene:
        assert (scene.unit, scene.ceiling) == ("DN", 63.0)
    with Scene.open(SceneOptions(put(tmp_path, values))) as scene:
        assert scene.unit == ""
    with Scene.open(SceneOptions(put(tmp_path, values), ntl_unit="dn")) as scene:
        assert (scene.unit, scene.ceiling) == ("DN", 63.0)


def quiet() -> dict[str, Any]:
    """Lights that look odd and are right."""
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.06, (48, 48)).astype(np.float32)
    village = 0.2 + noise
    village[20:22, 30:32] += 3
    desert = 0.1 + noise
    desert[24, 24] = 1e4
    masked = np.where(lights() > 5, lights(), np.float32(0))
    flare = masked.copy()
    flare[5, 5] = 340573.0
    suburb = np.asarray(30 + 60 * rng.random((12, 12)), np.float32)
    negatives = noise.copy()
    negatives[3, 4] = -1.5
    enlarged = np.kron(
        np.where(lights(12) > 1, lights(12), 0.2 + noise[:12, :12]), np.ones((8, 8), np.float32)
    )
    enlarged[:8, :8] = 5000.25
    tail = np.exp(rng.normal(-1.5, 2.0, (48, 48))).astype(np.float32)
    return {
        "dark ocean": noise, "dark ocean, masked": np.zeros((48, 48), np.float32), "village": village,
        "desert with a flare": desert, "masked composite": masked, "flare beyond 16 bits": flare,
        "small clip of a city": suburb, "noise below zero": negatives, "enlarged": enlarged, "heavy tail": tail,
        "bytes of a photograph": np.random.default_rng(3).integers(0, 256, (48, 48)).astype(np.uint8),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(quiet()))
def test_quiet_and_odd_lights_pass(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = quiet()[name]
    with Scene.open(SceneOptions(put(tmp_path, values))) as scene:
        found, valid = scene.read_ntl(Window(0, 0, *values.shape))
    assert valid.all()
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []


@pytest.mark.parametrize("place", ["luxembourg", "lesotho_maseru", "touggourt", "us_nyc", "us_la", "us_chicago",
                                   "us_philly"])  # fmt: skip
def test_real_lights_are_accepted(place: str, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Scene.open(SceneOptions(str(shared_data / place / "ntl.tif"))) as scene:
        assert scene.unit == ("DN" if place == "luxembourg" else "")
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    if place.startswith("us_"):  # Black Marble without its scale
        assert len(said) == 1 and "`ntl_scale=0.1`" in said[0]
    else:
        assert said == []


@pytest.mark.parametrize("name", ["luxembourg/dem.tif", "para_landsat5/dem.tif", "us_nyc/ndvi.tif"])
def test_real_layers_of_another_kind_are_refused(name: str, shared_data: Path) -> None:
    assert "give nighttime lights" in open_error(SceneOptions(str(shared_data / name)))


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("nW/cm²/sr", 1.0), ("nWatts/(cm^2 sr)", 1.0), ("nW cm-2 sr-1", 1.0), ("nW·cm⁻²·sr⁻¹", 1.0),
        ("nanowatts/cm2/sr", 1.0), ("nW/cm2", 1.0), ("W/m^2/sr", 1e5), ("W cm-2 sr-1", 1e9), ("uW/cm2/sr", 1e3),
        ("mW/m2/sr", 1e2),
        ("nanoWatts/sr/cm^2", 1.0), ("watts/(cm^2 steradian)", 1e9),
        ("W m-2 sr-1 um-1", None), ("W", None), ("m", None), ("DN", None), ("", None), ("K", None),
    ],
)  # fmt: skip
def test_spellings_of_units(text: str, factor: float | None) -> None:
    found = radiance_factor(text)
    assert found == (None if factor is None else pytest.approx(factor))
    assert (canonical(text) == "nW/cm²/sr") == (factor == 1.0)


def test_a_layer_of_a_very_large_raster_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fill value in the windows that are looked at is found; the others are not read."""
    monkeypatch.setattr("deeplight.engine.raster.survey._SCAN_SIDE", 16)
    monkeypatch.setattr("deeplight.engine.raster.survey._FULL_SCAN_PIXELS", 48 * 48 // 3)
    values = lights()
    values[0, 0] = 65535
    assert "`ntl_nodata=65535`" in open_error(SceneOptions(put(tmp_path, values)))
    values[0, 0], values[0, 20] = 1, 65535
    Scene.open(SceneOptions(str(write_raster(tmp_path / "n.tif", values)))).close()


def test_a_unit_among_the_band_s_tags_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, lights() * np.float32(1e-9))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, units="W/cm2/sr")
    assert "is in W/cm2/sr and nW/cm²/sr is needed; pass `ntl_scale=1e9`" in open_error(SceneOptions(path))
