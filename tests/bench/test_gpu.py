"""The stages of bench/gpu.sh: every stage runs on the stand-in, failures stop nothing, and the page tells all."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.bench_kernels import OPS
from bench.gpu import __main__ as program
from bench.gpu import engine, export, kernels, network
from bench.gpu.network import as_sent
from bench.gpu.stage import Rows, StageSettings, attempt
from bench.gpu.table import table
from bench.network import random_model
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.precision import in_precision
from deeplight.engine.runtime.compare import difference
from deeplight.kernels import expected, launch
from deeplight.kernels.launch import Launch
from deeplight.kernels.table import Config

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def tiny(out: Path, **more: Any) -> StageSettings:
    values: dict[str, Any] = {"device": "cpu", "side": 8, "strip": (16, 24), "presets": ("tiny",)}
    return StageSettings(out, **(values | {"dtypes": ("fp32",), "seconds": 120.0, "configs": False} | more))


def found(out: Path, stage: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / f"{stage}.json").read_text())
    return rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "facts,speed"], "--only: 'speed' is none of facts, kernels, network"),
        (["--presets", "huge"], "--presets: 'huge' is none of tiny, base"),
        (["--side", "12"], "--side must be a multiple of 8, not 12"),
        (["--seconds", "0"], "--seconds must be a positive number, not 0.0"),
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_captured_tile_begins_with_pixels_as_they_are_sent(precision: str) -> None:
    model = in_precision(random_model("tiny"), precision)
    divided, size = Divided(model, lambda part: part), (2, 3)
    inputs = [torch.rand(input_shape(spec, 1, *size)) for spec in INPUTS]
    with torch.inference_mode():
        aux = as_sent(divided, inputs[0])()
        made = divided(inputs, inputs[0].clone(), known=False, aux=aux)
    for layer, channels in zip(aux, (8, 2), strict=True):
        assert layer.shape == (1, channels, 16, 24) and layer.dtype == divided.dtype
        assert int((layer[:, -1] == 0).sum()) == 1, "all pixels lie in the raster, but for its last corner"
        assert 0.1 < float(layer[:, :-1].float().std()) < 4, "standardised"
    assert made[0].shape == (1, 1, 16, 24) and bool(made[0].isfinite().all())


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
    timed = {r["way"]: r for r in rows if r["what"] == "network"}
    assert sorted(timed) == sorted(network.WAYS) and len(rows) == len(timed) + 1
    assert all(r["hr_mpix_per_s"] > 0 for r in timed.values()), rows
    (profile,) = (r for r in rows if r["what"] == "profile")
    assert profile["total_ms"] > 0 and all(len(row) == 3 for row in profile["kernels"])
    ratio = timed["compiled"]["ms"] / timed["both"]["ms"]
    assert f" | {ratio:.2f} |" in table(tmp_path), "the target's ratio"


def test_what_targets_ask_for_is_measured_first(tmp_path: Path) -> None:
    settings = StageSettings(tmp_path, device="cuda")
    steps = list(network._steps(settings, first=True))
    assert steps[:4] == [("tiny", "both"), ("base", "both"), ("tiny", "compiled"), ("base", "compiled")]
    assert {step for _, step in steps} == {*network.WAYS, "capture", "profile"} and len(set(steps)) == len(
        steps
    )
    assert {step for _, step in network._steps(settings, first=False)} == {
        "both",
        "compiled",
        "kernels",
        "eager",
    }


def launches_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in rows if r.get("what") == "launch"]


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
    launches = launches_of(rows)
    # of `tiny`'s width refine has a kernel of its own
    assert {r["kernel"] for r in launches} == set(launch.MODULES) - {"refine"}
    assert all(r["bytes"] > 0 for r in launches)
    by_config = {
        (r["block"], r["warps"], r["stages"]): r
        for r in launches
        if r["dtype"] == "fp16" and r["kernel"] == "fuse"
    }
    assert len(by_config) == 16, "all configurations in fp16"
    for stages in {stages for _, _, stages in by_config}:
        assert "does not run: out of resource" in by_config[32, 8, stages]["problem"]
        assert "wrong values" in by_config[64, 8, stages]["problem"]
        assert by_config[128, 4, stages]["ms"] > 0
    page = table(tmp_path)
    assert re.search(r"\| fuse \| tiny \| fp16 \| .* \| 4 of 16 \|", page), page
    order = list(dict.fromkeys((r["what"], r.get("dtype")) for r in rows))
    assert order == [("compile", None), ("operation", "fp16"), ("launch", "fp16"), ("launch", "fp32")], (
        "what targets ask for comes first"
    )
    settings = tiny(tmp_path, dtypes=("fp16", "fp32"), side=2, configs=True)
    usual = [(ready.kernel, config) for _, _, ready, (config,) in kernels._work(settings)]
    first = [(r["kernel"], Config(r["block"], r["warps"], r["stages"])) for r in launches_of(rows)]
    assert first[: len(usual)] == usual, "and what is only chosen from last"


def test_the_page_has_the_operations_share_of_the_copy(tmp_path: Path) -> None:
    Rows(tiny(tmp_path), "facts").add(what="elementwise copy", tb_per_s=4.0)
    what = {"what": "operation", "op": "restore", "preset": "tiny", "dtype": "fp16"}
    Rows(tiny(tmp_path), "kernels").add(**what, bytes=2e8, reference_ms=1.0, kernel_ms=0.1)
    (line,) = (line for line in table(tmp_path).splitlines() if "restore" in line)
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["0.1000", "50 %"]


@pytest.mark.slow
def test_kernels_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    kernels.measure(tiny(tmp_path, side=2))
    rows = found(tmp_path, "kernels")
    assert all("ms" in r for r in rows if r.get("what") == "launch")
    timed = {r["op"] for r in rows if r.get("what") == "operation" and "kernel_ms" in r}
    assert timed == set(OPS), rows


@pytest.mark.parametrize("stage", [engine, export])
def test_a_stage_without_its_packages_is_left_out_with_a_word(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "NEEDED", {"click": "click", "no_such_module": "no-such-package"})
    stage.measure(tiny(tmp_path))
    assert "has no no-such-package: give their wheels with --wheels DIR" in table(tmp_path)
    name = stage.__name__.rpartition(".")[2]
    assert program.lacking(tmp_path, name) == "no-such-package"


@pytest.mark.slow
def test_export_with_its_own_comparison(tmp_path: Path) -> None:
    export.measure(tiny(tmp_path))
    rows = found(tmp_path, "export")
    assert rows[0]["exit"] == 0, rows
    assert rows[1]["what"] == "parity" and rows[1]["found"]
    assert "comparisons, nearest to its limit" in table(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["scratch"]


def test_a_command_that_fails_says_its_last_line() -> None:
    done = export.run([sys.executable, "-c", "import sys; sys.exit('first\\nthe reason')"], 60)
    assert done["exit"] == 1 and done["error"] == "the reason"
    assert export.run([sys.executable, "-c", ""], 60)["exit"] == 0
    late = export.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert list(late) == ["left_out"] and "was ended after 0 s" in late["left_out"], (
        "a lack of time is no failure"
    )


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
    problems = {"kernels": "ended after 55 s", "network": "exit status 1"}
    clock = [0.0]

    def stage(command: list[str], seconds: float) -> str:
        name = command[command.index("--seconds") - 1]
        ran.append(name)
        assert seconds == pytest.approx(program._limit(program.parse(command[3:]), name))
        assert seconds == pytest.approx(program.SECONDS[name], abs=0.1), "those before took all of theirs"
        clock[0] += seconds
        return problems.get(name, "")

    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    monkeypatch.setattr(program, "run_stage", stage)
    assert program.main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    assert ran == list(program.SECONDS)
    page = (tmp_path / "table.md").read_text()
    assert page.startswith("Failed: kernels (ended after 55 s), network (exit status 1).")
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"what": "memcpy", "tb_per_s": 1.0}], ""),
        ([{"what": "launch", "error": 0.3}, {"what": "launch", "error": None}], ""),
        ([{"what": "memcpy", "error": "RuntimeError: CUDA error"}], "1 measurements failed"),
        (
            [{"what": "deeplight-infer", "exit": 0}, {"what": "deeplight-infer", "exit": 1}],
            "1 measurements failed",
        ),
    ],
)
def test_rows_that_failed_make_the_stage_fail(
    rows: list[dict[str, Any]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(command: list[str], seconds: float) -> str:
        (tmp_path / "facts.json").write_text(json.dumps(rows))
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch" / "dmo.tif").write_text("gigabytes")
        return ""

    monkeypatch.setattr(program, "run_stage", stage)
    status = program.main(["--out", str(tmp_path), "--device", "cpu", "--only", "facts"])
    assert program.failed_rows(tmp_path, "facts") == said
    assert status == int(bool(said))
    assert ("Failed: facts (1 measurements failed)." in (tmp_path / "table.md").read_text()) == bool(said)
    assert not (tmp_path / "scratch").exists()


def test_rows_of_an_older_run_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facts.json").write_text(json.dumps([{"what": "memcpy", "error": "an older run's"}]))
    monkeypatch.setattr(program, "run_stage", lambda *_: "")
    assert program.main(["--out", str(tmp_path), "--device", "cpu", "--only", "facts"]) == 0


WITH_A_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def gone(process: int, patience: float = 10.0) -> bool:
    """Whether a process ends, or waits for somebody to ask for its status."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
