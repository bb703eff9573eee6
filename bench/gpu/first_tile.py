"""Seconds from the start of a process to its first tile: with empty caches, and again with what that left in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.gpu.stage import Rows, StageSettings, attempt

FRESH = 0.8
"""Part of the stage's time for the process that compiles everything; the other one finds it all in the caches."""

CHILD = """
import json, sys, time
import torch
from pathlib import Path
from bench.gpu.network import built
from bench.gpu.stage import StageSettings
from deeplight.engine.network.compiled import compiled
from deeplight.kernels.dispatch import never_interpreted
from deeplight.kernels.float32 import exact_float32
device, side, dtype, begin = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
imported = time.time()
network, inputs = built("tiny", dtype, StageSettings(Path(), device, side))
fast = compiled(network, torch.device(device))
with exact_float32(), torch.inference_mode(), never_interpreted():
    float(fast(*inputs)[0].sum())
first = time.time()
found = {"imports_s": imported - begin, "first_tile_s": first - begin, "failed": getattr(fast, "failed", None)}
print(json.dumps(found))
"""


def measure(settings: StageSettings) -> None:
    """Rows of first_tile.json."""
    rows = Rows(settings, "first_tile")
    with tempfile.TemporaryDirectory() as cache:
        for process, share in (("fresh", FRESH), ("second", 1.0)):
            seconds = share * settings.left
            what = {"what": "first tile", "process": process}
            if not attempt(rows, what, lambda seconds=seconds: _child(settings, cache, seconds)):
                if process == "fresh":
                    rows.add(left_out="the second process, since the first did not fill the caches")
                return


def _child(settings: StageSettings, cache: str, seconds: float) -> dict[str, Any]:
    own = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", CHILD, settings.device, str(settings.side), settings.dtypes[0]]
    command.append(str(time.time()))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
