"""The same job with the tools that a user might choose instead. `make bench-peers-env` makes their environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import OUT
from bench.peers.job import VARIABLE, WHOLE, PeerJob, allowed, difference, interpreter, make_job, run_tool
from bench.peers.tool import NEEDS, OURS

JOB = PeerJob()


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rasters and weights that all tools share."""
    return make_job(JOB, tmp_path_factory.mktemp("peers"), OUT)


@pytest.mark.timeout(1200)
@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("tool", JOB.tools())
def test_peer(benchmark: BenchmarkFixture, job: Path, tool: str, lap: int) -> None:
    if not interpreter(tool):
        remedy = f"make bench-peers-env, or name an interpreter in {VARIABLE}"
        absent = "its runtime or precision is not on this machine" if tool.startswith(OURS) else remedy
        pytest.skip(f"{tool} cannot run: {absent}")
    out = job / f"{tool.replace(' ', '-')}.tif"
    took = benchmark.pedantic(run_tool, args=(tool, job, out), rounds=1)
    halo = json.loads((job / "job.json").read_text())["halo"]
    far = difference(out, job / f"{WHOLE.replace(' ', '-')}.tif", halo)
    if tool not in NEEDS:  # windows with a halo; other tools blend windows, or pad in their own way
        assert far <= allowed(tool)
    benchmark.extra_info.update(peer={**took, "difference": far, "size": JOB.size, "core": JOB.core}, lap=lap)


test_peer.laps = 2  # type: ignore[attr-defined]