@pytest.mark.parametrize(
    ("sleeps", "status", "seconds", "said"),
    [(120, 0, 3.0, "ended after 3 s"), (0, 0, 60.0, ""), (0, 3, 60.0, "exit status 3")],
    ids=["takes too long", "ends", "fails"],
)
def test_what_a_stage_started_ends_with_it(
    sleeps: int, status: int, seconds: float, said: str, tmp_path: Path
) -> None:
    noted = tmp_path / "pid"
    command = [sys.executable, "-c", WITH_A_CHILD, str(noted), str(sleeps), str(status)]
    assert program.run_stage(command, seconds) == said
    assert gone(int(noted.read_text()))


def test_a_stage_without_its_packages_shows_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(command: list[str], seconds: float) -> str:
        name = command[command.index("--seconds") - 1]
        rows = Rows(tiny(tmp_path), name)
        if name == "engine":
            assert rows.lack({"click": "click", "no_such_module": "no-such-package"})
        return problems.get(name, "")

    problems: dict[str, str] = {}
    monkeypatch.setattr(program, "run_stage", stage)
    options = ["--out", str(tmp_path), "--device", "cpu", "--only", "facts,engine"]
    assert program.main(options) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("NOT MEASURED for want of packages: engine (no-such-package). Give their wheels")
    assert (tmp_path / "table.md").read_text().startswith("Left out for want of packages: engine (no-such-")
    problems["facts"] = "exit status 1"
    assert program.main(options) == 1


