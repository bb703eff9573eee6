"""`deeplight-data inspect`: numbers against NumPy, the contact sheet, and clips that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.output.colormap import NODATA_RGB
from deeplight.train.clips import inspect_stats
from deeplight.train.clips.inspect_sheet import MOST, write_sheet
from deeplight.train.clips.inspect_stats import LayerTally, inspect_tree
from deeplight.train.clips.tree import ClipTree
from deeplight.train.data_cli import cli
from tests.train.clips.places import cut, ntl_place, scene_place


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    files, _ = scene_place(folder)
    cut(folder / "tree", files)
    return folder / "tree"


def test_numbers_are_those_of_the_pixels(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_stats, "_SIDE", 3)  # several windows a clip, the last ones smaller
    source = ClipTree.open(tree, "all")
    found = inspect_tree(source, Silent())
    samples = [source.read(i, Window(0, 0, *source.size(i))) for i in range(len(source))]
    for layer, name, band in (
        ("ntl", "ntl", 0),
        ("ntl_hr", "ntl_hr", 0),
        ("dmo nir", "dmo", 4),
        ("dem", "dem", 0),
    ):
        valid = np.concatenate([getattr(s, f"{name}_valid").ravel() for s in samples]) == 1
        values = np.concatenate([getattr(s, name)[band].ravel() for s in samples])[valid]
        facts = found.layers[layer]
        assert facts["valid_share"] == pytest.approx(valid.mean())
        assert (facts["min"], facts["max"]) == (values.min(), values.max())
        assert facts["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
        assert facts["negative_share"] == pytest.approx((values < 0).mean())
        for p in (1, 50, 99):
            assert facts[f"p{p:02d}"] == pytest.approx(np.percentile(values, p), rel=1e-5)
    assert list(found.layers)[:2] == ["ntl", "ntl_hr"] and len(found.layers) == 11
    assert found.sum_lights == {"nW/cm²/sr": pytest.approx(sum(r.sum_lights for r in source.rows), rel=1e-6)}
    assert found.clips == {"test": 1, "train": 4, "val": 1} and found.places == {"here": 6}
    assert found.unreadable == []


def test_percentiles_of_many_values_come_from_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_stats, "_MOST_KEPT", 5000)
    rng = np.random.default_rng(0)
    tally, values = LayerTally(), rng.normal(5, 2, (40, 1, 60, 60)).astype(np.float32)
    for part in values:
        tally.add(part, np.ones_like(part))
    assert sum(k.size for k in tally.kept) <= 5000 and tally.valid == values.size
    facts = tally.facts()
    for p in (1, 50, 99):
        # some thousands of values: the standard error of the first percentile is about 0.15
        assert facts[f"p{p:02d}"] == pytest.approx(np.percentile(values, p), abs=0.4)
    assert LayerTally().facts()["mean"] is None


def test_the_command_prints_and_writes(tree: Path, tmp_path: Path) -> None:
    sheet, report = tmp_path / "s.png", tmp_path / "r.json"
    command = ["inspect", str(tree), "--sheet", str(sheet), "--json", str(report)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.exception
    for text in ("clips: 1 test, 4 train, 1 val", "dmo swir2", "unreadable: 0", "sum of lights"):
        assert text in done.output
    assert json.loads(report.read_text())["layers"]["isp"]["max"] <= 1
    again = CliRunner().invoke(cli, command)
    assert isinstance(again.exception, InputError) and "--overwrite" in str(again.exception)
    assert CliRunner().invoke(cli, [*command, "--overwrite", "--split", "test"]).exit_code == 0
    for bad in (["inspect", str(tmp_path)], ["inspect", str(tree), "--sheet", str(tmp_path / "s.gif")]):
        assert isinstance(CliRunner().invoke(cli, bad).exception, InputError)


def test_the_sheet_shows_every_layer(tree: Path, tmp_path: Path) -> None:
    source = ClipTree.open(tree, "all")
    assert write_sheet(source, tmp_path / "sheet.png") == 6
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.dtype == np.uint8 and picture.ndim == 3
    thumbs = (picture.reshape(-1, 3) == NODATA_RGB).all(axis=1).mean()
    assert 0.005 < thumbs < 0.3  # the holes of the scene
    assert len(np.unique(picture.astype(np.int32) @ (1 << 16, 1 << 8, 1))) > 1000


def test_a_large_tree_shows_an_even_choice(tmp_path: Path) -> None:
    cut(tmp_path / "tree", ntl_place(tmp_path, 72, 72))
    source = ClipTree.open(tmp_path / "tree", "all")
    assert len(source) == 36
    assert write_sheet(source, tmp_path / "sheet.png") == MOST == 24
    height, width = np.asarray(Image.open(tmp_path / "sheet.png")).shape[:2]
    assert 0.4 < height / width < 2.5


def test_unreadable_clips_are_named_and_the_rest_is_told(tmp_path: Path) -> None:
    cut(tmp_path / "tree", ntl_place(tmp_path))
    source = ClipTree.open(tmp_path / "tree", "all")
    name = source.rows[3].clip
    (tmp_path / "tree" / name / "ntl.tif").write_bytes(b"II*\0nothing")
    sheet = tmp_path / "s.png"
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path / "tree"), "--sheet", str(sheet)])
    assert type(done.exception) is DeepLightError and "1 of 12 clips cannot be read" in str(done.exception)
    assert name in done.output and "unreadable: 1" in done.output and sheet.exists()


def test_every_option_has_help() -> None:
    bare = [
        p.name for c in cli.commands.values() for p in c.params if isinstance(p, click.Option) and not p.help
    ]
    assert bare == []


def test_help_fits_a_screen_and_needs_no_torch() -> None:
    code = (
        "import sys; from deeplight.train.data_cli import cli; cli.main(sys.argv[1:], standalone_mode=False)"
    )
    for command in ("clip", "inspect", "blackmarble", "synth"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, command, "--help"],
            capture_output=True, text=True, check=True, env={"COLUMNS": "100", "PATH": ""},
        )  # fmt: skip
        assert len(done.stdout.splitlines()) <= 56, command
        assert all(len(line) <= 100 for line in done.stdout.splitlines())
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not loaded & {"torch", "rasterio", "numpy.fft", "PIL"}, command
