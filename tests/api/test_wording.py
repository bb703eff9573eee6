"""The library's sentences name parameters, and a command line has its flags in their place."""

from __future__ import annotations

import ast
import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import deeplight as dl
from deeplight.api.wording import arrays_named
from deeplight.engine.cli import command
from deeplight.engine.core.terminal import flags_of
from deeplight.engine.core.wording import in_flags, in_python, mention
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.zonal.cli import command as zonal_command
from tests.conftest import ROOT
from tests.sources import tracked

ROOMS = ("core", "raster", "network", "runtime", "output", "run", "zonal")
COMMANDS = {"cli.py", "kernel_tuning.py", "terminal.py", "wording.py"}
"""Modules of command lines: their texts are for a shell."""
FOREIGN = {
    "--not-masked ",
    "--crs EPSG:4326",
    "--transform '[pixel width, 0, west, 0, -pixel height, north]'",
}
"""Pieces of commands of `rio` that a module puts together from several texts."""
COPYING = re.compile(r"--(?:band|nodata|undo|like|cut|mean)\b")
"""Options of `deeplight-data copy`, whose commands, too, are put together."""
OTHERS = re.compile(r"(?:rio|deeplight-(?:data|train|export))\b[^;]*")


def templates(path: Path, pattern: str = r"(?<![-\w])--[a-z]") -> Iterator[tuple[int, str]]:
    """(line, text) of every text in a module that has the pattern; what is filled in is a role, as in `{role}_band`."""
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
        if re.search(pattern, text):
            yield node.lineno, text


OFFERED = {
    name
    for call in (dl.open_scene, dl.load_model, dl.refine, dl.refine_dates, dl.zonal)
    for name in signature(call).parameters
}
"""Parameters of the API."""
CALLED = flags_of(command)


def modules() -> Iterator[Path]:
    """Those of the library, without its command lines."""
    for path in tracked(*(f"engine/{room}" for room in ROOMS)):
        if path.suffix == ".py" and path.name not in COMMANDS:
            yield path


def test_no_message_of_the_library_names_a_flag() -> None:
    seen, named = 0, []
    for path in modules():
        for line, text in templates(path):
            seen += 1
            if text not in FOREIGN and "--" in COPYING.sub("", OTHERS.sub("", text)):
                named.append(f"{path.relative_to(ROOT)}:{line} {text}")
    assert seen > 5
    assert named == []


def mentions() -> Iterator[tuple[str, str]]:
    """(place, text) of every message of the library that names a parameter."""
    for path in modules():
        for line, text in templates(path, "`[a-z_]+[=`]"):
            if "\\" not in text:  # a pattern that searches messages
                yield f"{path.relative_to(ROOT)}:{line}", text


def test_every_parameter_that_a_message_names_is_one_of_the_api_and_of_the_command_line() -> None:
    seen, unknown = 0, []
    for place, template in mentions():
        text = re.sub(r"%\.?\d?[gsd]", "1", template)
        seen += 1
        names = re.findall(r"`([a-z_]+)[=`]", text)
        flags = flags_of(zonal_command) if "/zonal/" in place else CALLED
        flags = flags | CALLED  # maps are made by deeplight-infer
        if set(names) - OFFERED or "`" in in_flags(text, flags):
            unknown.append(f"{place} {text}")
    assert seen > 40
    assert unknown == []


