"""The library's sentences in terms of parameters: every option that a message names is known, values are Python's."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import deeplight as dl
from deeplight.api.wording import FLAGS, ZONAL_FLAGS, in_parameters, parameters_named
from deeplight.engine.cli import command
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.zonal.cli import command as zonal_command
from tests.conftest import ROOT
from tests.sources import tracked

ROOMS = ("core", "raster", "network", "runtime", "output", "run", "zonal")
COMMANDS = {"cli.py", "kernel_library.py", "kernel_tuning.py", "terminal.py"}
"""Modules that are command lines: their texts are for a shell."""
FOREIGN = {
    "--not-masked ",
    "--crs EPSG:4326",
    "--transform '[pixel width, 0, west, 0, -pixel height, north]'",
}
"""Pieces of commands of `rio` that a module puts together from several texts."""
COPYING = re.compile(r"--(?:band|nodata|undo|like|cut|mean)\b")
"""Options of `deeplight-data copy`, whose commands, too, are put together."""
OTHERS = re.compile(r"(?:rio|deeplight-(?:data|train|export))\b[^;]*")


def templates(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every text in a module that names an option; what is filled in is a role, as in --{role}-band."""
    tree = ast.parse(path.read_text())
    inside = {
        id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values
    }
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(p.value if isinstance(p, ast.Constant) else "ntl" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docs:
            text = node.value
        if re.search(r"(?<![-\w])--[a-z]", text):
            yield node.lineno, text


def test_every_option_that_a_message_names_is_known() -> None:
    seen, unknown = 0, []
    for path in tracked(*(f"engine/{room}" for room in ROOMS)):
        for line, text in templates(path) if path.name not in COMMANDS else ():
            seen += 1
            left = COPYING.sub("", OTHERS.sub("", in_parameters(text)))
            if text not in FOREIGN and "--" in left:
                unknown.append(f"{path.relative_to(ROOT)}:{line} {left}")
    assert seen > 50
    assert unknown == []


def test_every_option_of_the_command_line_is_known() -> None:
    flags = {flag for option in command.params for flag in option.opts if flag.startswith("--")}
    assert flags - {"--version", "--help"} == set(FLAGS)


def test_parameters_are_those_of_the_api() -> None:
    offered = {
        name for call in (dl.open_scene, dl.load_model, dl.refine) for name in signature(call).parameters
    }
    named = {name.partition("=")[0] for name, _ in FLAGS.values()}
    assert named <= offered


def test_parameters_of_zonal_are_those_of_the_api_and_of_its_command() -> None:
    parameters = set(signature(dl.zonal).parameters)
    assert {name for name, _ in ZONAL_FLAGS.values()} == parameters - {"progress"}
    flags = {flag for option in zonal_command.params for flag in option.opts if flag.startswith("--")}
    assert flags - {"--version", "--help", "--out", "--plot", "--overwrite"} == set(ZONAL_FLAGS)


def test_the_api_offers_every_option_of_the_library() -> None:
    scene = set(signature(dl.open_scene).parameters)
    assert {field.name for field in fields(SceneOptions)} - {"dmo_files"} == scene
    run = set(signature(dl.load_model).parameters) | set(signature(dl.refine).parameters)
    assert {field.name for field in fields(RunOptions)} - {"mode"} == run - {
        "resume",
        "overwrite",
        "progress",
    }


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("pass --dmo-scale 1e-4", "pass dmo_scale=1e-4"),
        ("pass --dmo-scale 0.0001,-0.1 where", "pass dmo_scale=(0.0001, -0.1) where"),
        ("pass --ntl-scale F[,OFFSET] that", "pass ntl_scale=F or (F, OFFSET) that"),
        ("pass --ntl-nodata -3.4e+38; or", "pass ntl_nodata=-3.4e+38; or"),
        ("use --resume to continue it", "use resume=True to continue it"),
        ("use other --tiles", "use other tiles"),
        ("--tiles 9+1: the halo", 'tiles="9+1": the halo'),
        ("leave out --whole", "leave out tiles=None"),
        ("--compile off does not try", "compiling=False does not try"),
        ("leave out --bands isp,quality, or", 'leave out bands=("isp", "quality"), or'),
        ("--dmo-bands blue=1,green=2 for", 'dmo_bands={"blue": 1, "green": 2} for'),
        (
            "--ntl-band 1 --ntl-valid 'a b.tif' --ntl-valid-band 2",
            'ntl_band=1, ntl_valid="a b.tif", ntl_valid_band=2',
        ),
        (
            "add --ntl-crs EPSG:4326 --ntl-bounds 5,49,6,50",
            'add ntl_crs="EPSG:4326", ntl_bounds=(5, 49, 6, 50)',
        ),
        (
            "--ntl-crs says EPSG:32632: leave out --ntl-crs, which",
            "ntl_crs says EPSG:32632: leave out ntl_crs, which",
        ),
        ("give --dmo or --dmo-band, or leave it out", "give dmo, or leave it out"),
        ("the file of --dmo-band blue was", 'the file of dmo["blue"] was'),
        ("then run the same command with --resume", "then make the same call with resume=True"),
        ("use --device cpu or another --backend", 'use device="cpu" or another backend'),
        ("first: rio warp a.tif b.tif --like c.tif", "first: rio warp a.tif b.tif --like c.tif"),
        ("give my--out.tif", "give my--out.tif"),
        ("as in --map-unit nW/cm²/sr", 'as in map_unit="nW/cm²/sr"'),
        ("as in --dates 2019,2020-03 (one", "as in dates=['2019', '2020-03'] (one"),
        ("with --map-scale F[,OFFSET]", "with map_scale=F or (F, OFFSET)"),
    ],
)
def test_spelling(said: str, told: str) -> None:
    assert in_parameters(said) == told
    assert in_parameters(told) == told


def test_log_lines_are_in_parameters_within_a_call_and_as_they_are_after_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("deeplight.engine.raster.lights")
    with parameters_named():
        log.warning("pass --ntl-unit %s", "DN")
    log.warning("pass --ntl-unit %s", "DN")
    assert [record.getMessage() for record in caplog.records] == ['pass ntl_unit="DN"', "pass --ntl-unit DN"]


def test_a_full_memory_is_one_sentence() -> None:
    with pytest.raises(dl.DeepLightError, match="the memory is full: use smaller tiles"), parameters_named():
        raise MemoryError


def test_warnings_are_heard_where_nobody_listens_and_in_parameters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = logging.getLogger("deeplight.engine.raster.lights")
    with parameters_named():
        log.warning("pass --ntl-unit %s", "DN")
        log.info("nobody asked")
    assert capsys.readouterr().err == 'warning: pass ntl_unit="DN"\n'
    assert not logging.getLogger("deeplight").handlers
