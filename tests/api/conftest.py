"""A scene on disk and a model whose result is known, for the public API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import deeplight as dl
from tests.engine.analytic import write_analytic
from tests.scenes import SceneFiles, write_scene


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    return write_scene(tmp_path_factory.mktemp("api-scene"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_analytic(tmp_path_factory.mktemp("api-model") / "analytic")


@pytest.fixture
def scene(files: SceneFiles) -> Iterator[dl.Scene]:
    with dl.open_scene(files.ntl, files.dmo, files.dem) as scene:
        yield scene


@pytest.fixture(scope="session")
def model(folder: Path) -> Iterator[dl.Model]:
    with dl.load_model(folder) as model:
        yield model
