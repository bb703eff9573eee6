"""A model that is called with a scene or a part of one and answers in arrays."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deeplight.api import arguments
from deeplight.api.wording import arrays_named
from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplight.api.result import Result
    from deeplight.api.scene import Scene
    from deeplight.engine.raster.scene import SceneOptions
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.run.tiling import TilePlan
    from deeplight.engine.runtime.artifact import Artifact
    from deeplight.engine.runtime.backends.base import Backend

DEFAULT = "deeplight-tiny"
_USUAL = ("isp", "offset")
"""Bands that a call gives unless it asks for others, where the model has them."""


def load_model(
    model: str | Path = DEFAULT,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    compiling: bool = True,
    trust: bool = False,
) -> Model:
    """Load a model for a device.

    Args:
        model: Name of a built-in model, a model folder, or the folder of a training run.
        device: "auto", "cpu", "cuda" or "cuda:1".
        backend: "auto", "openvino", "onnxruntime", "torch", "tensorrt-rtx" or "tensorrt".
        precision: One that the model offers.
        threads: Of the runtime; None: all CPUs that this process may use.
        compiling: Let PyTorch on CUDA compile the network for each tile shape.
        trust: Let native code in the model's folder (TensorRT plans) run.

    Returns:
        The model, to be called with a scene: model(scene[100:228, 40:168]).

    Raises:
        ArtifactError: There is no such model, or it is damaged or unsafe.
        InputError: Its backend, device or precision is not there.
    """
    with arrays_named():
        from deeplight.engine.core.machine import available_cpus
        from deeplight.engine.runtime.artifact import load_artifact
        from deeplight.engine.runtime.backends import open_backend

        cpus = arguments.count_or_none("threads", threads) or available_cpus()
        loading = Loading(
            str(arguments.path("model", model)),
            arguments.text("backend", backend),
            arguments.text("device", device),
            arguments.text("precision", precision),
            cpus,
            bool(compiling),
            bool(trust),
        )
        artifact = load_artifact(loading.model, trust=loading.trust)
        opened = open_backend(
            loading.backend,
            artifact,
            precision=loading.precision,
            device=loading.device,
            threads=cpus,
            compiling=loading.compiling,
        )
        return Model(loading, artifact, opened)


@dataclass(frozen=True)
class Loading:
    """How a model was loaded, by the names of RunOptions."""

    model: str
    backend: str = "auto"
    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    compiling: bool = True
    trust: bool = False

    def request(self, scene: SceneOptions, out: Path, **more: Any) -> RunOptions:
        """A run of this model over a scene."""
        from deeplight.engine.run.options import RunOptions

        return RunOptions(scene=scene, out=out, **asdict(self), **more)


class Model:
    """A loaded model. Calls from several threads take turns. A context manager; `close` frees its memory.

    loading: how it was loaded. artifact: its folder. backend: the runtime that has it.
    """

    def __init__(self, loading: Loading, artifact: Artifact, backend: Backend) -> None:
        self.loading, self.artifact, self.backend = loading, artifact, backend
        self._turn = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.artifact.manifest.name

    def __repr__(self) -> str:
        b = self.backend
        return f"Model {self.name} in {self.loading.precision}, {b.name} on {b.device}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory; it cannot be called any more."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self.backend.close()

    def __call__(
        self, scene: Scene, *, bands: Sequence[str] | None = None, conserve_radiance: bool = False
    ) -> Result:
        """Refine a scene, or a part of one, in memory and in one piece. The pixels are those that `refine` writes
        with the same backend.

        Args:
            scene: From `open_scene`, or a part of one, as scene[100:228, 40:168].
            bands: Of "isp", "offset", "interval" and "quality", those to compute beside radiance; None: isp and
                offset, where the model has them.
            conserve_radiance: Make the result agree with the lights as their sensor saw them.

        Returns:
            Arrays on the lights' grid cut 8×8, NaN where the lights are nodata.

        Raises:
            InputError: The memory does not hold the scene in one piece, or the model has no such band.
            DeepLightError: Pixels are damaged, or the runtime fails.
        """
        from deeplight.api.result import Result
        from deeplight.api.scene import Scene

        if not isinstance(scene, Scene):
            raise InputError(
                f"a model is called with a scene and this is {type(scene).__name__}: open one with "
                "deeplight.open_scene(ntl, dmo, dem)"
            )
        with arrays_named(scene.arrays), self._turn:
            if self._closed:
                raise InputError("the model is closed: load it again with deeplight.load_model")
            options = self._request(scene, bands, conserve_radiance)
            pixels = self._computed(scene, options)
            return Result.of(scene, options.bands, pixels)

    def _request(self, scene: Scene, bands: Sequence[str] | None, conserve: bool) -> RunOptions:
        """What is asked of the library. Raises InputError for bands that the model does not have."""
        from deeplight.engine.run.preparation import check_bands

        offered = {output.name for output in self.artifact.manifest.outputs}
        wanted = [b for b in _USUAL if b in offered] if bands is None else bands
        named = arguments.extra_bands(wanted)
        check_bands(named, self.artifact)
        nowhere = Path(os.devnull)
        return self.loading.request(
            scene.options, nowhere, tiles=None, bands=named, conserve_radiance=bool(conserve)
        )

    def _computed(self, scene: Scene, options: RunOptions) -> NDArray[np.float32]:
        """The bands (n, 8h, 8w) of the scene or part."""
        import numpy as np

        from deeplight.engine.core.machine import available_cpus
        from deeplight.engine.core.spec import SCALE
        from deeplight.engine.run.options import band_count
        from deeplight.engine.run.paths import tile_work

        plan = self._plan(scene, options)
        threads = options.threads or available_cpus()
        work = tile_work(options, scene.rasters, self.artifact, self.backend, plan, threads)
        try:
            pixels = work.pixels(scene.window)
        finally:
            work.close()
        if pixels is not None:
            return pixels
        count = band_count(options.bands)
        h, w = scene.shape
        return np.full((count, h * SCALE, w * SCALE), np.nan, np.float32)

    def _plan(self, scene: Scene, options: RunOptions) -> TilePlan:
        """The part in one piece. Raises InputError where memory does not hold that."""
        from deeplight.engine.core.machine import available_memory
        from deeplight.engine.run.conserve import REACH
        from deeplight.engine.run.options import band_count
        from deeplight.engine.run.tiling import plan_tiles

        count = band_count(options.bands)
        reach = REACH if options.conserve_radiance else 0
        try:
            return plan_tiles(
                None,
                self.artifact.manifest,
                *scene.shape,
                count,
                available_memory(),
                reach=reach,
                model_memory=self.backend.memory,
            )
        except InputError as error:
            raise InputError(
                f"{str(error).partition(': ')[0]}: call the model with a part, as scene[0:256, 0:256], or use "
                "deeplight.refine, which works in tiles"
            ) from None
