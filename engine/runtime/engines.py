"""Engines of TensorRT for RTX in a model folder: the one that runs on a GPU, or the sentence that says why none does.

An engine is native code. One that this machine did not build runs only where it is trusted. Standard library only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from deeplight.engine.core.errors import ArtifactError, InputError
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.plans import was_built_here

TARGETS: dict[str, tuple[str, ...]] = {"rtx": ("8.6", "8.9", "12.0"), "rtx-turing": ("7.5",)}
"""Engine → compute capabilities of the GPUs that it runs on: GeForce and RTX PRO of the generations Ampere, Ada and
Blackwell share one, which would be slower with Turing (GeForce RTX 20, T4) among them."""


@dataclass(frozen=True)
class Gpu:
    """A GPU. capability: as in "8.9". driver: the CUDA version of its driver, as in 13000."""

    name: str
    capability: str
    driver: int = 0


def engine_name(target: str, precision: str) -> str:
    """File name of an engine in the model folder."""
    return f"model.{target}.engine" if precision == "fp32" else f"model.{precision}.{target}.engine"


def choose_engine(artifact: Artifact, precision: str, gpu: Gpu, library: str) -> bytes:
    """The verified engine of a precision that runs on `gpu`, built here or trusted. library: version of tensorrt-rtx.

    Raises InputError where there is none for it, ArtifactError where it is of another version, model or machine.
    """
    every = [capability for capabilities in TARGETS.values() for capability in capabilities]
    if gpu.capability not in every:
        raise InputError(
            f"TensorRT for RTX does not run on {gpu.name} (compute capability {gpu.capability}), it runs on GeForce "
            f'and RTX PRO GPUs of {", ".join(sorted(every, key=float))}: use `backend="torch"` or `backend="tensorrt"`'
        )
    engines = {n: e for n, e in artifact.manifest.engines.items() if e.precision == precision}
    name = next((n for n, e in engines.items() if gpu.capability in e.capabilities), None)
    again = f"deeplight-export {artifact.path} --out DIR --format onnx,tensorrt-rtx --precision {precision}"
    if name is None:
        have = ", ".join(c for e in engines.values() for c in e.capabilities) or "none"
        raise InputError(
            f"{artifact.manifest.name} has no engine of TensorRT for RTX in {precision} for {gpu.name} (compute "
            f"capability {gpu.capability}), it has: {have}; build one: {again}"
        )
    engine = engines[name]
    if engine.library != library:
        raise ArtifactError(
            f"{name} was built by TensorRT for RTX {engine.library}, and {library} is installed, which does not run "
            f"it: build it again ({again}), or install tensorrt-rtx=={engine.library}"
        )
    if engine.model != hashlib.sha256(artifact.read(precision)).hexdigest():
        raise ArtifactError(
            f"{name} was built from another ONNX file than the folder's: build it again ({again})"
        )
    if not artifact.trusted and not was_built_here(artifact.manifest.files[name].sha256):
        raise ArtifactError(
            f"{name} is native code that this machine did not build: build it here, or use `trust=True`"
        )
    return artifact.read_file(name)
