"""bench/asked.py: a row a runtime, and the GPUs whose results are stored; what was not measured is a dash."""

from __future__ import annotations

import json
from pathlib import Path

from bench import asked, bench_backends, bench_engine
from bench.network import RUNTIMES
from bench.results import load
from bench.traffic import network_bytes
from deeplight.engine.runtime.backends import BACKENDS
from tests.bench import runs


def store_gpu(folder: Path, **stages: object) -> Path:
    folder.mkdir(parents=True)
    for stage, rows in stages.items():
        (folder / f"{stage}.json").write_text(json.dumps(rows))
    return folder.parent


def test_every_runtime_of_a_run_has_a_row(tmp_path: Path) -> None:
    table = asked.table(load(runs.write(tmp_path)), tmp_path)
    # the largest tile of one: 2 HR Mpix in 2 s; the engine's 16 in 20 s, 2500 / 0.8 / 60 minutes
    assert table.rows == [
        ["Test CPU, 2 CPUs", "onnxruntime fp32", "1", "12 %", "0.8", "52.1"],
        ["Test CPU, 2 CPUs", "torch fp32", "0.667", "8 %", "–", "–"],
    ]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_a_gpu_is_named_where_its_runtime_ran(tmp_path: Path) -> None:
    document = runs.document()
    document["machine_info"]["deeplight"]["gpu"] = "Test GPU"
    for entry in document["benchmarks"]:
        if entry["extra_info"].get("work", {}).get("variant") == "torch fp32":
            entry["extra_info"]["work"]["variant"] = "tensorrt fp32"
    (tmp_path / "run.json").write_text(json.dumps(document))
    rows = asked.table(load(tmp_path / "run.json"), tmp_path).rows
    assert [row[:2] for row in rows][1] == ["Test GPU, 2 CPUs", "tensorrt fp32"]


def test_stored_gpus_follow(tmp_path: Path) -> None:
    network = {"what": "network", "preset": "tiny", "side": 256, "ms": 4.0}
    stored = store_gpu(
        tmp_path / "results" / "gpu-test-2026-01-01",
        facts=[
            {"what": "machine", "device": "Test GPU", "cpus": 16},
            {"what": "elementwise copy", "tb_per_s": 2.0},
        ],
        network=[
            {**network, "way": "both", "dtype": "fp16", "hr_mpix_per_s": 1000.0},
            {**network, "way": "eager", "dtype": "fp16", "hr_mpix_per_s": 500.0},
            {**network, "way": "both", "dtype": "fp32", "error": "out of memory"},
            {**network, "way": "both", "dtype": "bf16", "preset": "base", "hr_mpix_per_s": 300.0},
        ],
        engine=[
            {"what": "deeplight-infer", "scene": "a", "hr_mpix_per_s": 100.0},
            {"what": "deeplight-infer", "scene": "b", "hr_mpix_per_s": 50.0},
            {"what": "deeplight-infer", "scene": "b", "caches": "empty caches", "hr_mpix_per_s": 5.0},
            {"what": "deeplight-infer", "scene": "c", "error": "killed"},
            {"what": "device path", "hr_mpix_per_s": 900.0},
        ],
    )
    rows = asked.table(load(runs.write(tmp_path)), stored).rows
    share = 1e9 * network_bytes("tiny", 2) / 2e12
    assert rows[2:] == [["Test GPU, 16 CPUs", "torch fp16", "1,000", f"{100 * share:.0f} %", "50", "0.833"]]


def test_a_gpu_whose_stages_failed_has_dashes(tmp_path: Path) -> None:
    engine = [{"what": "deeplight-infer", "scene": "a", "hr_mpix_per_s": 50.0}]
    stored = store_gpu(tmp_path / "results" / "gpu-x", engine=engine)
    rows = asked.table(load(runs.write(tmp_path)), stored).rows
    assert rows[2:] == [["gpu-x", "torch fp16", "–", "–", "50", "0.833"]]
    assert asked.table(load(runs.write(tmp_path)), tmp_path / "nowhere").rows == rows[:2]


def test_every_backend_is_measured() -> None:
    assert {f"{name} fp32" for name in BACKENDS} <= {variant for _, _, variant in bench_backends.MEASURED}
    engines = next(m for m in bench_engine.test_strip.pytestmark if m.name == "parametrize")
    assert set(engines.args[1]) == set(RUNTIMES) >= {f"{name} fp32" for name in BACKENDS}
