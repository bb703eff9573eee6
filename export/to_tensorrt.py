"""Artifact → TensorRT plans for this machine's GPU. Strongly typed: the precision is that of the ONNX file."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.core.wording import mention
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.plans import FOLDER, PlanKey, save_plan
from deeplight.engine.runtime.tensorrt_log import log_of
from deeplight.export.tensorrt_network import ParsedNetwork, dynamic_profile, exact_profile, prepared

OLDEST = (10, 12)
COMPATIBILITY = {
    "none": "NONE",
    "ampere_plus": "AMPERE_PLUS",
    "same_compute_capability": "SAME_COMPUTE_CAPABILITY",
}


@dataclass(frozen=True)
class PlanOptions:
    """plugins: "off", "on", or "auto", which builds both and keeps the faster. tile: see PlanKey."""

    plugins: str = "auto"
    compatibility: str = "none"
    version_compatible: bool = False
    tile: tuple[int, int, int] = (1, 96, 96)


def require_builder() -> Any:
    """Return the module tensorrt. Raises InputError, which says what to install, where it is missing or too old."""
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as e:
        raise InputError(
            f"{mention(formats='tensorrt')} needs TensorRT ≥ 10.12 and a GPU ({e}): {install_command('tensorrt')}"
        ) from None
    version = tuple(int(n) for n in str(trt.__version__).split(".")[:2])
    if version < OLDEST:
        raise InputError(f"TensorRT {trt.__version__} is too old: install 10.12 or later")
    return trt


def build_plans(path: Path, precisions: Sequence[str], options: PlanOptions | None = None) -> list[Path]:
    """Build a plan of every ONNX precision asked for, into the artifact's folder plans/. Needs the GPU."""
    from deeplight.engine.runtime.backends.tensorrt_backend import key_here

    trt, options, artifact = require_builder(), options or PlanOptions(), load_artifact(path)
    built = []
    for precision in (p for p in precisions if p in artifact.offered()):
        model = artifact.read(precision)
        key = key_here(
            hashlib.sha256(model).hexdigest(),
            precision,
            compatibility=options.compatibility,
            version_compatible=options.version_compatible,
            tile=options.tile,
        )
        folder = path / FOLDER
        folder.mkdir(exist_ok=True)
        plan = build(trt, model, key, folder, options.plugins)
        built.append(save_plan(folder, key, plan))
    return built


def keep_timings(old: Path, new: Path) -> None:
    """Hand the timing caches of a folder of plans, where there is one, on to the folder that will replace it."""
    for cache in old.glob("*.timing"):
        new.mkdir(exist_ok=True)
        shutil.copy(cache, new)


def build(trt: Any, model: bytes, key: PlanKey, folder: Path, plugins: str) -> bytes:
    """Build one plan. With "auto" it is the faster of the plans with and without our kernels."""
    if plugins not in ("off", "on", "auto"):
        raise InputError(f"{mention(plugins=plugins)} is not one of auto, on, off")
    plans = []
    if plugins != "on":
        plans.append(serialise(trt, prepared(model, plugins=False), key, folder, plugins=False))
    if plugins != "off":
        from deeplight.export.plugins import register

        major, minor = key.capability.split(".")
        register(trt, importlib.import_module("tensorrt.plugin"), 10 * int(major) + int(minor))
        plans.append(serialise(trt, prepared(model, plugins=True), key, folder, plugins=True))
    return plans[0] if len(plans) == 1 else min(plans, key=lambda plan: seconds(trt, plan, key))


def serialise(trt: Any, model: bytes, key: PlanKey, folder: Path, *, plugins: bool) -> bytes:
    """Parse and build, with two profiles: the engine's tile batch, and any shape. Raises what
    ParsedNetwork raises."""
    network = ParsedNetwork(trt, model, ["PREFER_AOT_PYTHON_PLUGINS"] if plugins else [])
    config = network.configured([exact_profile(key.tile), dynamic_profile(key.tile)])
    if key.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    level = COMPATIBILITY[key.compatibility]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    timings = folder / key.timing_cache_name()
    cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    plan = network.built(config)
    timings.write_bytes(bytes(config.get_timing_cache().serialize()))
    return plan


def seconds(trt: Any, plan: bytes, key: PlanKey) -> float:
    """Return the median time of a tile of the engine's size, run by the backend."""
    import statistics
    import time

    import numpy as np

    from deeplight.engine.runtime.backends.tensorrt_backend import TensorRtBackend

    engine = trt.Runtime(log_of(trt)).deserialize_cuda_engine(plan)
    inputs = {s.name: np.ones(input_shape(s, *key.tile), np.float32) for s in INPUTS}
    times = []
    with TensorRtBackend(engine) as backend:
        for _ in range(20):
            start = time.perf_counter()
            backend.run(inputs)
            times.append(time.perf_counter() - start)
    return statistics.median(times[5:])
