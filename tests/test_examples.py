"""The examples run as they are, as scripts in an empty folder; the built-in model gives way to one that is small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.conftest import ROOT
from tests.engine.analytic import write_analytic
from tests.scenes import write_raster

EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path, **changes: str) -> str:
    """What an example prints. changes: text → text, each of which must be in it."""
    script = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    (folder / name).write_text(script)
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_map(tmp_path: Path) -> None:
    model = write_analytic(tmp_path / "model")
    printed = run("first_map.py", tmp_path, **{"deeplight-tiny": str(model)})
    assert "Scene of 64×64 LR pixels" in printed
    assert "Result of 256×256 pixels (radiance, isp, offset)" in printed
    assert (tmp_path / "first-map/lights.png").is_file()
    with rasterio.open(tmp_path / "first-map/lights.tif") as file:
        assert file.shape == (512, 512)


@pytest.mark.slow
def test_totals_by_region(tmp_path: Path) -> None:
    model = write_analytic(tmp_path / "model")
    printed = run("totals_by_region.py", tmp_path, **{"deeplight-tiny": str(model)})
    rows = [line.split() for line in printed.splitlines() if line.startswith("20")]
    east, west = ([float(row[i]) for row in rows] for i in (1, 2))
    assert [row[0] for row in rows] == ["2019", "2020", "2021"]
    assert west[1] / west[0] == pytest.approx(1.2, abs=0.03)
    assert west[2] / west[0] == pytest.approx(1.4, abs=0.03)
    assert east[2] / east[0] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_own_region(tmp_path: Path) -> None:
    printed = run("own_region.py", tmp_path)
    assert "in fp32, torch on" in printed
    with rasterio.open(tmp_path / "region/lights.tif") as file:
        assert file.shape == (1024, 1024)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_are_linked(example: Path) -> None:
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text()


SBATCH = """#!/bin/bash
# Runs what it is given at once, as SLURM would sooner or later.
for argument in "$@"; do
    case "$argument" in
        --array=*) range=${argument#--array=} ;;
        --wrap=*) wrap=${argument#--wrap=} ;;
        --dependency=*) [ "$argument" = --dependency=afterany:17 ] || exit 3 ;;
    esac
done
if [ -z "${range:-}" ]; then bash -c "$wrap"; exit; fi
for task in $(seq "${range%-*}" "${range#*-}"); do SLURM_ARRAY_TASK_ID=$task bash -c "$wrap" >&2 || exit 1; done
echo 17
"""


def container(job: str) -> str:
    """The command of a Kubernetes job's container."""
    lines = job.partition(">-\n")[2].partition("volumeMounts:")[0].splitlines()
    return " ".join(map(str.strip, lines)).replace("--threads 8", "--threads 1")


@pytest.mark.slow
def test_jobs_for_clusters(tmp_path: Path) -> None:
    """SLURM's commands and Kubernetes' containers, run here one after the other, write what one process does."""
    write_raster(
        tmp_path / "viirs.tif", np.random.default_rng(1).gamma(0.5, 8.0, (4, 600)).astype(np.float32)
    )
    layers = ("--dmo landsat.tif --dem srtm.tif", f"--tiles 64 --model {write_analytic(tmp_path / 'model')}")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])

    def shell(script: str, **environment: str) -> None:
        for old, new in (layers, ("shards=8", "shards=2"), ("threads=8", "threads=1")):
            script = script.replace(old, new)
        command = ["bash", "-c", script]
        environment = {**os.environ, "PATH": path, **environment}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    out = tmp_path / "lights.tif"
    shell(f"deeplight-infer --ntl viirs.tif {layers[0]} --out lights.tif --threads 1")
    expected = out.read_bytes()
    out.unlink()
    shell((EXAMPLES / "cluster/slurm.sh").read_text())
    assert out.read_bytes() == expected
    out.unlink()
    job = (EXAMPLES / "cluster/kubernetes.yaml").read_text()
    for index in range(8):
        shell(container(job), JOB_COMPLETION_INDEX=str(index))
    shell(container(re.sub(r" --shard .*", " --resume", job)))  # as the sed in its head
    assert out.read_bytes() == expected
