"""Daytime values that are not reflectance, or not only: fill, temperatures, an offset that the data lack."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import FactorOnly
from deeplight.engine.raster.scene import Scene, SceneOptions
from tests.engine.analytic import write_analytic
from tests.field.programs import advised, shell
from tests.field.test_daytime import S2, Capture, daytime, numbers, slots
from tests.field.test_daytime import refusal as refused
from tests.scenes import ntl_file, open_error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def inputs(**layers: Any) -> dict[str, Any]:
    with Scene.open(SceneOptions(**layers)) as scene:
        return scene.read_inputs(Window(0, 0, 13, 17))


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(100, 3000, (1e-4, -0.1)), (400, 1800, (1e-4, -0.1)), (300, 3000, (2.75e-5, -0.2))],
    ids=["Sentinel-2 without the 1000", "dark forest", "Collection 1 with the scale of 2"],
)
def test_an_offset_that_the_data_lack_is_refused(
    low: int, high: int, scale: tuple[float, float], model: str, tmp_path: Path, capfd: Capture
) -> None:
    factor, offset = scale
    dmo = daytime(tmp_path / "s2.tif", numbers(6, low, high), S2)
    said = refused(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", f"{factor},{offset}")
    assert "% of the sampled reflectances are below -0.01" in said
    (advice,) = re.findall(r"pass --dmo-scale (\S+)$", said)
    assert advice == f"{factor:.9g},0"
    assert len(slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", advice)) == 6


def test_some_reflectances_below_zero_are_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Water under haze is over-corrected in good products too."""
    values = numbers(6, 1000, 4000)
    for share, warned in ((0.01, False), (0.05, True)):
        dark = np.random.default_rng(1).random(values.shape) < share
        dmo = daytime(tmp_path / "s2.tif", np.where(dark, 800, values).astype(np.uint16), S2)
        caplog.clear()
        Scene.open(SceneOptions(ntl_file(tmp_path), dmo, dmo_scale=(1e-4, -0.1))).close()
        assert ("reflectances are below" in caplog.text) is warned


