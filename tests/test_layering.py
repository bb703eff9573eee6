"""Who may import whom: kernels ← engine ← train ← export; inference runtimes only in their backends."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import deeplight
from tests.conftest import ROOT
from tests.sources import tracked

LAYERS = ("kernels", "engine", "train", "export")
"""From the bottom up: a folder imports itself and those before it."""
FACE = "deeplight"
"""What `import deeplight` offers: above the engine, and no layer knows it."""
ROOMS = ("core", "raster", "network", "runtime", "output", "run", "stack", "zonal")
"""Of the engine, in the order of the data: a room imports itself and those before it; raster and network do not know
each other. engine/cli.py and engine/__init__.py stand outside."""
STRANGERS = {"raster": {"network"}, "network": {"raster"}}
TORCH_IN_ENGINE = {
    "engine/runtime/backends/engine_compute.py",
    "engine/runtime/backends/torch_backend.py",
    "engine/runtime/cuda_device.py",
    "engine/runtime/models.py",
}
NETWORK = "engine/network/"


def may_use_torch(path: str) -> bool:
    """Of the engine, only the network and what runs it; they alone reach the kernels."""
    return path in TORCH_IN_ENGINE or path.startswith(NETWORK)


RUNTIME_HOMES = {
    "onnxruntime": {"engine/runtime/backends/onnxruntime_backend.py"},
    "openvino": {"engine/runtime/backends/openvino_library.py"},
    "tensorrt": {"engine/runtime/backends/tensorrt_backend.py"},
    "ray": {"engine/run/workers/ray_pool.py"},
    "tensorrt_rtx": {"engine/runtime/backends/tensorrt_rtx_backend.py"},
}
CLICK_HOMES = {"cli.py", "data_cli.py", "eval_cli.py", "ablation.py", "real.py", "probes.py", "terminal.py"}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything in a module, which several tests look through."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """(dotted name, line) of every import, lazy ones too; relative ones start with a dot."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def offenders(folder: str, forbidden) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in tracked(folder)
        for name, line in imports(path)
        if forbidden(path.relative_to(ROOT).as_posix(), name)
    ]


def test_an_environment_among_the_sources_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "bench/peers/env/lib").mkdir(parents=True)
    for name in ("bench/job.py", "bench/peers/env/lib/relative.py"):
        (tmp_path / name).write_text("from . import job\n")
    for words in (["init", "--quiet"], ["add", "bench/job.py"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert tracked("bench", root=tmp_path) == (tmp_path / "bench/job.py",)


def test_environments_are_made_outside_the_source_folders() -> None:
    makefile = (ROOT / "Makefile").read_text()
    made = re.findall(r"-m venv (\S+)", makefile)
    assert made == ["$(VENV)", ".venv-peers"] and re.search(r"^VENV \?= \.venv$", makefile, re.MULTILINE)


def top(name: str) -> str:
    return name.split(".")[0]


def test_there_is_something_to_check() -> None:
    assert len(tracked("engine")) > 20


def layer_of(name: str) -> str:
    return name.removeprefix("deeplight.").split(".")[0] if name.startswith("deeplight.") else ""


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_point_down(folder: str) -> None:
    above = LAYERS[LAYERS.index(folder) + 1 :]
    assert offenders(folder, lambda path, name: layer_of(name) in above) == []


def test_the_public_face_stands_on_the_engine_alone() -> None:
    assert len(tracked(FACE)) > 5
    others = {"kernels", "train", "export"}
    assert (
        offenders(FACE, lambda path, name: layer_of(name) in others or top(name) in {"torch", "click"}) == []
    )
    assert (
        offenders(FACE, lambda path, name: top(name) in ("tests", "bench", "pytest") or name[0] == ".") == []
    )


@pytest.mark.parametrize("folder", LAYERS)
def test_no_layer_knows_the_public_face(folder: str) -> None:
    public = {"api", *deeplight.__all__}
    assert offenders(folder, lambda path, name: layer_of(name) in public) == []


def test_the_engine_reaches_kernels_through_the_network_alone() -> None:
    assert (
        offenders("engine", lambda path, name: layer_of(name) == "kernels" and not may_use_torch(path)) == []
    )


def test_every_module_of_the_engine_has_a_room() -> None:
    within = [p.relative_to(ROOT / "engine").parts for p in tracked("engine")]
    assert {parts[0] for parts in within if len(parts) == 1} == {"__init__.py", "cli.py"}
    assert {parts[0] for parts in within if len(parts) > 1} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_passed_in_order(room: str) -> None:
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], *STRANGERS.get(room, ())}

    def not_yet(path: str, name: str) -> bool:
        parts = name.split(".")
        return parts[:2] == ["deeplight", "engine"] and len(parts) > 2 and (parts[2] in (*forbidden, "cli"))

    assert offenders(f"engine/{room}", not_yet) == []


@pytest.mark.parametrize("folder", [*LAYERS, "tests", "bench"])
def test_imports_are_absolute_and_by_package_name(folder: str) -> None:
    def forbidden(path: str, name: str) -> bool:
        return name.startswith(".") or top(name) in LAYERS

    assert offenders(folder, forbidden) == []


@pytest.mark.parametrize("folder", LAYERS)
def test_the_product_does_not_import_tests_or_benchmarks(folder: str) -> None:
    assert offenders(folder, lambda path, name: top(name) in ("tests", "bench", "pytest")) == []


def test_engine_loads_torch_only_for_the_network() -> None:
    heavy = {"torch", "triton", "safetensors", "onnx", "onnxscript", "pyproj", "rio_cogeo"}
    readers = {"onnx": {"engine/runtime/backends/openvino_graph.py"}}

    def forbidden(path: str, name: str) -> bool:
        return top(name) in heavy and not may_use_torch(path) and path not in readers.get(top(name), ())

    assert offenders("engine", forbidden) == []


@pytest.mark.parametrize("runtime", sorted(RUNTIME_HOMES))
def test_runtimes_stay_in_their_backend(runtime: str) -> None:
    homes = RUNTIME_HOMES[runtime]
    assert offenders("engine", lambda path, name: top(name) == runtime and path not in homes) == []


@pytest.mark.parametrize("folder", LAYERS)
def test_click_stays_in_the_command_lines(folder: str) -> None:
    def forbidden(path: str, name: str) -> bool:
        return top(name) == "click" and Path(path).name not in CLICK_HOMES

    assert offenders(folder, forbidden) == []


@pytest.mark.parametrize("folder", [*LAYERS, FACE])
def test_functions_and_files_stay_short(folder: str) -> None:
    too_long = []
    for path in tracked(folder):
        text = path.read_text()
        if folder != "kernels" and len(text.splitlines()) > 400:
            too_long.append(f"{path.relative_to(ROOT)} has more than 400 lines")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and folder != "kernels":
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert too_long == []


SHARED_NAMES = {
    "Layer": "of the public face, over the engine's",
    "Run": "of the public face, over the engine's",
    "Scene": "of the public face, over the engine's",
    "Sensor": "one definition, in PyTorch and in NumPy",
}


def test_one_class_name_is_one_class() -> None:
    """Of public classes; who reads `Stage` must not have to look up which."""
    places: dict[str, list[str]] = {}
    for path in tracked(*LAYERS, FACE, "bench"):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {
        name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES
    } == {}


def test_a_file_runs_in_one_process(request: pytest.FixtureRequest) -> None:
    """With `make test`. What a file's tests share, such as an export of a minute, is made once."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith(f"@{__file__}"), "pytest-xdist does not know the file as a group"
