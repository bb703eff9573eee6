"""deeplight-infer as a user meets it: what it prints, its exit status, what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine import cli
from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.terminal import run_cli, signals_raise
from tests.engine.analytic import write_analytic
from tests.scenes import SceneFiles, write_raster, write_scene


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of deeplight-infer in this process."""
    old, sys.argv = sys.argv, ["deeplight-infer", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as e:
            cli.main()
    finally:
        sys.argv = old
    captured = capfd.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, captured.out, captured.err


def test_a_run_prints_paths_on_stdout_and_the_rest_on_stderr(
    files: SceneFiles, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, report, png = tmp_path / "o.tif", tmp_path / "run.json", tmp_path / "q.png"
    status, stdout, stderr = call(
        capfd, "--ntl", files.ntl, "--dmo", files.dmo, "--dem", files.dem, "--out", out, "--model", model,
        "--tiles", "--report", report, "--quicklook", png,
    )  # fmt: skip
    assert status == 0, stderr
    assert stdout.split() == [str(out), str(png), str(report)]
    assert all(p.is_file() for p in (out, report, png))
    assert re.search(r"HR Mpix/s, \d+ km²/s, peak memory .* bottleneck \w+ \(", stderr)


@pytest.mark.parametrize(
    ("tiles", "plan"),
    [
        (["--tiles", "auto"], "128+2"),
        (["--tiles=9+3"], "9+3"),
        (["--tiles", "9"], "9+2"),
        (["--tiles"], "128+2"),
        ([], "128+2"),
        (["--whole"], "whole scene"),
    ],
)
def test_forms_of_tiles(
    files: SceneFiles,
    model: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    tiles: list[str],
    plan: str,
) -> None:
    out = tmp_path / "o.tif"
    report = tmp_path / "run.json"
    status, _, stderr = call(
        capfd, *tiles, "--ntl", files.ntl, "--out", out, "--model", model, "--report", report
    )
    assert status == 0, stderr
    assert json.loads(report.read_text())["tiles"]["plan"] == plan


def test_all_products_at_once(
    files: SceneFiles, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.tif"
    status, stdout, stderr = call(
        capfd, "--ntl", files.ntl, "--dem", files.dem, "--out", out, "--model", model, "--compression", "deflate",
        "--bands", "quality,isp", "--conserve-radiance", "--stac", "--tiles", "9",
    )  # fmt: skip
    assert status == 0, stderr
    assert stdout.split() == [str(out), str(tmp_path / "o.stac.json")]
    assert re.search(r"valid pixels \d+\.\d% had DEM and \d+\.\d% NTL alone", stderr)
    with rasterio.open(out) as d:
        assert [name.split()[0] for name in d.descriptions] == ["ntl", "isp", "quality"]
        assert d.compression.value == "DEFLATE"


def usage(files: SceneFiles, model: str, tmp_path: Path) -> dict[str, list[str]]:
    """Requests that must be refused, by a piece of the sentence."""
    three = write_raster(tmp_path / "three.tif", np.ones((3, 4, 5), np.float32))
    nowhere = write_raster(tmp_path / "nowhere.tif", np.ones((4, 5), np.float32), crs=None)
    text = tmp_path / "text.tif"
    text.write_text("not a raster")
    far = write_raster(
        tmp_path / "far.tif", np.ones((4, 5), np.float32), "EPSG:32755", rasterio.Affine.scale(30)
    )
    base = ["--ntl", str(files.ntl), "--out", str(tmp_path / "out" / "o.tif"), "--model", model]
    (tmp_path / "out").mkdir(exist_ok=True)
    return {
        "does not exist": ["--ntl", "gone.tif", *base[2:]],
        "cannot be opened as a raster": ["--ntl", str(text), *base[2:]],
        "has 3 bands and must have one": ["--ntl", str(three), *base[2:]],
        "has no CRS": ["--ntl", str(nowhere), *base[2:]],
        "does not overlap": [*base, "--dem", str(far)],
        "there is no folder": [*base[:3], str(tmp_path / "gone" / "o.tif"), *base[4:]],
        "does not end in .tif": [*base[:3], str(tmp_path / "out" / "o.png"), *base[4:]],
        "unknown model 'gone'": [*base[:5], "gone"],
        "Missing option '--out'": base[:2],
        "No such option": [*base, "--dpi", "3"],
        "--streams 2 computes several tiles at once": [*base, "--whole", "--streams", "2"],
        "there are none: leave out --whole": [*base, "--whole", "--verify-seams", "1"],
        "--tiles and --whole exclude each other": [*base, "--tiles", "9", "--whole"],
        "--streams 3 needs a thread for each tile": [*base, "--tiles=9", "--streams=3", "--threads=2"],
        "is not a tile size": [*base, "--tiles", "12x"],
        "halo is below the 2 LR pixels": [*base, "--tiles", "12+1"],
        "is not F or F,OFFSET": [*base, "--ntl-scale", "a"],
        "is not SLOT=NUMBER": [*base, "--dmo-bands", "pink=1"],
        "repeats a slot or a band": [*base, "--dmo-bands", "red=1,blue=1"],
        "is not SLOT=FILE": [*base, "--dmo-band", "B4.tif"],
        "--dmo-band gives red twice": [*base, "--dmo-band", "red=a.tif", "--dmo-band", "red=b.tif"],
        "--dmo and --dmo-band both": [*base, "--dmo", str(three), "--dmo-band", "red=a.tif"],
        "leave out --dmo-bands": [*base, "--dmo-band", "red=a.tif", "--dmo-bands", "red=1"],
        "--dmo-scale is about the daytime bands": [*base, "--dmo-scale", "0.0001"],
        "takes no files": [*base[:3], "/proc/o.tif", *base[4:]],
        "is not the FWHM of a blur": [*base, "--psf", "4.5"],
        "or auto or unknown": [*base, "--psf", "wide"],
        "is not an extra band": [*base, "--bands", "ntl"],
        "is not a number": [*base, "--ntl-nodata", "none"],
        "exclude each other": [*base, "--resume", "--overwrite"],
        "'tensorflow' is not one of": [*base, "--backend", "tensorflow"],
        "has no ONNX file in precision fp16, it has fp32": [
            *base,
            "--precision",
            "fp16",
            "--backend",
            "onnxruntime",
        ],
        "steps of 0.1 only": [*base, "--dtype", "uint16", "--bands", "isp"],
        "does not end in .json": [*base, "--report", str(tmp_path / "out" / "r.txt")],
        "not a local file": ["--ntl", "https://example.org/n.tif", *base[2:]],
    }


def test_refusals_are_one_sentence_exit_2_and_no_file(
    files: SceneFiles, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for piece, arguments in usage(files, model, tmp_path).items():
        status, stdout, stderr = call(capfd, *arguments)
        lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert (status, len(lines), stdout) == (2, 1, ""), (piece, stderr)
        assert piece in lines[0] and stderr.splitlines()[-1] == lines[0], (piece, stderr)
        assert list((tmp_path / "out").iterdir()) == [], piece


def test_scene_too_large_for_one_piece(
    files: SceneFiles,
    model: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deeplight.engine.run.preparation.available_memory", lambda: 300 << 20)
    arguments = ("--ntl", files.ntl, "--out", tmp_path / "o.tif", "--model", model, "--whole")
    status, _, stderr = call(capfd, *arguments)
    assert status == 2 and "leave out --whole" in stderr and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(
    files: SceneFiles, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    status, _, stderr = call(capfd, "--ntl", files.ntl, "--out", tmp_path / "o.tif", "--model", model)
    assert status == 2 and "is not writable" in stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("bad file"), 2, "error: bad file"),
        (DeepLightError("it failed"), 1, "error: it failed"),
        (Interrupted(15), 143, "error: interrupted by SIGTERM: go on like this\n"),
        (Interrupted(1), 129, "error: interrupted by SIGHUP: go on like this\n"),
        (KeyboardInterrupt(), 130, "error: interrupted by SIGINT: go on like this\n"),
        (OSError(5, "Input/output error"), 129, "error: interrupted by SIGHUP: go on like this\n"),
        (OSError(5, "Input/output error", "x.tif"), 1, "error: Input/output error: x.tif"),
        (OSError(28, "No space left on device", "x.tif"), 1, "error: No space left on device: x.tif"),
        (MemoryError(), 1, "error: the memory is full"),
        (ZeroDivisionError("oops"), 1, "error: unexpected ZeroDivisionError (oops)"),
        (InputError("a\nb\x1b[2J\udcff.tif, nW/cm²/sr"), 2, "error: a\\nb\\x1b[2J\\udcff.tif, nW/cm²/sr\n"),
    ],
)
def test_every_exception_is_one_line_and_a_status(
    capfd: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as e:
        run_cli(fail, go_on="go on like this")
    err = capfd.readouterr().err
    assert e.value.code == status and err.startswith(message) and err.count("\n") == 1


def test_traceback_on_request(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLIGHT_DEBUG", "1")
    with pytest.raises(SystemExit):
        run_cli(lambda: 1 / 0)
    assert "Traceback" in capfd.readouterr().err


def test_second_signal_does_not_disturb() -> None:
    with signals_raise():
        with pytest.raises(Interrupted) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_interrupts_unless_nohup_was_said(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        raised = contextlib.nullcontext() if ignored else pytest.raises(Interrupted, match="SIGHUP")
        with raised, signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0 if ignored else 1)
    finally:
        signal.signal(signal.SIGHUP, before)


_LOGGING = """
import time
from deeplight.engine.core.progress import terminal_progress
from deeplight.engine.core.terminal import run_cli
def run():
    with terminal_progress() as progress:
        progress.start(1)
        while True:
            progress.log("at work")
            time.sleep(0.001)
run_cli(run)
"""


def test_a_run_whose_terminal_is_closed_ends_as_interrupted() -> None:
    """A real terminal: it refuses what is written to it before or after the signal arrives."""
    ours, its = os.openpty()
    command = [
        sys.executable,
        "-c",
        f"import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{_LOGGING}",
    ]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True) as process:
        os.close(its)
        said = b""
        while b"at work" not in said:
            said += os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(30) == 129


def test_no_library_passes_over_a_signal() -> None:
    """Python's resource tracker for one ignores any Exception while it starts."""
    with pytest.raises(Interrupted), signals_raise(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def test_an_interruption_that_is_lost_comes_again() -> None:
    """NumPy's Generator.choice clears what is raised within it, and so may other code in C."""
    alarm = signal.getsignal(signal.SIGALRM)
    lost = False
    with pytest.raises(Interrupted, match="SIGTERM") as stopped, signals_raise():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        lost = True
        time.sleep(10)
    assert lost and stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGALRM) is alarm


SLOW_WRITER = """
import time
from deeplight.engine import cli
from deeplight.engine.output import packs
write = packs.PackStore.write
packs.PackStore.write = lambda *a: (write(*a), time.sleep(1))[0]
cli.main()
"""
"""deeplight-infer with a second between packs, so that a signal meets it at work on any machine."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_resumes_to_the_same_bytes(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    ntl = np.random.default_rng(0).gamma(0.5, 8, (20, 1500)).astype(np.float32)
    files = write_raster(tmp_path / "ntl.tif", ntl)
    arguments = ["--ntl", str(files), "--model", model, "--tiles", "64"]
    assert call(capfd, *arguments, "--out", tmp_path / "undisturbed.tif")[0] == 0
    out = tmp_path / "o.tif"
    command = [sys.executable, "-c", SLOW_WRITER, *arguments, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    parts = tmp_path / "o.tif.parts"
    while process.poll() is None and not list(parts.rglob("*.pack")):
        time.sleep(0.01)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), stderr
    if number != signal.SIGKILL:
        last = stderr.splitlines()[-1]
        assert (
            last.startswith(f"error: interrupted by {number.name}: all finished parts are kept")
            and "--resume" in last
        )
    assert not out.exists()
    status, _, stderr = call(capfd, *arguments, "--out", out, "--resume")
    assert status == 0 and "resuming: " in stderr
    assert out.read_bytes() == (tmp_path / "undisturbed.tif").read_bytes()
    assert not (tmp_path / "o.tif.parts").exists()


def test_help_fits_a_screen() -> None:
    text = CliRunner().invoke(cli.command, ["--help"], terminal_width=100).output
    lines = text.splitlines()
    assert len(lines) <= 56 and max(map(len, lines)) <= 100
    for option in ("--tiles", "--resume", "--dmo-bands", "--quicklook"):
        assert option in text


@pytest.mark.parametrize(
    ("place", "options", "unit"),
    [
        ("luxembourg", ["--dmo", "dmo.tif", "--dem", "dem.tif", "--dmo-scale", "0.0001,-0.1"], "DN"),
        ("us_nyc", ["--ntl-scale", "0.1"], "nW/cm²/sr"),
    ],
)
def test_real_rasters(
    shared_data: Path,
    model: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    options: list[str],
    unit: str,
) -> None:
    monkeypatch.chdir(shared_data.resolve() / place)
    out = tmp_path / "o.tif"
    status, _, stderr = call(
        capfd, "--ntl", "ntl.tif", *options, "--tiles", "48", "--out", out, "--model", model
    )
    assert status == 0, stderr
    with rasterio.open("ntl.tif") as lr, rasterio.open(out) as hr:
        assert (hr.height, hr.width) == (8 * lr.height, 8 * lr.width) and hr.crs == lr.crs
        # corners agree to a millionth of an HR pixel
        np.testing.assert_allclose(hr.bounds, lr.bounds, atol=1e-6 * abs(hr.transform.a))
        assert hr.units == (unit,)
        values, mask = hr.read(1), lr.read_masks(1)
        raw = lr.read(1)
    nodata = (mask == 0) | ~np.isfinite(raw.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(values), np.kron(nodata, np.ones((8, 8))) != 0)
    assert np.nanmin(values) >= 0