@pytest.mark.parametrize("rows", [1, 8], ids=["a little", "much"])
@pytest.mark.parametrize(
    ("fill", "scale"), [(-9999, (1e-4, 0.0)), (-9999, (2.75e-5, -0.2)), (32767, (1e-4, -0.1))]
)
def test_undeclared_fill_is_missing_and_named(
    fill: int, scale: tuple[float, float], rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is that of a file that declares it."""
    low = 8000 if scale[0] < 1e-4 else 1100
    values = numbers(6, low, low + 2000, "int16")
    values[:, :rows] = fill
    ntl, names = ntl_file(tmp_path), S2
    declared = daytime(tmp_path / "declared.tif", values, names, nodata=fill)
    wanted = inputs(ntl=ntl, dmo=declared, dmo_scale=scale)
    assert caplog.text.count("WARNING") == 0
    silent = daytime(tmp_path / "silent.tif", values, names)
    found = inputs(ntl=ntl, dmo=silent, dmo_scale=scale)
    assert f"(such as raw {fill})" in caplog.text and f"pass `dmo_nodata={fill}`" in caplog.text
    for name in ("dmo", "dmo_valid"):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert 0 < wanted["dmo_valid"].mean() < 1


@pytest.mark.parametrize("scale", [(1e-4, -0.1), (2.75e-5, -0.2)], ids=["Sentinel-2", "Landsat"])
@pytest.mark.parametrize("rows", [1, 8], ids=["a little", "much"])
def test_zero_under_an_offset_is_fill(
    scale: tuple[float, float], rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = numbers(6, 8000, 10000)
    values[:, :rows] = 0
    ntl = ntl_file(tmp_path)
    declared = inputs(ntl=ntl, dmo=daytime(tmp_path / "a.tif", values, S2, nodata=0), dmo_scale=scale)
    for header, given in (({}, scale), ({"scales": [scale[0]] * 6, "offsets": [scale[1]] * 6}, None)):
        found = inputs(ntl=ntl, dmo=daytime(tmp_path / "b.tif", values, S2, **header), dmo_scale=given)
        for name in ("dmo", "dmo_valid"):
            np.testing.assert_array_equal(found[name], declared[name])
    assert 0 < found["dmo_valid"].mean() < 1 and found["dmo"].min() >= 0
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_fill_does_not_spoil_the_advice_on_the_scale(tmp_path: Path) -> None:
    values = numbers(6, 300, 3000, "int16")
    values[:, :4] = -9999
    request = SceneOptions(ntl_file(tmp_path), daytime(tmp_path / "d.tif", values, S2))
    said = open_error(request)
    assert said.endswith("for Sentinel-2-like digital numbers pass `dmo_scale=0.0001`")
    assert "1st, 50th, 99th percentile 3" in said


def test_temperatures_in_kelvin_are_called_so(model: str, tmp_path: Path, capfd: Capture) -> None:
    kelvin = 280 + numbers(1) / np.float32(150)
    alone = daytime(tmp_path / "B10.tif", kelvin)
    said = refused(capfd, tmp_path, model, "--dmo-band", f"swir2={alone}")
    assert "those in band 1 are temperatures in kelvin" in said and said.endswith("leave such a band out")
    among = daytime(
        tmp_path / "d.tif",
        np.concatenate([numbers(3) * np.float32(1e-4), kelvin]),
        ["blue", "green", "red", "nir"],
    )
    assert "those in band 4 are temperatures" in refused(capfd, tmp_path, model, "--dmo", among)
    forest = daytime(tmp_path / "blue.tif", numbers(1, 200, 340))  # or temperatures, rounded
    said = refused(capfd, tmp_path, model, "--dmo-band", f"blue={forest}")
    assert said.endswith("pass --dmo-scale 0.0001, or if it is a temperature in kelvin leave the band out")


def test_fill_that_looks_like_reflectance_after_scaling_is_refused(tmp_path: Path) -> None:
    values = numbers(6, 300, 3000, "int16")
    values[:, :1] = -999  # −0.0999
    request = SceneOptions(ntl_file(tmp_path), daytime(tmp_path / "d.tif", values, S2), dmo_scale=(1e-4, 0.0))
    said = open_error(request)
    assert said.endswith("and does not declare it as nodata; pass `dmo_nodata=-999`")
    Scene.open(replace(request, dmo_nodata=-999.0)).close()


def test_a_file_of_fill_alone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dmo = daytime(tmp_path / "d.tif", np.full((6, 26, 34), -9999, np.int16), S2)
    found = inputs(ntl=ntl_file(tmp_path), dmo=dmo, dmo_scale=(1e-4, 0.0))
    assert "all sampled pixels hold fill, such as -9999" in caplog.text and not found["dmo_valid"].any()


def test_one_file_for_two_slots_is_refused(model: str, tmp_path: Path, capfd: Capture) -> None:
    red = daytime(tmp_path / "red.tif", numbers(1))
    said = refused(capfd, tmp_path, model, "--dmo-band", f"red={red}", "--dmo-band", f"blue={red}")
    assert said.endswith("for blue and for red: give each slot its own file")


def tagged(path: str, **tags: str) -> str:
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**tags)
    return path


@pytest.mark.parametrize(
    ("tags", "header", "given", "wanted"),
    [
        ({"BOA_ADD_OFFSET": "-1000", "BOA_QUANTIFICATION_VALUE": "10000"}, {}, None, (1e-4, -0.1)),
        ({"RADIO_ADD_OFFSET": "-1000"}, {}, None, (1e-4, -0.1)),
        ({"BOA_ADD_OFFSET": "1000"}, {"scales": [1e-4] * 6}, None, (1e-4, -0.1)),
        ({"BOA_ADD_OFFSET": "0"}, {}, None, (1e-4, 0.0)),
        ({"BOA_ADD_OFFSET": "-1000", "QUANTIFICATION_VALUE": "5000"}, {}, None, (2e-4, -0.2)),
        ({"BOA_ADD_OFFSET": "-1000"}, {}, FactorOnly((1e-4, 0.0)), (1e-4, -0.1)),
        ({"BOA_ADD_OFFSET": "-1000"}, {}, (1e-4, 0.0), (1e-4, 0.0)),
        ({"BOA_ADD_OFFSET": "-1000"}, {"scales": [1e-4] * 6, "offsets": [-0.05] * 6}, None, (1e-4, -0.05)),
    ],
)
def test_esa_s_tags_say_what_is_added(
    tags: dict[str, str], header: Any, given: Any, wanted: tuple[float, float], tmp_path: Path
) -> None:
    """Without them it is asked; what the user or the header says goes before them."""
    dmo = daytime(tmp_path / "s2.tif", numbers(6, 1010, 4000), S2, **header)
    ntl = ntl_file(tmp_path)
    if given is None and "offsets" not in header:
        assert "1000" in open_error(SceneOptions(ntl, dmo))
    with Scene.open(SceneOptions(ntl, tagged(dmo, **tags), dmo_scale=given)) as scene:
        facts = scene.describe()["dmo"]
    assert (facts["scale"][0], facts["offset"][0]) == pytest.approx(wanted)


def test_tags_that_a_harmonised_file_kept_do_no_harm(tmp_path: Path) -> None:
    """The 1000 is subtracted already; its tag came along."""
    dmo = tagged(daytime(tmp_path / "s2.tif", numbers(6, 100, 3000), S2), BOA_ADD_OFFSET="-1000")
    assert "if the offset is not in these data, pass `dmo_scale=(0.0001, 0)`" in open_error(
        SceneOptions(ntl_file(tmp_path), dmo)
    )
    reflectance = tagged(
        daytime(tmp_path / "r.tif", numbers(6, 100, 3000) * np.float32(1e-4), S2), BOA_ADD_OFFSET="-1000"
    )
    Scene.open(SceneOptions(ntl_file(tmp_path), reflectance)).close()


def test_the_advice_for_one_file_leaves_the_scale_of_the_others(tmp_path: Path) -> None:
    """--dmo-scale holds for all files of --dmo-band, also for HLS's, which say theirs."""
    values = numbers(1, 300, 3000, "int16")
    hls = daytime(tmp_path / "HLS.B04.tif", values, scales=[2e-4], nodata=-9999)
    bare = daytime(tmp_path / "my blue.tif", values)
    files = {"blue": bare, "red": hls}
    said = open_error(SceneOptions(ntl_file(tmp_path), dmo_files=files))
    assert f"would replace the scale 0.0002,0 of DMO raster {hls} too" in said
    shell(advised(said, f"{sys.executable} -c"), tmp_path)
    files["blue"] = str(tmp_path / "scaled.tif")
    with Scene.open(SceneOptions(ntl_file(tmp_path), dmo_files=files)) as scene:
        facts = scene.describe()["dmo"]["files"]
    assert [facts[slot]["scale"][0] for slot in files] == [1e-4, 2e-4]
    alone = open_error(SceneOptions(ntl_file(tmp_path), dmo_files={"blue": bare}))
    assert alone.endswith("pass `dmo_scale=0.0001`")