def test_a_package_that_lacks_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_another.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    rows = Rows(tiny(tmp_path), "engine")
    assert not rows.lack({"click": "click", "needs_another": "needs-another"})
    assert rows.lack({"needs_another": "needs-another"}, own="needs_another")
    assert "no_such_module (No module named 'no_such_module')" in found(tmp_path, "engine")[0]["left_out"]


def test_the_page_names_the_comparison_nearest_to_its_limit(tmp_path: Path) -> None:
    def row(case: str, precision: str, error: float) -> dict[str, object]:
        values = np.array([1.0, 1.0 + error])
        return difference(case, "torch cuda:0", precision, values, np.ones(2)).to_dict()

    rows = [row("town", "fp32", 1e-6), row("town", "fp16", 2e-3), row("odd", "bf16", 3e-3)]
    export_rows = Rows(tiny(tmp_path), "export")
    export_rows.add(
        what="parity", found={"passed": True, "rows": rows, "not_run": ["not compared: tensorrt"]}
    )
    page = table(tmp_path)
    assert "parity: 3 comparisons, nearest to its limit fp16 on torch cuda:0 in 'town'" in page
    assert "relative L2 error 1.4e-03 of at most 2.0e-03" in page and "- not compared: tensorrt" in page
    export_rows.add(what="parity", found={"rows": [*rows, row("hole", "fp32", math.nan)], "not_run": []})
    assert "nearest to its limit fp32 on torch cuda:0 in 'hole': relative L2 error nan" in table(tmp_path)
