"""Options as people give them: one given twice is never dropped in silence, and tiles are the default."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
import rasterio

from deeplight.engine import cli
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from tests.engine.analytic import write_analytic
from tests.engine.test_cli import call
from tests.scenes import north_up, ntl_file, write_raster

COMMANDS = {
    "deeplight-infer": "engine.cli:command",
    "deeplight-data": "train.data_cli:cli",
    "deeplight-train": "train.cli:command",
    "deeplight-score": "train.cli:score_command",
    "deeplight-eval": "train.eval_cli:command",
    "deeplight-export": "export.cli:command",
    "deeplight-zonal": "engine.zonal.cli:command",
}


def commands() -> list[tuple[str, click.Command]]:
    """Every command that pip installs, those within a group by its name and their own."""
    found = []
    for name, place in COMMANDS.items():
        module, attribute = place.split(":")
        command = getattr(import_module(f"deeplight.{module}"), attribute)
        inner = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        found += [(f"{name} {own}".strip(), each) for own, each in inner]
    return found


def single_options() -> list[tuple[str, click.Command, click.Option]]:
    return [
        (name, command, option)
        for name, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and not (option.multiple or option.is_flag)
    ]


def test_every_installed_command_is_looked_at() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    scripts = text.partition("[project.scripts]")[2].partition("\n[")[0]
    assert sorted(COMMANDS) == sorted(line.split(" = ")[0] for line in scripts.strip().splitlines())
    assert len(single_options()) > 60


def test_a_single_option_given_twice_is_refused_in_every_command() -> None:
    for name, command, option in single_options():
        for twice in ([f"{option.opts[-1]}=1", f"{option.opts[-1]}=2"], [option.opts[0], "1"] * 2):
            with pytest.raises(click.UsageError) as error:
                command.main(list(twice), standalone_mode=False)
            assert f"{option.opts[-1]} is given 2 times and takes one value" in str(error.value), name
            assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (["--dem", "a.tif", "--dem", "b.tif"], "--dem is given 2 times and takes one value: give it once"),
        (["--dmo", "B2.tif", "--dmo", "B3.tif"], "give it once, or repeat --dmo-band SLOT=FILE"),
        (["--dmo", "2", "--dmo=3", "--dmo", "4"], "--dmo is given 3 times"),
    ],
)
def test_what_a_person_reads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], twice: list[str], said: str
) -> None:
    status, stdout, stderr = call(capfd, *twice, "--out", tmp_path / "o.tif")
    assert (status, stdout) == (2, "") and stderr.startswith("error: ") and said in stderr
    assert stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_flags_and_options_for_several_may_be_repeated() -> None:
    given = cli.command.make_context(
        "deeplight-infer",
        [
            "--ntl",
            "n",
            "--out",
            "o",
            "--stac",
            "--stac",
            "--dmo-band",
            "red=a",
            "--dmo-band",
            "nir=b",
            "--ntl",
            "m",
        ],
    ).params
    assert given["ntl"] == ("n", "m")
    assert given["stac"] is True and given["dmo_files"] == (("red", "a"), ("nir", "b"))


def test_a_scene_too_large_for_one_piece_is_cut_without_asking(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight.engine.run.preparation.available_memory", lambda: 1 << 30)
    lights = np.random.default_rng(0).gamma(0.5, 8, (200, 500)).astype(np.float32)
    lights[:, 40:480] = np.nan  # so that few tiles have to be computed
    ntl = write_raster(tmp_path / "n.tif", lights, transform=north_up())
    model, report = write_analytic(tmp_path / "model"), tmp_path / "run.json"
    base = ("--ntl", ntl, "--out", tmp_path / "o.tif", "--model", model, "--report", report)
    status, _, stderr = call(capfd, *base, "--whole")
    assert status == 2 and "in one piece needs about" in stderr and "leave out --whole" in stderr
    status, _, stderr = call(capfd, *base)
    assert status == 0, stderr
    told = json.loads(report.read_text())
    assert told["options"]["tiles"] == "auto" and told["tiles"]["core"] in (64, 86, 128)


def test_a_run_from_python_is_in_tiles_too(tmp_path: Path) -> None:
    scene, model = SceneOptions(ntl_file(tmp_path)), str(write_analytic(tmp_path / "model"))
    outputs = []
    for name, more in (("auto", {}), ("whole", {"tiles": None})):
        report = infer(RunOptions(scene, tmp_path / f"{name}.tif", model, **more))
        assert report is not None and report.options["tiles"] == name
        assert (report.tiles["core"] is None) == (name == "whole")
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            outputs.append(dataset.read())
    np.testing.assert_array_equal(*outputs)
