"""The image is what README.md installs, made of the files that a wheel is made of."""

from __future__ import annotations

import json
import re
import tomllib

from tests.conftest import ROOT
from tests.test_wheel import FILES, FOLDERS

DOCKERFILE = (ROOT / "Dockerfile").read_text()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def told(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.+)$", DOCKERFILE, re.MULTILINE)


def test_its_commands_are_those_of_the_readme() -> None:
    assert told("RUN") and all(f"\n$ {command}\n" in README for command in told("RUN"))
    (entry,) = told("ENTRYPOINT")
    assert f"\n$ {json.loads(entry)[0]} " in README


def test_its_python_is_one_that_the_project_names() -> None:
    (version,) = re.findall(r"^python:(\d+\.\d+)$", "\n".join(told("FROM")), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_it_is_given_what_a_wheel_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    given = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and given == {*FOLDERS, *FILES} - {"Makefile", "constraints.txt"}
