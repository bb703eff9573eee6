from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from deeplight.engine.core.progress import Silent
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth import Country, CountryConfig
from deeplight.train.synth.country import TALLEST, WIDEST
from deeplight.train.synth.write import NAMES, NTL_NODATA, write_country
from tests.conftest import ROOT
from tests.in_process import Done, run_here

SEED = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "scene"
    done = run_cli("synth", "--out", str(out), "--lr-size", "37x70", "--seed", str(SEED))
    assert done.returncode == 0, done.stderr
    return out


def run_cli(*arguments: str) -> Done:
    return run_here("deeplight-data", *arguments, cwd=ROOT)


def test_files_lie_on_grids_of_their_own(files: Path) -> None:
    assert sorted(p.name for p in files.iterdir()) == sorted(NAMES)
    opened = {name: rasterio.open(files / name) for name in NAMES}
    expected = {  # CRS, dtype, bands, nodata
        "ntl.tif": (4326, "float32", 1, NTL_NODATA),
        "ntl_hr.tif": (4326, "float32", 1, NTL_NODATA),
        "isp.tif": (4326, "float32", 1, NTL_NODATA),
        "offset.tif": (4326, "float32", 2, NTL_NODATA),
        "dmo.tif": (32633, "uint16", 7, 0),
        "dem.tif": (4326, "int16", 1, -32768),
    }
    for name, (epsg, dtype, bands, nodata) in expected.items():
        d = opened[name]
        assert (d.crs.to_epsg(), d.dtypes[0], d.count, d.nodata) == (epsg, dtype, bands, nodata), name
        assert d.profile["compress"] == "zstd" and d.profile["tiled"]
    ntl, dmo, dem = opened["ntl.tif"], opened["dmo.tif"], opened["dem.tif"]
    assert ntl.shape == opened["offset.tif"].shape == (37, 70)
    assert opened["ntl_hr.tif"].shape == opened["isp.tif"].shape == (37 * SCALE, 70 * SCALE)
    assert ntl.bounds == pytest.approx(opened["ntl_hr.tif"].bounds)
    assert ntl.res == pytest.approx((15 / 3600, 15 / 3600))
    assert dmo.descriptions == DMO_SLOTS and dmo.res == (30, 30)
    assert dmo.scales == (0.0000275,) * 7 and dmo.offsets == (-0.2,) * 7
    assert dem.res == pytest.approx((3 / 3600, 3 / 3600))
    half = (dem.transform.c - ntl.transform.c) / dem.transform.a % 1
    assert half == pytest.approx(0.5, abs=1e-6)  # the lattices do not coincide
    assert dem.bounds.left < ntl.bounds.left and dem.bounds.top > ntl.bounds.top


def test_files_hold_the_country(files: Path) -> None:
    sample = Country(CountryConfig(seed=SEED)).sample(Window(0, 0, 37, 70))
    for name in ("ntl_hr", "isp", "offset", "ntl"):
        with rasterio.open(files / f"{name}.tif") as d:
            values = d.read(masked=True).squeeze()
        assert np.array_equal(values.compressed(), getattr(sample, name)[~np.ma.getmaskarray(values)]), name
        assert (0.005 < np.ma.getmaskarray(values).mean() < 0.1) == (name == "ntl")


def test_files_of_the_auxiliary_fit_the_country_after_reprojection(files: Path) -> None:
    sample = Country(CountryConfig(seed=SEED)).sample(Window(0, 0, 37, 70))
    with rasterio.open(files / "ntl_hr.tif") as d:
        crs, transform, shape = d.crs, d.transform, d.shape
    for name, truth, band in (("dmo", sample.dmo[4], 5), ("dem", sample.dem, 1)):
        with rasterio.open(files / f"{name}.tif") as d:
            raw = d.read(band).astype(np.float32)
            raw = np.where(raw == d.nodata, np.nan, raw * d.scales[band - 1] + d.offsets[band - 1])
            warped = np.full(shape, np.nan, np.float32)
            reproject(
                raw,
                warped,
                src_crs=d.crs,
                src_transform=d.transform,
                dst_crs=crs,
                dst_transform=transform,
                src_nodata=np.nan,
                dst_nodata=np.nan,
                resampling=Resampling.bilinear,
            )
        known = np.isfinite(warped)
        assert 0.9 < known.mean() < 1.0  # holes, but few
        assert np.corrcoef(warped[known], truth[known])[0, 1] > 0.97
        moved = np.roll(truth, 1, axis=1)
        error = np.abs(warped - truth)[known].mean()
        assert error < 0.6 * np.abs(warped - moved)[known].mean()  # not even one HR pixel off


def test_existing_files_need_overwrite(files: Path) -> None:
    before = (files / "ntl.tif").read_bytes()
    refused = run_cli("synth", "--out", str(files), "--lr-size", "8")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert (files / "ntl.tif").read_bytes() == before


