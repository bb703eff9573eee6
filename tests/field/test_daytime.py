"""Daytime bands as people bring them: what is understood, what is asked about, and that the answer printed works.

Situations from public trackers: Sentinel-2 with and without the 1000 added since 2022, HLS with B8A, stacks whose names
fit several sensors, thermal bands, a file for each band.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.data_cli import cli as data_command
from tests.engine.analytic import write_analytic
from tests.engine.test_cli import call
from tests.scenes import ARC, NORTH, WEST, north_up, ntl_file, open_error, write_raster

Capture = pytest.CaptureFixture[str]
S2 = ["B02", "B03", "B04", "B08", "B11", "B12"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def numbers(bands: int, low: int = 300, high: int = 3000, dtype: str = "uint16") -> Any:
    """Digital numbers (bands, 26, 34) from `low` to below `high`, every band with values of its own."""
    return np.random.default_rng(bands).integers(low, high, (bands, 26, 34)).astype(dtype)


def daytime(path: Path, values: Any, names: Sequence[str] = (), **header: Any) -> str:
    """Pixels of half an LR pixel over the NTL of `ntl_file`."""
    return str(write_raster(path, values, transform=north_up(ARC / 2), names=names, **header))


def slots(
    capfd: Capture, folder: Path, model: str, *options: object, ntl: str | None = None
) -> dict[str, int]:
    """The slots that a run used; it must succeed."""
    report = folder / "run.json"
    status, _, stderr = call(
        capfd, "--ntl", ntl or ntl_file(folder), *options, "--out", folder / "o.tif", "--model", model,
        "--report", report, "--overwrite",
    )  # fmt: skip
    assert status == 0, stderr
    found: dict[str, int] = json.loads(report.read_text())["inputs"]["dmo"]["slots"]
    return found


def refusal(capfd: Capture, folder: Path, model: str, *options: object) -> str:
    """The sentence of a run that must be refused with exit status 2 and write nothing."""
    out = folder / "refused.tif"
    status, stdout, stderr = call(capfd, "--ntl", ntl_file(folder), *options, "--out", out, "--model", model)
    assert (status, stdout, out.exists()) == (2, "", False), stderr
    last: str = stderr.splitlines()[-1]
    assert last.startswith("error: ") and stderr.count("error: ") == 1
    return last


@pytest.mark.parametrize("scale", [("--dmo-scale", "0.0001"), ()], ids=["option", "header"])
def test_sentinel_2_with_1000_added_is_asked_about(
    model: str, tmp_path: Path, capfd: Capture, scale: tuple[str, ...]
) -> None:
    header = {} if scale else {"scales": [1e-4] * 6}
    dmo = daytime(tmp_path / "s2.tif", numbers(6, 1010, 4000), S2, **header)
    said = refusal(capfd, tmp_path, model, "--dmo", dmo, *scale)
    assert "the values begin at 10" in said and "Sentinel-2 products since 2022" in said
    answers = re.findall(r"--dmo-scale (\S+) where", said)
    assert answers == ["0.0001,-0.1", "0.0001,0"]
    for answer in answers:  # both are believed
        assert list(slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", answer)) == list(DMO_SLOTS[1:])
        facts = json.loads((tmp_path / "run.json").read_text())["inputs"]["dmo"]
        assert [facts["scale"][0], facts["offset"][0]] == [float(part) for part in answer.split(",")]


@pytest.mark.parametrize("low", [100, 990])
def test_sentinel_2_with_nothing_added_needs_no_answer(
    model: str, tmp_path: Path, capfd: Capture, low: int
) -> None:
    dmo = daytime(tmp_path / "s2.tif", numbers(6, low, 4000), S2)
    assert len(slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", "0.0001")) == 6


def test_sentinel_2_without_a_scale_is_told_both(model: str, tmp_path: Path, capfd: Capture) -> None:
    dmo = daytime(tmp_path / "s2.tif", numbers(6, 1010, 9000), S2)
    said = refusal(capfd, tmp_path, model, "--dmo", dmo)
    assert (
        "pass --dmo-scale 0.0001,-0.1 where 1000 is added, or --dmo-scale 0.0001,0 where nothing is" in said
    )


def test_a_python_caller_says_both_numbers(tmp_path: Path) -> None:
    dmo = daytime(tmp_path / "s2.tif", numbers(6, 1010, 4000), S2)
    Scene.open(SceneOptions(ntl_file(tmp_path), dmo, dmo_scale=(1e-4, 0.0))).close()
    in_header = daytime(tmp_path / "h.tif", numbers(6, 1010, 4000), S2, scales=[1e-4] * 6)
    assert "`dmo_scale=(0.0001, -0.1)`" in open_error(SceneOptions(ntl_file(tmp_path), in_header))


def test_near_infrared_is_judged_with_the_other_bands(model: str, tmp_path: Path, capfd: Capture) -> None:
    """Alone it is bright with nothing added: over land hardly a pixel lies below a reflectance of 0.1."""
    red, nir = (
        daytime(tmp_path / f"{name}.tif", numbers(1, low, low + 3000))
        for name, low in (("red", 200), ("nir", 1500))
    )
    given = ("--dmo-scale", "0.0001", "--dmo-band", f"nir={nir}")
    assert list(slots(capfd, tmp_path, model, *given, "--dmo-band", f"red={red}")) == ["red", "nir"]
    assert "--dmo-scale 0.0001,0" in refusal(capfd, tmp_path, model, *given)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["B02", "B03", "B04", "B8A", "B11", "B12"], {"blue": 1, "nir": 4, "swir1": 5, "swir2": 6}),
        (["B02", "B03", "B04", "B08", "B8A", "B11", "B12"], {"nir": 4, "swir1": 6}),
        (["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11"], {"nir": 5, "swir2": 7}),
        (
            ["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7", "ST_B6"],
            {"blue": 1, "swir1": 5, "swir2": 6},
        ),
    ],
    ids=["HLS S30", "both NIR", "HLS L30 with thermal", "Landsat 5 with thermal"],
)
def test_names_that_fit_one_sensor(
    model: str, tmp_path: Path, capfd: Capture, names: list[str], wanted: dict[str, int]
) -> None:
    dmo = daytime(tmp_path / "d.tif", numbers(len(names), dtype="int16"), names, nodata=-9999)
    found = slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", "0.0001")
    assert {slot: found[slot] for slot in wanted} == wanted
    assert len(found.values()) == len(set(found.values())) <= 7
    thermal = {place for place, name in enumerate(names, 1) if name in ("B10", "ST_B6")}
    assert not thermal & set(found.values()) and (names[-2:] != ["B10", "B11"] or 10 not in found.values())


def test_gdal_s_words_for_sentinel_2(model: str, tmp_path: Path, capfd: Capture) -> None:
    """A subdataset of GDAL's Sentinel-2 driver, converted."""
    names = [f"B{b}, central wavelength {nm} nm" for b, nm in ((4, 665), (3, 560), (2, 490), (8, 842))]
    dmo = daytime(tmp_path / "d.tif", numbers(4), names)
    found = slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", "0.0001")
    assert found == {"blue": 3, "green": 2, "red": 1, "nir": 4}


