"""What all benchmarks share: laps, limits of the machine, the control, and rates with units in every result.

Benchmarks that take `lap` or `measure` run LAPS times. All of them run once in each lap, so that a busy minute of the
machine affects all in the same way. The report takes the median over the laps.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, patch, write_case
from bench.machine import Limits, control_s, machine_facts, measure_limits
from bench.network import Network, make_network
from bench.rates import Work, rates
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.runtime.artifact import DEFAULT_MODEL

LAPS = int(os.environ.get("DEEPLIGHT_BENCH_LAPS", "3"))
OUT = Path(__file__).parent / "out"
LOAD_BEFORE = os.getloadavg()[0]
"""Note the load of the machine before the benchmarks themselves cause any."""
Measure = Callable[..., Any]
_seen: dict[str, Any] = {"limits": Limits(), "control": [], "skipped": {}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a parameter `lap` to every benchmark that takes it or `measure`."""
    if "lap" in metafunc.fixturenames:
        laps = min(LAPS, getattr(metafunc.function, "laps", LAPS))
        metafunc.parametrize("lap", range(laps), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all benchmarks of a lap before those of the next."""
    items.sort(key=lambda item: item.callspec.params.get("lap", 0) if hasattr(item, "callspec") else 0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what was skipped and why, each reason once, for the report."""
    if report.skipped and isinstance(report.longrepr, tuple):
        why = report.longrepr[2].removeprefix("Skipped: ")
        if why not in _seen["skipped"].values():
            _seen["skipped"][report.nodeid.split("::")[-1]] = why


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Hook of pytest-benchmark."""
    machine_info["deeplight"] = machine_facts() | {"load": LOAD_BEFORE}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Hook of pytest-benchmark: add limits, control and rates. Rates need the limits of the whole run."""
    limits, control = _seen["limits"], _seen["control"]
    output_json["deeplight"] = {
        "limits": asdict(limits),
        "control_s": {"median": statistics.median(control), "least": min(control), "most": max(control)}
        if control
        else {},
        "laps": LAPS,
        "skipped": _seen["skipped"],
    }
    for entry in output_json["benchmarks"]:
        work = entry["extra_info"].get("work")
        if work:
            entry["extra_info"].update(rates(work, entry["stats"]["median"], limits))


@pytest.fixture
def lap(request: pytest.FixtureRequest) -> int:
    """The number of the pass over all benchmarks."""
    return int(request.param)


@pytest.fixture(scope="session")
def limits_of_lap() -> Callable[[int], None]:
    """Measures the machine's limits once a lap; the best of all laps counts."""
    done: set[int] = set()
    pixels = (patch(1, seed=2)[0, :512, :512] * 3000 + 300).astype(np.uint16)
    frame = zstandard.ZstdCompressor(level=1).compress(pixels.tobytes())

    def measure(lap: int) -> None:
        if lap not in done:
            done.add(lap)
            _seen["limits"] = _seen["limits"].best(measure_limits(frame, pixels.nbytes))

    return measure


@pytest.fixture
def measure(benchmark: BenchmarkFixture, lap: int, limits_of_lap: Callable[[int], None]) -> Measure:
    """Checks the result of a call, then times the call.

    measure(call, check, work, rounds=3, **facts): check(call()) raises AssertionError where the result is wrong; that
    first call also warms up. Returns the last call's result. facts go into the result as they are; they may be changed
    afterwards through `benchmark.extra_info`.
    """
    limits_of_lap(lap)

    def run(
        call: Callable[[], Any], check: Callable[[Any], None], work: Work, rounds: int = 3, **facts: Any
    ) -> Any:
        check(call())
        control = control_s()
        _seen["control"].append(control)
        benchmark.extra_info.update(
            work=asdict(work), lap=lap, control_s=control, load=os.getloadavg()[0], **facts
        )
        return benchmark.pedantic(call, rounds=rounds)

    return run


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Warn that timings beside other work mean little."""
    if available_cpus() / 2 < LOAD_BEFORE:
        print(f"\nthe machine is busy (load {LOAD_BEFORE:.1f}): trust ratios, not rates")
    yield


@pytest.fixture(scope="session")
def model() -> str:
    """The artifact to measure: DEEPLIGHT_BENCH_MODEL, else the one that ships."""
    return os.environ.get("DEEPLIGHT_BENCH_MODEL", DEFAULT_MODEL)


@pytest.fixture(scope="session")
def network() -> Network:
    """Weights that PyTorch and ONNX Runtime share; see bench/network.py."""
    return make_network(OUT)


@pytest.fixture(scope="session")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    """NTL, DMO and DEM for the benchmarks of the host, compressed by zstd."""
    return write_case(tmp_path_factory.mktemp("rasters"), CASES["host"])
