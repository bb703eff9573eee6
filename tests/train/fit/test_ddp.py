"""Two processes under torchrun (gloo, CPU) make the run of one: the same data, shared, the same losses and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(out: Path, processes: int) -> None:
    out.mkdir()
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launcher, "-m", "tests.train.fit.ddp_run", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ddp")
    run(folder / "two", 2)
    run(folder / "one", 1)
    return folder / "two", folder / "one"


def reads(out: Path, rank: int) -> list[tuple[int, ...]]:
    return [tuple(r) for r in json.loads((out / f"reads{rank}.json").read_text())]


def test_both_end_with_the_same_weights(runs: tuple[Path, Path]) -> None:
    a, b = (load_file(runs[0] / f"weights{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_windows_of_one_are_shared(runs: tuple[Path, Path]) -> None:
    probes = 3
    alone, first, second = reads(runs[1], 0), reads(runs[0], 0), reads(runs[0], 1)
    assert len(alone) == probes + 8 * 4 + 3 * 12
    assert Counter(first[probes:]) + Counter(second[probes:]) == Counter(alone[probes:])
    assert len(first) - len(second) == 12, "of three windows the first process takes two, of eight half"


def test_losses_and_weights_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    tables = [
        [line.split(",") for line in (out / "run" / "metrics.csv").read_text().splitlines()[1:]]
        for out in runs
    ]
    two, one = ([float(r[3]) for r in rows if not r[1].startswith("validation")] for rows in tables)
    names = [r[2] for r in tables[1]]
    assert names.count("loss") == 16 and names.count("radiance") == 12
    # sums in another order; Adam divides by small second moments, which makes a little more of it with every step
    assert two == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    a, b = (load_file(out / "weights0.safetensors") for out in runs)
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-4), name
