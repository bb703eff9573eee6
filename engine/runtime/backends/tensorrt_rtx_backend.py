"""TensorRT for RTX: runs an engine that was built on any machine, on GeForce and RTX PRO GPUs.

The library compiles kernels for each tile shape when it is first met, and keeps them in a runtime cache, which we keep
in the user's cache folder. It captures CUDA graphs by itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import tensorrt_rtx as trt

from deeplight.engine.core.cache_folder import cache_folder
from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.wording import mention
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.cuda_tiles import (
    Buffers,
    EngineBackend,
    gpu_number,
    gpu_properties,
    opened,
    path_versions,
    wait,
)
from deeplight.engine.runtime.compare import failures
from deeplight.engine.runtime.engines import Gpu, choose_engine
from deeplight.engine.runtime.first_use import compared
from deeplight.engine.runtime.onnx_notes import check_origin

_LOG = logging.getLogger(__name__)


class TensorRtRtxBackend(EngineBackend):
    """Runs an engine of TensorRT for RTX."""

    name: ClassVar[str] = "tensorrt-rtx"
    library: ClassVar[str] = "TensorRT for RTX"
    captures: ClassVar[bool] = False

    def __init__(
        self,
        engine: Any,
        gpu: int = 0,
        origins: Mapping[str, str] | None = None,
        kept: Path | None = None,
    ) -> None:
        """kept: file of the runtime cache; None: kernels are compiled anew by every process."""
        super().__init__(trt, engine, gpu, origins)
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # the other strategies let kernels change in the middle of a run, and with them the bits of its tiles
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._kernels = RuntimeCache(self._config, kept)

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Load the engine, see Backend.open. device: "cuda" or, as one of several, "cuda:1".

        The first time on a GPU the engine is compared with the float32 model on the CPU: it was built without a GPU.
        Raises ArtifactError where they differ too much.
        """
        runtime = f"TensorRT for RTX {trt.__version__}"
        number = gpu_number(device, cls.name, runtime)
        gpu = gpu_properties(number, runtime)
        check_origin(artifact.manifest, artifact.read(precision))
        data = choose_engine(artifact, precision, gpu, str(trt.__version__))
        digest = hashlib.sha256(data).hexdigest()
        origins = {
            "the GPU": f"{gpu.name}, compute capability {gpu.capability}",
            "the engine of TensorRT for RTX": digest[:16],
        }
        place = _place(digest, gpu)
        kept = None if place is None else place.with_suffix(".cache")
        backend = cls(opened(trt, data, number, f"the engine of {runtime}"), number, origins, kept)
        try:
            _admit(artifact, backend, precision, threads, gpu, place)
        except BaseException:
            backend.close()
            raise
        return backend

    def _context(self) -> Any:
        return self._engine.create_execution_context(self._config)

    def _profile(self, ntl: tuple[int, ...]) -> int:
        """There is one."""
        return 0

    def _prepare(self, batch: int, h: int, w: int) -> Buffers:
        made = super()._prepare(batch, h, w)
        self._kernels.save()
        return made

    def compiled(self, stream: int) -> None:
        """Keep the kernels of a shape for the next process."""
        wait(stream)
        self._kernels.save()

    def versions(self) -> dict[str, str]:
        """The version of TensorRT for RTX, and on the device path of what is around it."""
        return {"tensorrt_rtx": str(trt.__version__)} | path_versions(self._gpu)


class RuntimeCache:
    """Kernels that the library compiled, in a file. It refuses one of another version, GPU or driver by itself."""

    def __init__(self, config: Any, path: Path | None) -> None:
        self._cache, self._path, self._known = config.create_runtime_cache(), path, b""
        if path is not None and path.is_file():
            data = path.read_bytes()
            if self._cache.deserialize(data):
                self._known = data
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what is new. A disk that refuses costs the next process time, and one warning."""
        if self._path is None:
            return
        data = bytes(self._cache.serialize())
        if data == self._known:
            return
        try:
            write_file(self._path, [data])
            self._known = data
        except OSError as e:
            _LOG.warning("compiled kernels are not kept for the next run: %s", e)
            self._path = None


def _place(digest: str, gpu: Gpu) -> Path | None:
    """Where to keep what belongs to an engine on a GPU: a path without suffix; None where no folder is to be had."""
    try:
        folder = cache_folder("tensorrt-rtx")
    except (OSError, RuntimeError) as e:  # RuntimeError: no home is known
        _LOG.warning("compiled kernels are not kept for the next run: %s", e)
        return None
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return folder / f"{digest[:16]}_{name}_{gpu.driver}_{trt.__version__.replace('.', '-')}"


def _admit(
    artifact: Artifact,
    backend: TensorRtRtxBackend,
    precision: str,
    threads: int,
    gpu: Gpu,
    place: Path | None,
) -> None:
    """Compare the engine with float32, unless it was found to agree on this GPU before. Raises ArtifactError."""
    note = None if place is None else place.with_suffix(".agrees")
    if note is not None and note.is_file():
        return
    row = compared(artifact, backend, precision, threads)
    if not row.passed:
        raise ArtifactError(
            f"the engine of {artifact.manifest.name} differs too much from float32 on {gpu.name}, so it is not used "
            f"({failures([row])}): use {mention(backend='torch')}, or export it with another version of tensorrt-rtx"
        )
    if note is not None:
        note.write_text(f"relative L2 {row.relative_l2:.1e}\n")
