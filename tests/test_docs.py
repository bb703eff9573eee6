"""The API's page: every public name is on it, under its heading."""

from __future__ import annotations

import re

import deeplight
from tests.conftest import ROOT

UNLISTED = {"__version__", "Interrupted"}
"""Interrupted is raised by command lines alone."""


def test_the_page_of_the_api_has_every_public_name() -> None:
    told = re.findall(r"^::: deeplight\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert set(told) == set(deeplight.__all__) - UNLISTED


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}
