"""What every inference runtime offers to the pipeline, and the checks that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import INPUTS, OFFSET, OUTPUTS, SUGGESTED, input_shape

if TYPE_CHECKING:
    from deeplight.engine.network.divided import Divided
    from deeplight.engine.runtime.artifact import Artifact
    from deeplight.engine.runtime.device import Device


@dataclass(frozen=True)
class Resident:
    """A model that computes in the device's own memory, for the device path.

    compute: the tensors of spec.INPUTS on the device, in order → those of spec.OUTPUTS. implementation: of the kernels
    around it. captured: whether a tile is captured in a graph with it; else it is launched anew for each. compiling: as
    Backend.open was told, of what is around it. alone: as `compute`, from spec.LIGHTS_ALONE to spec.OF_LIGHTS_ALONE;
    divided: in place of `compute`, see network.divided.Divided, whose lights dates can share. Both are None where the
    runtime has no such program: engines of TensorRT suggest the lights of each date. keep: told of the sides (h, w) of
    all tiles that are still computed, it lets go of what `compute` holds for others; None: that holds nothing.
    """

    device: Device
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    implementation: Any = "auto"
    captured: bool = True
    compiling: bool = True
    alone: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    divided: Divided | None = None
    keep: Callable[[Collection[tuple[int, int]]], None] | None = None


class Backend(ABC):
    """One opened model on one device. A context manager; `run` may be called from `streams` threads at a time."""

    name: ClassVar[str]
    splits: ClassVar[bool] = False
    """Whether `split` can be asked for more than one stream."""
    threads_a_stream: ClassVar[int] = 1
    """Threads that each stream should have at least, where the engine chooses how many there are."""
    takes_offset: ClassVar[bool] = False
    """Whether tiles may come with their offset, `spec.OFFSET`."""
    few_shapes: ClassVar[bool] = False
    """Whether it has to compile for each tile shape, so that the tiles of a scene should have few."""
    memory: ClassVar[float] = 1.0
    """Its working memory for a tile, over that of ONNX Runtime, which the manifest knows (`bytes_per_lr_px`)."""
    compiles: bool = False
    """Whether `compiling`, see `open`, made a difference to what it runs."""
    compiling: bool = True
    """What `open` was told."""
    suggests: bool = False
    """Whether `suggest` can be called, and tiles may come with what it gave: after a `split` that asked for it."""
    largest_tile: tuple[int, int] | None = None
    """Height and width of the largest tile that it takes, in LR pixels; None: any."""
    device: str
    streams: int = 1

    @classmethod
    @abstractmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Load the artifact's model of a precision. threads: intra-operator threads, ≥ 1. compiling: let a runtime that
        can do so compile the network for each tile shape.

        Raises ArtifactError where the model cannot be loaded, InputError where the device is not offered.
        """

    @abstractmethod
    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]: ...

    def run(self, inputs: Mapping[str, Floats], outputs: Sequence[str] = ("ntl_hr",)) -> dict[str, Floats]:
        """Outputs by name for one batch of tiles.

        inputs: exactly the tensors of `spec.INPUTS`, float32, NCHW, of one batch and LR size; that of
        `spec.OFFSET`, where it is given, after a `split` that said so; and that of `spec.SUGGESTED`, where
        `suggest` gave it.
        Returns float32 arrays with the shapes of `spec.OUTPUTS`. Raises ValueError naming the tensor that
        does not fit, DeepLightError where the runtime fails.
        """
        batch, h, w = check_inputs(inputs)
        if SUGGESTED.name in inputs and not self.suggests:
            raise ValueError(f"backend {self.name} computes what layers suggest by itself")
        given = inputs.get(OFFSET.name)
        if given is not None and not self.takes_offset:
            raise ValueError(f"backend {self.name} estimates the offset and takes none")
        made = [name for name in outputs if given is None or name != OFFSET.name]
        results = dict(zip(made, self._run(inputs, made), strict=True))
        if given is not None and OFFSET.name in outputs:
            results[OFFSET.name] = given
        for spec in OUTPUTS:
            if spec.name in results and results[spec.name].shape != input_shape(spec, batch, h, w):
                raise ValueError(
                    f"output {spec.name} is {results[spec.name].shape}, not {input_shape(spec, batch, h, w)}"
                )
        return results

    def split(
        self,
        streams: int,
        threads: int,
        outputs: Sequence[str] | None = None,
        *,
        layers: bool = True,
        offset: bool = False,
        suggested: bool = False,
    ) -> None:
        """From now on run `streams` tiles at a time with `threads` threads in all. No run may be in progress.

        outputs: all that will be asked for from now on, so that others need not be computed; None: any. layers: whether
        any tile will have DMO or DEM; where none has, what belongs to them need not be computed either. offset: whether
        all tiles come with their offset, which needs `outputs`. suggested: whether tiles may come with what their
        layers suggest, which needs `outputs`, too; `suggests` stays False where the model cannot do that with the same
        bits.

        Raises ValueError where there is more than one and the backend has no streams (`splits`), DeepLightError where
        there is no memory for them.
        """
        if streams != 1:
            raise ValueError(f"backend {self.name} computes one tile at a time, not {streams}")

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        """What the layers of a tile suggest, as `spec.SUGGESTED`, for all tiles that have the same layers. Only where
        `suggests`. inputs: as `run` takes them; those of the lights are not looked at."""
        raise ValueError(f"backend {self.name} computes what layers suggest by itself")

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the runtime, for provenance."""

    def origins(self) -> dict[str, str]:
        """What decides bits besides versions and the model, by name: the GPU, a file made for it. Empty on a CPU."""
        return {}

    def fallbacks(self) -> dict[str, str]:
        """Tile shapes that run uncompiled although a compiler was asked, as text, and why. They give other bits."""
        return {}

    def resident(self) -> Resident | None:
        """The model for the device path; None where the runtime takes tiles from the host alone."""
        return None

    def rest(self) -> None:  # noqa: B027
        """Let go of memory that the next tiles may do without, between two dates. No run may be in progress."""

    def cancel(self) -> None:  # noqa: B027
        """Ask a `run` in another thread to stop early; it then raises DeepLightError. May do nothing."""

    def close(self) -> None:  # noqa: B027
        """Release the model. Further calls are not allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(inputs: Mapping[str, Floats]) -> tuple[int, int, int]:
    """(batch, h, w) in LR pixels. Raises ValueError naming the tensor, what it is and what it must be."""
    specs = (*INPUTS, *(spec for spec in (OFFSET, SUGGESTED) if spec.name in inputs))
    names = [s.name for s in specs]
    if set(inputs) != set(names):
        raise ValueError(f"inputs are {sorted(inputs)}; they must be {sorted(names)}")
    if inputs["ntl"].ndim != 4:
        raise ValueError(f"input ntl is {inputs['ntl'].shape}; it must be (batch, 1, h, w)")
    batch, _, h, w = inputs["ntl"].shape
    if min(batch, h, w) < 1:
        raise ValueError(f"input ntl is empty: {inputs['ntl'].shape}")
    for spec in specs:
        array, want = inputs[spec.name], input_shape(spec, batch, h, w)
        if array.dtype != np.float32 or array.shape != want:
            raise ValueError(f"input {spec.name} is {array.dtype} {array.shape}; it must be float32 {want}")
    return batch, h, w