@pytest.mark.parametrize(
    ("names", "sensors"),
    [
        ([f"B{k}" for k in range(1, 8)], ["Landsat 8/9", "Landsat 4–7", "Sentinel-2", "MODIS"]),
        ([""] * 7, ["Landsat 8/9", "Landsat 4–7", "MODIS"]),
        (["SR_B2", "SR_B3", "SR_B4", "SR_B5"], ["Landsat 8/9", "Landsat 4–7"]),
        (["B4", "B3", "B2"], ["Landsat 8/9 and Sentinel-2", "Landsat 4–7", "MODIS"]),
        (["B2", "B3", "B4", "B10", "B11"], ["Landsat 8/9", "Sentinel-2"]),
    ],
)
def test_names_that_fit_several_sensors_are_asked_about(
    model: str, tmp_path: Path, capfd: Capture, names: list[str], sensors: list[str]
) -> None:
    dmo = daytime(tmp_path / "d.tif", numbers(len(names)), names)
    said = refusal(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", "0.0001")
    lines = re.findall(r"--dmo-bands (\S+) for (.+?)(?=, --| or --|$)", said)
    assert [title for _, title in lines] == sensors
    for line, _ in lines:
        found = slots(capfd, tmp_path, model, "--dmo", dmo, "--dmo-scale", "0.0001", "--dmo-bands", line)
        assert ",".join(f"{slot}={band}" for slot, band in found.items()) == line


def test_the_name_of_a_product_decides(model: str, tmp_path: Path, capfd: Capture) -> None:
    names = [f"B{k}" for k in range(1, 8)]
    given = ("--dmo-scale", "0.0001")
    five = daytime(tmp_path / "LT05_L1TP_224063_19880815_20200917_02_T1.tif", numbers(7), names)
    assert slots(capfd, tmp_path, model, "--dmo", five, *given) == {
        "blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 7,
    }  # fmt: skip
    eight = daytime(tmp_path / "LC08_L2SP_196025_20240806_20240814_02_T1.tif", numbers(7), names)
    assert slots(capfd, tmp_path, model, "--dmo", eight, *given) == dict(
        zip(DMO_SLOTS, range(1, 8), strict=True)
    )
    both = daytime(tmp_path / "LC08_and_LE07_mosaic.tif", numbers(7), names)
    assert "for Landsat 4–7" in refusal(capfd, tmp_path, model, "--dmo", both, *given)


def test_a_thermal_band_is_refused_as_reflectance(model: str, tmp_path: Path, capfd: Capture) -> None:
    dmo = daytime(tmp_path / "tm.tif", numbers(7), [f"TM_B{k}" for k in range(1, 8)])
    given = ("--dmo", dmo, "--dmo-scale", "0.0001", "--dmo-bands")
    assert "band 6 (tm_b6), given for swir1, is thermal" in refusal(capfd, tmp_path, model, *given, "swir1=6")
    alone = daytime(tmp_path / "LC09_L2SP_196025_20240806_20240814_02_T1_ST_B10.TIF", numbers(1))
    assert "is thermal" in refusal(capfd, tmp_path, model, "--dmo-band", f"swir2={alone}")


def test_real_sentinel_2_of_2024_is_asked_about(
    shared_data: Path, model: str, tmp_path: Path, capfd: Capture
) -> None:
    place = shared_data / "luxembourg"
    base = (
        "--ntl",
        place / "ntl.tif",
        "--dmo",
        place / "dmo.tif",
        "--out",
        tmp_path / "o.tif",
        "--model",
        model,
    )
    status, _, stderr = call(capfd, *base, "--dmo-scale", "0.0001")
    assert status == 2 and "--dmo-scale 0.0001,-0.1 where 1000 is added" in stderr
    assert call(capfd, *base, "--dmo-scale", "0.0001,-0.1")[0] == 0


def test_clips_are_cut_by_the_same_rules(tmp_path: Path) -> None:
    ntl, tree = ntl_file(tmp_path), tmp_path / "tree"
    words = [
        "clip",
        "--place",
        "here",
        "--clip",
        "12,4",
        "--block",
        "20",
        "--shares",
        "1,0,0",
        "--min-lit",
        "0",
    ]
    added = daytime(tmp_path / "s2.tif", numbers(6, 1010, 4000), S2)
    unclear = daytime(tmp_path / "unclear.tif", numbers(3), ["B2", "B3", "B4"])
    red = daytime(tmp_path / "red.tif", numbers(1))

    def run(*options: str) -> str:
        done = CliRunner().invoke(data_command, [*words, "--ntl", ntl, "--out", str(tree), *options])
        return str(done.exception) if done.exit_code else ""

    assert "--dmo-scale 0.0001,-0.1" in run("--dmo", added, "--dmo-scale", "0.0001")
    assert "blue=1,green=2,red=3 for Landsat 8/9 and Sentinel-2" in run("--dmo", unclear)
    assert "use one of them" in run("--dmo", added, "--dmo-band", f"red={red}")
    assert not tree.exists()
    assert run("--dmo-band", f"red={red}", "--dmo-scale", "0.0001") == ""


def band_files(folder: Path) -> dict[str, str]:
    """Three bands on grids of their own: 10 m, 20 m and another extent, so to say."""
    return {
        "blue": daytime(folder / "B02.tif", numbers(1)),
        "green": str(
            write_raster(
                folder / "B03.tif", numbers(2)[1:], transform=north_up(ARC / 1.5, WEST - ARC, NORTH + ARC)
            )
        ),
        "nir": str(write_raster(folder / "B8A.tif", numbers(3)[:1, :7], transform=north_up(ARC))),
    }


def test_one_file_per_band_is_each_file_in_its_slot(tmp_path: Path) -> None:
    ntl, files = ntl_file(tmp_path), band_files(tmp_path)
    window = Window(-1, -1, 15, 19)
    with Scene.open(SceneOptions(ntl, dmo_files=files, dmo_scale=(1e-4, 0.0))) as scene:
        inputs = scene.read_inputs(window)
    assert inputs["dmo_bands"][0].tolist() == [0, 1, 1, 0, 1, 0, 0]
    valid = np.ones_like(inputs["dmo_valid"])
    for slot, name in files.items():
        alone = SceneOptions(ntl, name, dmo_bands={slot: 1}, dmo_scale=(1e-4, 0.0))
        with Scene.open(alone) as scene:
            expected = scene.read_inputs(window)
        channel = DMO_SLOTS.index(slot)
        seen = inputs["dmo_valid"][0, 0] != 0
        np.testing.assert_array_equal(inputs["dmo"][0, channel][seen], expected["dmo"][0, channel][seen])
        valid *= expected["dmo_valid"]
    np.testing.assert_array_equal(inputs["dmo_valid"], valid)
    assert 0.2 < valid.mean() < 0.6 and not inputs["dmo"][:, :, valid[0, 0] == 0].any()


def test_files_are_described_by_their_slots_whatever_their_order(tmp_path: Path) -> None:
    ntl, files = ntl_file(tmp_path), band_files(tmp_path)
    given = dict(reversed(files.items()))
    with Scene.open(SceneOptions(ntl, dmo_files=given, dmo_scale=(1e-4, 0.0))) as scene:
        found = scene.auxiliary["dmo"].describe()["files"]
    assert {slot: file["file"] for slot, file in found.items()} == files and list(found) == list(files)


def test_one_file_per_band_is_the_same_as_one_file(model: str, tmp_path: Path, capfd: Capture) -> None:
    values = numbers(7)
    stack = daytime(tmp_path / "stack.tif", values, DMO_SLOTS)
    single = [daytime(tmp_path / f"{s}.tif", values[k]) for k, s in enumerate(DMO_SLOTS)]
    pairs = [("--dmo-band", f"{slot}={name}") for slot, name in zip(DMO_SLOTS, single, strict=True)]
    outputs = []
    for given in (("--dmo", stack), sum(reversed(pairs), ())):
        found = slots(capfd, tmp_path, model, *given, "--dmo-scale", "0.0001")
        assert list(found) == list(DMO_SLOTS)
        with rasterio.open(tmp_path / "o.tif") as dataset:
            outputs.append(dataset.read())
    np.testing.assert_array_equal(*outputs)


def test_one_file_per_band_enters_what_a_run_records(model: str, tmp_path: Path, capfd: Capture) -> None:
    ntl, files = ntl_file(tmp_path), band_files(tmp_path)
    out, report = tmp_path / "o.tif", tmp_path / "run.json"
    base = ["--ntl", ntl, "--dmo-scale", "0.0001", "--out", out, "--model", model]
    for slot, name in files.items():
        base += ["--dmo-band", f"{slot}={name}"]
    more = ["--report", report, "--quicklook", tmp_path / "q.png", "--stac"]
    status, _, stderr = call(capfd, *base, *more)
    assert status == 0 and re.search(r"DMO: its file reaches over \d\d % of the scene", stderr), stderr
    assert all(path.is_file() for path in (report, tmp_path / "q.png", tmp_path / "o.stac.json"))
    facts = json.loads(report.read_text())["inputs"]["dmo"]
    assert facts["slots"] == dict.fromkeys(files, 1)
    assert {slot: file["file"] for slot, file in facts["files"].items()} == files
    assert facts["bytes"] == sum(Path(name).stat().st_size for name in files.values())
    assert 0 < facts["share_of_output"] <= 1 and facts["share_of_scene"] < 0.7
    with rasterio.open(out) as dataset:
        told = {key for key in dataset.tags() if key.startswith("DEEPLIGHT_INPUT")}
    assert told == {f"DEEPLIGHT_INPUT_{name}" for name in ("NTL", *(f"DMO_BAND_{s.upper()}" for s in files))}

    status, _, stderr = call(capfd, *base, "--resume")
    assert status == 0 and "is complete already" in stderr
    write_raster(Path(files["green"]), numbers(2)[:1], transform=north_up(ARC / 2))
    status, _, stderr = call(capfd, *base, "--resume")
    assert status == 2 and "DEEPLIGHT_INPUT_DMO_BAND_GREEN" in stderr
    status, _, stderr = call(capfd, *base[:4], "--out", files["nir"], *base[6:], "--overwrite")
    assert status == 2 and "is also an input" in stderr


def test_what_a_band_s_file_must_be(model: str, tmp_path: Path, capfd: Capture) -> None:
    two = daytime(tmp_path / "two.tif", numbers(2), ["B04", "B03"])
    assert "has 2 bands (1 B04, 2 B03) and must have one" in refusal(
        capfd, tmp_path, model, "--dmo-band", f"red={two}"
    )
    percent = daytime(tmp_path / "p.tif", numbers(1, 3, 60, "uint8"))
    assert "cannot be reflectance" in refusal(capfd, tmp_path, model, "--dmo-band", f"red={percent}")
    assert "'pink' is not a band slot" in open_error(
        SceneOptions(ntl_file(tmp_path), dmo_files={"pink": two})
    )
