"""What the programs tell: how far a long step is, what the result is made of, and where the light has moved."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeplight.engine.core.progress import BYTES, Bar, Lines
from deeplight.engine.network.config import preset
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.output.facts import Facts
from deeplight.engine.output.lights import block_changes, compact_light, light_warnings
from deeplight.engine.raster.units import RADIANCE_UNIT
from deeplight.train.evaluation.page import as_html
from deeplight.train.evaluation.scores import LAYERS, by_layers, rows_of, table
from deeplight.train.evaluation.verdict import verdict
from deeplight.train.fit import logs
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.pool import SyntheticSource, build_pool
from tests.engine.analytic import write_analytic
from tests.field.programs import run
from tests.scenes import ARC, NORTH, WEST, north_up, write_raster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def test_lines_of_things_bytes_and_pixels() -> None:
    stream = io.StringIO()
    lines = Lines(stream, every_s=0.0)
    for total, unit, what, told in (
        (4, "regions", "making regions", r"making regions:  25%  1 of 4 regions  \d+:\d\d left"),
        (4, BYTES, "assembling", r"assembling:  25%  \d+ MB/s  \d+:\d\d left"),
        (4, "HR pixels", "", r" 25%  \d+\.\d\d HR Mpix/s  \d+:\d\d left"),
    ):
        lines.start(total, unit, what)
        time.sleep(0.01)
        lines.advance()
        assert re.fullmatch(told, stream.getvalue().splitlines()[-1])


def test_a_bar_shows_one_step_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    for what in ("making regions", "scoring"):
        with bar:
            bar.start(2, "regions", what)
            bar.advance()
            bar.advance()
    assert [task.description for task in bar._bar.tasks] == ["scoring"]
    assert bar._bar.tasks[0].fields["rate"] == "2 of 2 regions"


def test_training_tells_how_far_it_is_before_its_first_step() -> None:
    """Regions are counted as they are made, and a line gives the time that is left."""
    stream = io.StringIO()
    reporter = logs.StageLines(stream, every_s=0.0)
    reporter.start("making regions", 0, 3)
    made = build_pool(range(900_000, 900_003), 3, 1, reporter.advance)
    told = stream.getvalue().splitlines()
    assert len(made) == len(told) == 3
    assert all(re.fullmatch(rf"making regions {i}/3 \d+:\d\d left", line) for i, line in enumerate(told, 1))
    reporter.start("whole", 0, 10)
    reporter.step("whole", 0, 10, {"loss": 1.0})
    assert re.search(r"whole step 0/10 loss 1 .* s/step \d+:\d\d left", stream.getvalue())


SEED = 900_001
"""A country whose lights are displaced."""


@pytest.fixture(scope="module")
def batch() -> Batch:
    seeds = range(SEED, SEED + 1)
    source = SyntheticSource(build_pool(seeds, 1), seeds)
    return next(iter(FixedBatches(source, 1, 8)))


def test_the_summary_lists_what_the_data_have(batch: Batch) -> None:
    """No row for layers that are not there, no column for an offset that nobody knows."""
    torch.manual_seed(0)
    network = DeepLightSR(preset("tiny")).eval()
    assert list(rows_of(True, True)) == list(LAYERS)
    assert list(rows_of(True, False)) == ["DMO", "none"] and list(rows_of(False, False)) == ["none"]
    calls: list[int] = []
    scores = by_layers(network, [batch], rows_of(False, False), lambda: calls.append(1))
    assert "offset error" in table(scores) and len(calls) == 1
    unknown = Batch(**{**vars(batch), "offset": None})
    lines = table(by_layers(network, [unknown], rows_of(False, False))).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["layers given", "---", "none", "bicubic"]
    assert len({line.count("|") for line in lines}) == 1 and "offset" not in lines[0]


def facts(log: str) -> str:
    (line,) = [line for line in log.splitlines() if "of the output" in line or "the output is made" in line]
    return line


def test_one_sentence_says_what_the_output_had(tmp_path: Path, model: str) -> None:
    """A file that reaches over the scene and has gaps is not "100 % of the scene"."""
    write_raster(tmp_path / "n.tif", np.full((24, 24), 5, np.float32))
    bands = np.full((4, 24, 24), 0.2, np.float32)
    bands[:, :, 12:] = np.nan
    write_raster(tmp_path / "d.tif", bands, names=["blue", "green", "red", "nir"])
    call = ("--ntl", "n.tif", "--out", "o.tif", "--model", model, "--overwrite")
    done = run("deeplight-infer", *call, "--dmo", "d.tif", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(
        r"of the output's valid pixels (\S+)% had DMO \(its file reaches over 100% of the scene, with gaps\) "
        r"and (\S+)% NTL alone",
        facts(done.stderr),
    )
    assert (
        told
        and float(told[1]) == pytest.approx(50, abs=3)
        and float(told[1]) + float(told[2]) == pytest.approx(100)
    )
    assert "of the scene" not in done.stderr.replace(facts(done.stderr), "")
    half = north_up(ARC, WEST + 12 * ARC, NORTH)
    write_raster(tmp_path / "d.tif", bands[:, :, :12], names=["blue", "green", "red", "nir"], transform=half)
    done = run("deeplight-infer", *call, "--dmo", "d.tif", cwd=tmp_path)
    assert "DMO: its file reaches over 50 % of the scene" in done.stderr and "with gaps" not in done.stderr
    done = run("deeplight-infer", *call, cwd=tmp_path)
    assert facts(done.stderr) == "the output is made of NTL alone: neither DMO nor DEM was given"


def test_changes_of_blocks_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    lr = rng.gamma(0.4, 4.0, (29, 35)).astype(np.float32)
    valid = (rng.random(lr.shape) < 0.9).astype(np.uint8)
    radiance = np.kron(lr * rng.uniform(0.3, 1.9, lr.shape), np.ones((8, 8))).astype(np.float32)
    radiance[np.kron(valid, np.ones((8, 8))) == 0] = np.nan
    top, left = 5, 17
    lit = moved = 0
    for row in range(8, top + 29 - 7, 8):
        for col in range(24, left + 35 - 7, 8):
            part = np.s_[row - top : row - top + 8, col - left : col - left + 8]
            known = valid[part] != 0
            came = float(lr[part][known].sum(dtype=np.float64))
            at = ((row - top) * 8, (col - left) * 8)
            fine = radiance[at[0] : at[0] + 64, at[1] : at[1] + 64]
            went = float(np.nansum(fine, dtype=np.float64)) / 64
            if known.any() and came / known.sum() >= 1:
                lit += 1
                moved += abs(went / came - 1) > 0.2
    assert 0 < moved < lit
    seen = np.nan_to_num(radiance).reshape(29, 8, 35, 8).mean(axis=(1, 3))
    assert block_changes(lr, valid, seen, (top, left)) == (lit, moved)
    assert block_changes(lr[:7], valid[:7], seen[:7], (0, 0)) == (0, 0)


def test_compact_lights_are_peaks_and_nothing_else() -> None:
    lr = np.full((9, 9), 0.2, np.float32)
    lr[2, 2], lr[5:] = 40.0, 10.0
    lr[0, 8] = 0.9  # not lit
    valid = np.ones(lr.shape, np.uint8)
    assert compact_light(lr, valid) == 40.0
    valid[2, 2] = 0
    assert compact_light(lr, valid) == 0.0


def test_the_warning_names_the_cause_that_is_known() -> None:
    calm = Facts(
        valid=64000, lights_in=1000, lights_in_clamped=1000, lights_out=1049, lit_blocks=50, moved_blocks=5
    )
    assert list(light_warnings(calm, RADIANCE_UNIT, RADIANCE_UNIT)) == []
    for change, unit, expected in (
        (
            {"lights_out": 880},
            RADIANCE_UNIT,
            "the sum of lights changed by -12%: use `conserve_radiance=True`",
        ),
        ({"moved_blocks": 20}, RADIANCE_UNIT, "40% of the lit 8×8 LR blocks changed by more than 20%: use"),
        ({"lights_out": 1200}, "DN", "perhaps because the NTL is in DN"),
        ({"lights_out": 800, "clamped": 9}, RADIANCE_UNIT, "because 9 pixels are beyond the range"),
        (
            {"lights_out": 800, "lights_compact": 500},
            RADIANCE_UNIT,
            "likely because 50% of the light is in single",
        ),
    ):
        (line,) = light_warnings(Facts(**{**vars(calm), **change}), unit, RADIANCE_UNIT)
        assert expected in line, line
    rest = Facts(**{**vars(calm), "squares_in": 100.0, "squares_left": 1.0})
    (line,) = light_warnings(rest, RADIANCE_UNIT, RADIANCE_UNIT, conserved=True)
    assert "differs from the input by 10% (rms)" in line and "narrower one with `psf`" in line
    assert list(light_warnings(rest, RADIANCE_UNIT, RADIANCE_UNIT)) == []
    (line,) = light_warnings(Facts(**{**vars(calm), "lights_out": 880}), "DN", RADIANCE_UNIT, conserved=True)
    assert "conserve_radiance" not in line
    dim = Facts(**{**vars(calm), "lights_out": 1200})
    (line,) = light_warnings(dim, "", RADIANCE_UNIT, doubtful=True)
    assert "perhaps because the NTL is not in nW/cm²/sr, as the warning about it says" in line
    (line,) = light_warnings(dim, "", RADIANCE_UNIT, doubtful=True, found=lambda: ", because of X")
    assert "by +20%, because of X: use" in line
    dark = Facts(valid=64)
    assert list(light_warnings(dark, "DN", RADIANCE_UNIT)) == []


def test_sharp_points_are_warned_about_and_conserved(tmp_path: Path, model: str) -> None:
    """A model that blurs, on points that it does not keep."""
    y, x = np.mgrid[:40, :40]
    points = sum(
        200 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.7)
        for cy, cx in ((8, 9), (8, 28), (29, 10), (28, 29))
    )
    write_raster(tmp_path / "n.tif", (0.2 + points).astype(np.float32))
    call = ("--ntl", "n.tif", "--out", "o.tif", "--overwrite", "--model", model)
    told = run("deeplight-infer", *call, "--psf", "0.5", cwd=tmp_path).stderr
    assert re.search(
        r"warning: .*changed by .*, likely because \d+% of the light is in single pixels .*use --conserve",
        told,
    ), told
    told = run("deeplight-infer", *call, "--psf", "0.5", "--conserve-radiance", cwd=tmp_path).stderr
    assert "warning" not in told, told
    # no light looks so through a blur of 3 LR pixels
    told = run("deeplight-infer", *call, "--psf", "3", "--conserve-radiance", cwd=tmp_path).stderr
    assert re.search(r"differs from the input by \d+% \(rms\).*give a narrower one with --psf", told), told


def test_black_marble_without_its_scale_is_told(shared_data: Path, tmp_path: Path) -> None:
    ntl = shared_data / "us_philly" / "ntl.tif"
    told = run("deeplight-infer", "--ntl", ntl, "--out", "o.tif", cwd=tmp_path).stderr
    assert "for Black Marble without its scale pass --ntl-scale 0.1" in told
    scaled = run("deeplight-infer", "--ntl", ntl, "--ntl-scale", "0.1", "--out", "p.tif", cwd=tmp_path).stderr
    assert "--ntl-scale" not in scaled and "perhaps because the NTL" not in scaled


def test_a_large_scene_s_picture_shows_the_scene_and_its_brightest_place(tmp_path: Path, model: str) -> None:
    ntl = np.full((200, 330), 0.1, np.float32)
    ntl[150:170, 270:300] = 60
    ntl[:40, :60] = np.nan
    write_raster(tmp_path / "n.tif", ntl)
    call = ("--ntl", "n.tif", "--out", "o.tif", "--model", model, "--tiles", "256", "--quicklook", "q.png")
    done = run("deeplight-infer", *call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "q.png") as image:
        seen = np.asarray(image)
    frame = (seen == (90, 220, 255)).all(axis=2)
    rows, cols = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
    left, top, scale = 28, 28 + 66, 2  # margin; title and names; 330 LR pixels are drawn 2 pixels wide each
    assert cols[0] < left + 270 * scale and cols[-1] > left + 300 * scale
    assert rows[0] < top + 150 * scale and rows[-1] > top + 170 * scale
    assert seen.shape[1] > 330 * scale + 3 * 700
    bright = seen[top + 160 * scale, left + 285 * scale].astype(int)
    assert bright.sum() > 500, "the place in the scene is drawn with its light"


def test_the_page_has_tables_and_begins_with_the_verdict() -> None:
    stratum = {"psnr_log1p": 30.0, "sum_of_lights_error": -0.03, "interval": {"psnr_log1p_gain": [1.5, 2.5]}}
    plain = {**stratum, "psnr_log1p": 28.0, "interval": {}}
    methods = {name: {"strata": {"all": s}} for name, s in (("network", stratum), ("bicubic", plain))}
    values = {"methods": methods, "settings": {"bootstrap": {"level": 0.95}}}
    better = verdict(values)
    assert better == (
        "DeepLight is better than bicubic interpolation (+2.00 dB PSNR of log1p radiance, 95% interval +1.50 to "
        "+2.50); its sum of lights is 3.0% too low"
    )
    stratum["interval"] = {"psnr_log1p_gain": [-0.5, 2.5]}
    assert "is not surely better than bicubic" in verdict(values)
    stratum |= {"psnr_log1p": 27.0, "interval": {}}
    assert "is worse than bicubic interpolation (-1.00 dB" in verdict(values)
    methods["network, no auxiliary"] = {"strata": {"all": {**plain, "psnr_log1p": 26.5}}}
    assert "; 0.50 dB less without daytime bands and elevation;" in verdict(values)

    body = as_html(f"# {better}\n\nfor <b>a & b</b>\n\n| method | RMSE |\n| --- | --- |\n| network | 1.2 |\n")
    assert body.startswith("<h1>DeepLight is better")
    assert "<td>network</td>" in body and "<pre>" not in body and "&lt;b&gt;a &amp; b" in body