def test_the_api_offers_every_option_of_the_library() -> None:
    scene = set(signature(dl.open_scene).parameters)
    assert {field.name for field in fields(SceneOptions)} - {"dmo_files", "offset"} == scene
    assert "offset" in signature(dl.refine_dates).parameters  # which makes that file
    run = set(signature(dl.load_model).parameters) | set(signature(dl.refine).parameters)
    of_run = {field.name for field in fields(RunOptions)}
    assert "dates" in signature(dl.refine_dates).parameters  # which become `when`
    # `beside` is told to processes of Ray by the one that starts them
    assert of_run - {"mode", "when", "beside"} == run - {
        "resume",
        "overwrite",
        "progress",
    }


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("pass `dmo_scale=1e-4`", "pass --dmo-scale 1e-4"),
        ("pass `dmo_scale=(0.0000275, -0.2)` where", "pass --dmo-scale 0.0000275,-0.2 where"),
        ("pass `ntl_scale=F or (F, OFFSET)` that", "pass --ntl-scale F[,OFFSET] that"),
        ("pass `ntl_nodata=-3.4e+38`; or", "pass --ntl-nodata -3.4e+38; or"),
        ("use `resume=True` to continue it", "use --resume to continue it"),
        ("use other `tiles`", "use other --tiles"),
        ('`tiles="9+1"`: the halo', "--tiles 9+1: the halo"),
        ("leave out `tiles=None`", "leave out --whole"),
        ("`compiling=False` does not try", "--compile off does not try"),
        ('leave out `bands=("isp", "quality")`, or', "leave out --bands isp,quality, or"),
        ('`dmo_bands={"blue": 1, "green": 2}` for', "--dmo-bands blue=1,green=2 for"),
        (
            '`ntl_band=1, ntl_valid="a b.tif", ntl_valid_band=2`',
            "--ntl-band 1 --ntl-valid 'a b.tif' --ntl-valid-band 2",
        ),
        (
            'add `ntl_crs="EPSG:4326", ntl_bounds=(WEST, SOUTH, EAST, NORTH)`',
            "add --ntl-crs EPSG:4326 --ntl-bounds WEST,SOUTH,EAST,NORTH",
        ),
        ("give `dmo` or `dmo[slot]`, or leave it out", "give --dmo or --dmo-band, or leave it out"),
        ('the file of `dmo["blue"]` was', "the file of --dmo-band blue was"),
        ("then make the same call with `resume=True`", "then run the same command with --resume"),
        ('use `device="cpu"` or another `backend`', "use --device cpu or another --backend"),
        ('as in `map_unit="nW/cm²/sr"`', "as in --map-unit nW/cm²/sr"),
        ('as in `dates=["2019", "2020-03"]` (one', "as in --dates 2019,2020-03 (one"),
        ("first: rio warp a.tif b.tif --like c.tif", "first: rio warp a.tif b.tif --like c.tif"),
        ("a file `of`.tif, and `no_parameter=1`", "a file `of`.tif, and `no_parameter=1`"),
        ("a file `tiles` =(.tif", "a file --tiles =(.tif"),
        ("a file `tiles=(`.tif", "a file `tiles=(`.tif"),
    ],
)
def test_a_command_line_says_flags(said: str, told: str) -> None:
    flags = CALLED | flags_of(zonal_command)
    assert in_flags(said, flags) == told
    assert in_flags(told, flags) == told


def test_the_api_says_parameters_as_they_are() -> None:
    assert in_python('use `precision="fp32"`, or smaller `tiles`') == 'use precision="fp32", or smaller tiles'


@pytest.mark.parametrize("name", ["a b.tif", "it's.tif", 'HDF5:"a.h5"://g', "back\\slash", "tick`tack.tif"])
def test_a_name_reaches_the_shell_as_it_is(name: str) -> None:
    told = in_flags(f"name one: {mention(ntl=name)}", CALLED)
    assert shlex.split(told) == ["name", "one:", "--ntl", name]


def test_log_lines_name_arrays_within_a_call_and_files_after_it(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("deeplight.engine.raster.lights")
    with arrays_named({"/vsimem/x.tif": "ntl"}):
        log.warning("NTL raster %s is dark", "/vsimem/x.tif")
    log.warning("NTL raster %s is dark", "/vsimem/x.tif")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["NTL array is dark", "NTL raster /vsimem/x.tif is dark"]


def test_a_full_memory_is_one_sentence() -> None:
    with pytest.raises(dl.DeepLightError, match="the memory is full: use smaller tiles"), arrays_named():
        raise MemoryError


def test_warnings_are_heard_where_nobody_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = logging.getLogger("deeplight.engine.raster.lights")
    with arrays_named():
        log.warning("pass %s", "this")
        log.info("nobody asked")
    assert capsys.readouterr().err == "warning: pass this\n"
    assert not logging.getLogger("deeplight").handlers
