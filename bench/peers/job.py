"""The job that all tools do, the processes that do it, and the comparison of results. PyTorch is not imported here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

from bench.cases import Case, ntl_grid, patch, write_raster
from bench.network import make_network
from bench.peers.tool import NEEDS, OURS, TOOLS, options_of, runtime_of
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from deeplight.engine.runtime.backends import open_backend

ROOT = Path(__file__).parent.parent.parent
VARIABLE = "DEEPLIGHT_PEERS_PYTHON"
WHOLE = "whole-image PyTorch"
DIFFERENCE = 1e-5
"""How much a tool may differ from whole-image PyTorch, as a share of the range."""
DIFFERENCE_BF16 = 5e-3
"""The same in bfloat16: about one step of its 8 bits (3.9e-3); 5.6e-4 was measured on the default job."""


@dataclass(frozen=True)
class PeerJob:
    """size: side of the scene. core: side of a tile. Both are in LR pixels."""

    size: int = 256
    core: int = 128

    def tools(self) -> list[str]:
        """The tools in the order in which they run. Ours runs with the tile of the others, one and two at a time, and
        with the tile that it chooses, in each runtime."""
        ours = (
            f"--tiles {self.core}",
            f"--tiles {self.core} --streams 2",
            "--tiles auto",
            "--tiles auto --backend openvino",
            "--tiles auto --backend openvino --precision bf16",
        )
        return [*TOOLS, *(f"{OURS} {options}" for options in ours)]


def make_job(job: PeerJob, folder: Path, networks: Path, checkpoint: Path | None = None) -> Path:
    """Write rasters on the HR grid (uint16 reflectance, int16 metres) and the LR grid (lights), weights and
    job.json."""
    network = make_network(networks, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((network.run, "run"), (network.artifact, "artifact")):
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    lr = ntl_grid(Case(job.size, job.size))
    lights = np.exp(6 * patch(1, seed=1)) / 8
    write_raster(folder / "ntl.tif", lr, lights.astype(np.float32), "zstd")
    slots = (patch(7, seed=2) * 3000 + 300).astype(np.uint16)
    write_raster(folder / "dmo.tif", lr.finer(), slots, "zstd", names=DMO_SLOTS, scale=1e-4)
    write_raster(folder / "dem.tif", lr.finer(), (patch(1, seed=3) * 1200).astype(np.int16), "zstd")
    halo = load_artifact(str(network.artifact)).manifest.halo_lr
    facts = {"size": job.size, "core": job.core, "halo": halo, "threads": available_cpus()}
    (folder / "job.json").write_text(json.dumps(facts))
    return folder


def peers_python() -> Path | None:
    """Return the interpreter of the peers' environment: DEEPLIGHT_PEERS_PYTHON, else that of .venv-peers; None if there
    is none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else ROOT / ".venv-peers/bin/python"
    return path if path.exists() else None


def interpreter(tool: str) -> str:
    """Return the interpreter to run a tool with; "" where the peers' environment or the tool in it is absent.

    Our tool runs in this environment. Tools that need nothing else run here too if there is no other environment.
    """
    peers = peers_python()
    if tool.startswith(OURS):
        return sys.executable if _runs(tool) else ""
    if peers is None:
        return "" if tool in NEEDS else sys.executable
    wanted = ["torch", "safetensors", "rasterio", *NEEDS.get(tool, ())]
    program = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {wanted})))"
    return str(peers) if subprocess.run([peers, "-c", program], check=False).returncode == 0 else ""


def _runs(tool: str) -> bool:
    """Whether this machine has the runtime that one of our rows names."""
    try:
        backend, precision = runtime_of(options_of(tool))
        open_backend(backend, load_artifact(DEFAULT_MODEL), precision=precision).close()
    except InputError:
        return False
    return True


def link_source(folder: Path) -> None:
    """Make the package `deeplight` in `folder` of links to the repository's source, for interpreters without it."""
    package = folder / "deeplight"
    package.mkdir()
    parts = [ROOT / name for name in ("kernels", "engine", "train", "export")]
    for part in (*(ROOT / "deeplight").glob("[!_]*"), ROOT / "deeplight/__init__.py", *parts):
        (package / part.name).symlink_to(part)


def run_tool(tool: str, job: Path, out: Path) -> dict[str, Any]:
    """Run a tool and return what it took, as bench/peers/tool.py writes it. Raises RuntimeError with its message if it
    fails."""
    result = out.with_suffix(".json")
    with tempfile.TemporaryDirectory() as view:
        link_source(Path(view))
        # our package is installed here; the peers' environment only sees the source of the network
        paths = [str(ROOT)] if tool.startswith(OURS) else [view, str(ROOT)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NO_ALBUMENTATIONS_UPDATE": "1"}
        command = [interpreter(tool), "-m", "bench.peers.tool", tool, str(job), str(out), str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=view, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{tool} failed:\n{done.stderr[-2000:]}")
    took: dict[str, Any] = json.loads(result.read_text())
    return took


def allowed(tool: str) -> float:
    """How much a tool may differ from whole-image PyTorch."""
    return DIFFERENCE_BF16 if tool.endswith("bf16") else DIFFERENCE


def difference(out: Path, whole: Path, halo: int) -> float:
    """Return the largest difference from whole-image PyTorch over the largest value, `halo` LR pixels inside the scene.

    Nearer to the edge each tool makes its own assumption about what lies beyond.
    """
    rim = slice(SCALE * halo, -SCALE * halo)
    with rasterio.open(out) as a, rasterio.open(whole) as b:
        got, want = a.read(1)[rim, rim], b.read(1)[rim, rim]
        assert a.transform.almost_equals(Affine(*b.transform[:6]), precision=1e-9), "not on the same grid"
    assert np.isfinite(want).all() and want.std() > 0
    return float(np.abs(got - want).max() / want.max())
