"""Assembling a large, mostly empty scene: memory stays flat, time stays short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from rio_cogeo import cog_validate

WORKER = """
import json, re, sys, time
from pathlib import Path
import numpy as np
import rasterio, tifffile
from deeplight.engine.output.cog import assemble
from deeplight.engine.core.files import Disk
from deeplight.engine.output.packs import PackStore
from tests.engine.output.test_packs import output

class Quick(Disk):
    def sync(self, file):
        file.flush()
    def sync_folder(self, folder):
        pass

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

height, width, full = map(int, sys.argv[2:])
folder = Path(sys.argv[1])
spec = output(height, width, block=512)
store = PackStore(folder / "parts", spec, 2048, disk=Quick())
keys = store.keys()
rng = np.random.default_rng(1)
chosen = set(keys[:: max(1, len(keys) // full)][: full])
for key in keys:
    if key in chosen:
        window = store.window(key)
        store.write(key, rng.random((1, *window.shape), np.float32))
    else:
        store.write_empty(key)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
before = peak()
start = time.process_time()
stats = assemble(store, folder / "out.tif", disk=Quick())
seconds = time.process_time() - start
print(json.dumps([before, peak(), seconds, stats.blocks, stats.bytes]))
"""


def assembled(folder: Path, height: int, width: int, full: int) -> tuple[float, float, float, int, int]:
    """MB in use before assembling, peak MB then, CPU seconds, blocks, bytes; in a process of its own."""
    folder.mkdir()
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    command = [sys.executable, "-c", WORKER, str(folder), str(height), str(width), str(full)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    before, peak, seconds, blocks, size = json.loads(done.stdout)
    return before, peak, seconds, blocks, size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' peak of memory")
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    *_, few_blocks, _ = few = assembled(tmp_path / "small", 4000, 6000, 1)
    *_, blocks, size = large = assembled(tmp_path / "large", 60_000, 80_000, 4)
    print(f"small {few}, large {large}")
    assert blocks > 2 * few_blocks
    # the tables of 24 844 blocks with all their levels take a few MB; 200 times the pixels would take 19 GB
    assert large[1] < few[1] + 40
    # measured 0.7 s
    assert large[2] < 15
    path = tmp_path / "large" / "out.tif"
    assert path.stat().st_size == size
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as dataset:
        assert (dataset.height, dataset.width) == (60_000, 80_000)
        assert np.isfinite(dataset.read(1, window=Window(0, 0, 2048, 2048))).all()
        assert np.isnan(dataset.read(1, window=Window(2048, 0, 2048, 2048))).all()
