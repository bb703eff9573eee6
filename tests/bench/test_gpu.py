"""bench/gpu.sh and its stages: every stage runs on the stand-in, failures stop nothing, and the page tells all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu import device_rates, engine, export, first_tile, kernels
from bench.gpu.stage import Rows, Settings, attempt
from bench.gpu.table import table
from deeplight.kernels import expected, launch
from deeplight.kernels.launch import Launch
from tests.conftest import ROOT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def tiny(out: Path, **more: Any) -> Settings:
    values: dict[str, Any] = {"device": "cpu", "side": 8, "strip": (16, 24), "presets": ("tiny",)}
    return Settings(out, **(values | {"dtypes": ("fp32",), "seconds": 120.0, "configs": False} | more))


def found(out: Path, stage: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / f"{stage}.json").read_text())
    return rows


def run_script(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out)}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@NO_GPU
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_script(tmp_path / "out", "x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.match(r"gpu\.sh: (PyTorch \S+ finds no CUDA GPU|\S+ has no triton)", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["../x"], "is not a plain name"), (["x", "--wheels", "/dev/null"], "has no \\*.whl files")],
)
def test_the_script_says_what_it_takes(tmp_path: Path, options: list[str], message: str) -> None:
    done = run_script(tmp_path / "out", *options)
    assert done.returncode == 2 and re.search(message, done.stderr) and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "facts,speed"], "--only: 'speed' is none of facts, kernels, network"),
        (["--presets", "huge"], "--presets: 'huge' is none of tiny, base"),
        (["--side", "12"], "--side must be a multiple of 8, not 12"),
        (["--strip", "64"], "--strip must be rows and columns such as 1024x1536, not '64'"),
        pytest.param([], "finds no CUDA GPU", marks=NO_GPU),
    ],
)
def test_the_command_line_names_what_it_takes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(["--out", str(tmp_path / "out"), *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_stages_end_within_five_minutes_and_exist() -> None:
    assert sum(program.SECONDS.values()) <= 300
    for stage in program.SECONDS:
        assert callable(import_module(f"bench.gpu.{stage}").measure)


def test_facts(tmp_path: Path) -> None:
    import_module("bench.gpu.facts").measure(tiny(tmp_path))
    machine, *rates = found(tmp_path, "facts")
    assert machine["torch"] == torch.__version__
    assert [r["what"] for r in rates] == ["elementwise copy", "memcpy"] and all(
        r["tb_per_s"] > 0 for r in rates
    )


@pytest.mark.slow
def test_network_in_all_ways_and_a_profile(tmp_path: Path) -> None:
    import_module("bench.gpu.network").measure(tiny(tmp_path, side=4))
    rows = found(tmp_path, "network")
    assert [r["way"] for r in rows if r["what"] == "network"] == list(import_module("bench.gpu.network").WAYS)
    assert all(r["hr_mpix_per_s"] > 0 for r in rows if r["what"] == "network"), rows
    assert rows[-1]["what"] == "profile" and rows[-1]["total_ms"] > 0
    assert all(len(row) == 3 for row in rows[-1]["kernels"])


def computing(ready: Launch) -> None:
    """In place of the interpreter: the definition; with one warp count wrong, and another that does not run."""
    if ready.config.warps == 8 and ready.config.block == 32:
        raise RuntimeError("out of resource")
    for output, right in expected.expected(ready).items():
        ready.arguments[output].copy_(right)  # type: ignore[union-attr]
        if ready.config.warps == 8 and ready.config.block == 64:
            ready.arguments[output][..., -1, -1] += 1e3  # type: ignore[index]


@pytest.mark.slow
def test_kernels_in_all_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", computing)
    monkeypatch.setattr(launch, "interpreting", lambda: True)
    monkeypatch.setattr(launch, "TRITON", True)
    kernels.measure(tiny(tmp_path, dtypes=("fp16", "fp32"), side=2, configs=True))
    rows = found(tmp_path, "kernels")
    launches = [r for r in rows if r.get("what") == "launch"]
    assert {r["kernel"] for r in launches} == set(launch.MODULES) and all(r["bytes"] > 0 for r in launches)
    by_config = {
        (r["block"], r["warps"]): r for r in launches if r["dtype"] == "fp16" and r["kernel"] == "fuse"
    }
    assert len(by_config) == 8, "all configurations in fp16"
    assert "does not run: out of resource" in by_config[32, 8]["problem"]
    assert "wrong values" in by_config[64, 8]["problem"] and by_config[128, 4]["ms"] > 0
    page = table(tmp_path)
    assert re.search(r"\| fuse \| tiny \| fp16 \| .* \| 2 of 8 \|", page), page


@pytest.mark.slow
def test_kernels_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    kernels.measure(tiny(tmp_path, side=2))
    rows = found(tmp_path, "kernels")
    assert all("ms" in r for r in rows if r.get("what") == "launch")
    assert sum(r.get("what") == "operation" and "kernel_ms" in r for r in rows) == 5, rows


@pytest.mark.slow
def test_engine_over_both_scenes(tmp_path: Path) -> None:
    engine.measure(tiny(tmp_path))
    rows = found(tmp_path, "engine")
    runs = {r["scene"]: r for r in rows if r["what"] == "deeplight-infer"}
    assert set(runs) == {"incompressible", "realistic"}
    assert all(r["exit"] == 0 and r["hr_mpix_per_s"] > 0 for r in runs.values()), runs
    assert [r["what"] for r in rows[-2:]] == ["link", "device"] and rows[-1]["hr_mpix_per_s"] > 0
    ratio = {r["scene"]: r["ratio"] for r in rows if r["what"] == "scene"}
    assert ratio["realistic"] > ratio["incompressible"]


def test_engine_without_rasterio_is_left_out_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "NEEDED", ("rasterio", "no_such_package"))
    engine.measure(tiny(tmp_path))
    assert "has no no_such_package: give their wheels with --wheels DIR" in table(tmp_path)


@pytest.mark.slow
def test_the_first_tile_of_two_processes(tmp_path: Path) -> None:
    first_tile.measure(tiny(tmp_path))
    rows = found(tmp_path, "first_tile")
    assert [r["process"] for r in rows] == ["fresh", "second"]
    assert all(r["first_tile_s"] > r["imports_s"] > 0 and r["failed"] is None for r in rows), rows


@pytest.mark.slow
def test_export_with_its_own_comparison(tmp_path: Path) -> None:
    export.measure(tiny(tmp_path))
    rows = found(tmp_path, "export")
    assert rows[0]["exit"] == 0, rows
    assert rows[1]["what"] == "parity" and rows[1]["found"]


def test_a_command_that_fails_says_its_last_line() -> None:
    done = export.run([sys.executable, "-c", "import sys; sys.exit('first\\nthe reason')"], 60)
    assert done["exit"] == 1 and done["error"] == "the reason"
    assert export.run([sys.executable, "-c", ""], 60)["exit"] == 0


def test_rows_are_on_disk_at_once_and_one_failure_stops_nothing(tmp_path: Path) -> None:
    rows = Rows(tiny(tmp_path), "facts")
    rows.add(what="one", value=1)
    assert found(tmp_path, "facts") == [{"what": "one", "value": 1}]

    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA error\nmore")

    attempt(rows, {"what": "two"}, fails)
    attempt(rows, {"what": "three"}, lambda: {"value": 3})
    assert found(tmp_path, "facts")[1:] == [
        {"what": "two", "error": "RuntimeError: CUDA error"},
        {"what": "three", "value": 3},
    ]


def test_a_stage_that_fails_is_named_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def stage(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        name = command[command.index("--here") - 1]
        ran.append(name)
        if name == "kernels":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 1 if name == "network" else 0)

    monkeypatch.setattr(subprocess, "run", stage)
    assert program.main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    assert ran == list(program.SECONDS)
    page = (tmp_path / "table.md").read_text()
    assert page.startswith("Failed: kernels (ended after 75 s), network (exit status 1).")
    assert page in capsys.readouterr().out


def test_a_core_leaves_room_for_its_halo(tmp_path: Path) -> None:
    assert device_rates.core_of(tiny(tmp_path, side=256)) == 216
    assert device_rates.core_of(tiny(tmp_path)) == 8
