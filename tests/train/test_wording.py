"""Messages of training and export name parameters, and their command lines have flags in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from deeplight.engine.core.terminal import flags_of
from deeplight.engine.core.wording import in_flags
from deeplight.export.cli import command as export_command
from deeplight.train.cli import command as train_command
from deeplight.train.data_cli import cli as data_commands
from deeplight.train.eval_cli import command as eval_command
from tests.api.test_wording import COPYING, OTHERS, templates
from tests.conftest import ROOT
from tests.sources import tracked

COMMAND_LINES = {"cli.py", "data_cli.py", "eval_cli.py", "ablation.py", "real.py", "probes.py"}
DATA = [flags_of(each) for each in data_commands.commands.values()]
COMMANDS = {
    "train/clips": [*DATA, flags_of(train_command), flags_of(eval_command)],
    "train/synth": DATA,
    "train/fit": [flags_of(train_command)],
    "train/evaluation": [flags_of(eval_command)],
    "train/trials": [flags_of(train_command)],
    "export": [flags_of(export_command)],
}
"""Folder → the flags of each command that may print its messages."""


def messages(pattern: str) -> Iterator[tuple[Path, int, str]]:
    for path in tracked("train", "export"):
        if path.name not in COMMAND_LINES:
            for line, text in templates(path, pattern):
                yield path.relative_to(ROOT), line, text


def test_no_message_of_the_library_names_a_flag() -> None:
    named = [
        f"{path}:{line} {text}"
        for path, line, text in messages(r"(?<![-\w])--[a-z]")
        if "--" in COPYING.sub("", OTHERS.sub("", text))
    ]
    assert named == []


def test_every_parameter_that_a_message_names_is_one_of_a_command() -> None:
    seen, unknown = 0, []
    for path, line, text in messages("`[a-z_]+[=`]"):
        seen += 1
        folder = next(folder for folder in COMMANDS if path.is_relative_to(folder))
        if all("`" in in_flags(text, flags) for flags in COMMANDS[folder]):
            unknown.append(f"{path}:{line} {text}")
    assert seen > 40
    assert unknown == []


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        (train_command, ["--config", "no such.toml"], "--config 'no such.toml' cannot be read"),
        (train_command, ["--set", "batch"], "--set batch is not TABLE.KEY=VALUE"),
        (train_command, ["--set", "degradation.noise=0.1"], "give --protocol wald, or leave it out"),
        (data_commands, ["clip", "--place", "here"], "give --ntl, or --ntl-hr with --degrade"),
        (data_commands, ["clip", "--place", "here", "--clip", "8,9"], "give --clip N,LEAST with LEAST"),
        (
            data_commands,
            ["clip", "--place", "here", "--block", "8"],
            "give --block 256 or more, and --buffer 0",
        ),
    ],
)
def test_a_command_line_says_flags(tmp_path: Path, command, arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "out")])
    assert sentence in str(done.exception) and "`" not in str(done.exception)
    assert not re.search(r"\w=", str(done.exception).replace("KEY=VALUE", "").replace("batch=8", ""))