def test_overwriting_gives_equal_bytes(tmp_path: Path) -> None:
    arguments = ("synth", "--out", str(tmp_path), "--lr-size", "9x8", "--overwrite")
    assert run_cli(*arguments).returncode == 0
    first = {name: (tmp_path / name).read_bytes() for name in NAMES}
    assert run_cli(*arguments).returncode == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lr-size", "0"), "between 8 and"),
        (("--lr-size", "12x"), "such as 128"),
        (("--lr-size", "99999999"), "the whole globe"),
        (("--lr-size", "43185x8"), "its height must be between 8 and 43184"),
        (("--window", "0,0,8"), "such as 4096,0,256x8192"),
        (("--lr-size", "16", "--window", "9,0,8x16"), "leaves the country of 16x16"),
        (("--lr-size", "16", "--window", "0,0,0x16"), "is empty"),
        (("--misregistration", "-1"), "misregistration"),
        (("--nonsense",), "--nonsense"),
        (("--noise", "nan"), "the noise is nan"),
        (("--noise", "inf"), "the noise is inf"),
        (("--psf", "nan"), "PSF"),
        (("--misregistration", "nan"), "misregistration"),
        (("--saturation", "nan"), "the saturation is nan"),
        (("--saturation", "inf"), "the saturation is inf"),
    ],
)
def test_bad_requests_are_one_sentence_and_no_file(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "scene"
    refused = run_cli("synth", "--out", str(out), *arguments)
    assert refused.returncode == 2 and words in refused.stderr
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert not out.exists()


def test_a_window_holds_what_the_whole_country_has_there(files: Path, tmp_path: Path) -> None:
    out, part = tmp_path / "part", Window(11, 23, 9, 40)
    config = CountryConfig(seed=SEED, lr_height=37, lr_width=70)
    write_country(config, out, overwrite=False, progress=Silent(), window=part)
    for name in NAMES:
        with rasterio.open(files / name) as whole, rasterio.open(out / name) as d:
            place = ~whole.transform @ d.transform  # pixels of one in those of the other
            assert (place.a, place.e) == pytest.approx((1, 1)) and (place.b, place.d) == pytest.approx((0, 0))
            row, col = round(place.f), round(place.c)
            assert (place.c, place.f) == pytest.approx((col, row), abs=1e-4)
            got, valid = d.read(), d.dataset_mask() != 0
            at = ((row, row + d.height), (col, col + d.width))
            want = whole.read(window=at, boundless=True)
        if name not in ("dmo.tif", "dem.tif"):
            np.testing.assert_array_equal(got, want)
            continue
        # Positions come through a mesh that starts elsewhere: the last digit of a few differs, and a pixel at the
        # edge of a cloud may be one of it.
        assert valid.mean() > 0.5
        last = 1 if name == "dem.tif" else 3
        assert (np.abs(got.astype(int) - want)[:, valid].max(axis=0) <= last).mean() > 0.999


@pytest.mark.parametrize("corner", ["north-west", "south-east"])
def test_a_country_may_be_as_large_as_the_globe(tmp_path: Path, corner: str) -> None:
    row, col = (0, 0) if corner == "north-west" else (TALLEST - 8, WIDEST - 8)
    config = CountryConfig(seed=SEED, lr_height=TALLEST, lr_width=WIDEST)
    write_country(config, tmp_path, overwrite=False, progress=Silent(), window=Window(row, col, 8, 8))
    with (
        rasterio.open(tmp_path / "ntl.tif") as ntl,
        rasterio.open(tmp_path / "dem.tif") as dem,
        rasterio.open(tmp_path / "dmo.tif") as dmo,
    ):
        edge, pole = (-180, 90) if corner == "north-west" else (180, -90)
        assert abs(ntl.bounds[0 if edge < 0 else 2] - edge) < 0.05
        assert abs(ntl.bounds[3 if pole > 0 else 1] - pole) < 0.05
        assert -180 <= dem.bounds.left < ntl.bounds.left and ntl.bounds.right < dem.bounds.right <= 180
        assert -90 <= dem.bounds.bottom < ntl.bounds.bottom and ntl.bounds.top < dem.bounds.top <= 90
        assert dmo.crs.to_epsg() == 4087
        assert (dmo.dataset_mask() != 0).mean() > 0.5 and np.isfinite(ntl.read()).all()


def test_a_file_in_the_way_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    refused = run_cli("synth", "--out", str(tmp_path / "taken"), "--lr-size", "8")
    assert refused.returncode == 2 and "taken" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(("name", "words"), [("", "empty"), ("x" * 300, "too long")])
def test_folder_names_that_cannot_be_are_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    refused = run_cli("synth", "--lr-size", "8", "--out", str(tmp_path / name) if name else "")
    assert refused.returncode == 2 and words in refused.stderr
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_a_terminated_run_leaves_no_files(tmp_path: Path) -> None:
    code = "from deeplight.train.data_cli import main; main()"
    command = [sys.executable, "-c", code, "synth", "--out", str(tmp_path), "--lr-size", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            end = time.monotonic() + 60
            while not any(tmp_path.iterdir()) and run.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            assert any(tmp_path.iterdir())
            run.send_signal(signal.SIGTERM)
            _, stderr = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 143 and stderr.splitlines()[-1] == (
        "error: interrupted by SIGTERM: nothing was written, run the same command to start again"
    ), stderr
    assert "Traceback" not in stderr and list(tmp_path.iterdir()) == []


def test_help_is_short_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom deeplight.train.data_cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'numpy', 'rasterio', 'torch', 'rich'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["synth", "--help"], []):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "synth" in done.stdout and len(done.stdout.splitlines()) <= 40
