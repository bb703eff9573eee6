"""OpenVINO on CPUs of the x86 family. Bits do not depend on the number of threads and streams.

It compiles a program for each tile shape, which takes 0.5 to 0.9 s of CPU time, a third of that with the user's cache
folder. So the engine gives the tiles of a scene few shapes, see Backend.few_shapes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.machine import cpu_has_bf16
from deeplight.engine.core.spec import INPUTS, OFFSET, SUGGESTED, input_shape
from deeplight.engine.core.wording import mention
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.backends.openvino_graph import input_names, read
from deeplight.engine.runtime.backends.openvino_kept import Kept
from deeplight.engine.runtime.backends.openvino_library import check_process, library_core, ov
from deeplight.engine.runtime.backends.openvino_programs import InHalves, Programs, first_line
from deeplight.engine.runtime.onnx_aligned import in_halves
from deeplight.engine.runtime.onnx_asked import asked, made_by
from deeplight.engine.runtime.onnx_notes import check_origin
from deeplight.engine.runtime.onnx_outputs import output_names
from deeplight.engine.runtime.onnx_suggested import in_parts
from deeplight.engine.runtime.trial import TILE, trial_inputs

_log = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "dynamic"}
"""Precision → INFERENCE_PRECISION_HINT. By default OpenVINO computes float32 models in bfloat16 where the CPU can, and
lights were 14 to 26 % off then; dynamic: in the types that the file gives each operation."""


class OpenVinoBackend(Backend):
    """Runs the artifact's ONNX file on the CPU, or what is left of it where tiles need less, or its two parts where
    they share their layers; as OnnxRuntimeBackend."""

    name: ClassVar[str] = "openvino"
    splits: ClassVar[bool] = True
    # two threads at one tile took 0.7 to 0.9 of the time of two tiles with a thread each, and half of the memory
    threads_a_stream: ClassVar[int] = 4
    takes_offset: ClassVar[bool] = True
    few_shapes: ClassVar[bool] = True
    # each half has memory of its own: peaks over 1024 × 1100 and 650² LR pixels, one stream, were 1 % above 1.35
    memory: ClassVar[float] = 1.4

    def __init__(self, core: Any, model: bytes, hint: str, threads: int) -> None:
        self.device = "cpu"
        self._core, self._model, self._hint, self._threads = core, model, hint, threads
        self._programs: Programs | InHalves | None = None
        self._closed = False
        self._suggesting: Programs | None = None
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Load the ONNX file, see Backend.open. device: "cpu"."""
        if device != "cpu":
            raise InputError(f"backend openvino runs on the cpu, not on {device!r}")
        if precision == "bf16" and not cpu_has_bf16():
            raise InputError(f"this CPU has no bfloat16 arithmetic: use {mention(precision='fp32')}")
        check_process(computes=False)
        core = library_core()
        try:
            model = artifact.read(precision, cls.name)
            graph = read(core, model)
        except ArtifactError:
            raise
        except Exception as e:  # the libraries' exceptions share no public base class
            raise ArtifactError(
                f"OpenVINO {_version()} cannot load {artifact.file(precision, cls.name)}: {first_line(e)}"
            ) from None
        check_origin(artifact.manifest, model)
        _check_signature(graph, artifact)
        return cls(core, model, _HINTS[precision], threads)

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
        """From now on run so many tiles at a time, see Backend.split."""
        if streams == self.streams and outputs is None and self._programs is not None:
            return
        model, made = self._model, output_names(self._model)
        if outputs is not None:
            model, made = asked(model, outputs, layers=layers, offset=offset), made_by(outputs, offset=offset)
        self.streams, self.suggests, self._suggesting = streams, False, None
        self._programs = None  # so that the memory of its tiles is not held beside that of the next
        self._programs = self._of(model, made, streams, threads)
        if suggested and outputs is not None:
            self._divide(model, made, streams, threads)

    def _divide(self, model: bytes, outputs: Sequence[str], streams: int, threads: int) -> None:
        """Run a model in two parts if they give the bits of the whole for a trial. outputs: all of them."""
        parts = in_parts(model, outputs)
        if parts is None:
            return
        assert self._programs is not None
        try:
            first, rest = (
                self._one(parts.suggest, 1, threads),
                self._of(parts.rest, outputs, streams, threads),
            )
            same = _same(self._programs, first, rest, outputs)
        except DeepLightError as e:  # the whole may run all the same
            _log.debug("the model does not run in two parts: %s", e)
            return
        if same:
            self._programs, self._suggesting, self.suggests = rest, first, True

    def _of(self, model: bytes, outputs: Sequence[str], streams: int, threads: int) -> Programs | InHalves:
        """What runs a model. outputs: all of them."""
        halves = in_halves(model, outputs)
        if halves is None:
            return self._one(model, streams, threads)
        front, back = (self._one(half, streams, threads) for half in halves)
        estimates = OFFSET.name in output_names(halves.front)
        return InHalves(front, back, max(1, threads // streams), estimates=estimates)

    def _one(self, model: bytes, streams: int, threads: int) -> Programs:
        try:
            graph, kept = read(self._core, model), Kept(self._core, model)
            return Programs(kept, graph, self._hint, streams, threads)
        except Exception as e:  # the libraries' exceptions share no public base class
            raise DeepLightError(f"OpenVINO cannot load a part of the model: {first_line(e)}") from None

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        """What the layers of a tile suggest, see Backend.suggest. For one tile at a time, so that it takes the memory
        of one beside that of the streams."""
        if self._suggesting is None:
            raise ValueError("the backend is closed, or was not asked for what layers suggest")
        with self._one_at_a_time:
            return self._suggesting.run(inputs, [SUGGESTED.name])[0]

    def rest(self) -> None:
        """See Backend.rest. What suggests comes back from the cache folder within a fraction of a second."""
        if self._suggesting is not None:
            self._suggesting.rest()

    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        if self._closed:
            raise ValueError("the backend is closed")
        if self._programs is None:  # nobody said what will be asked for
            self.split(1, self._threads)
        assert self._programs is not None
        if OFFSET.name in inputs and not self._programs.takes(OFFSET.name):
            raise DeepLightError("the program estimates the offset: say before that it is given")
        if self.suggests and SUGGESTED.name not in inputs:
            inputs = {**inputs, SUGGESTED.name: self.suggest(inputs)}
        return self._programs.run(inputs, outputs)

    def versions(self) -> dict[str, str]:
        """OpenVINO's version."""
        return {"openvino": _version()}

    def close(self) -> None:
        """Release the programs, each of which holds the memory of its tiles. Further calls are not allowed."""
        self._programs, self._suggesting, self.suggests, self._closed = None, None, False, True

    def cancel(self) -> None:
        """Stop the runs in progress before their next operation, and all further ones."""
        for programs in (self._programs, self._suggesting):
            if programs is not None:
                programs.cancel()


def _same(
    whole: Programs | InHalves, first: Programs, rest: Programs | InHalves, outputs: Sequence[str]
) -> bool:
    """Whether two parts of a model give the bits of the whole."""
    inputs = trial_inputs()
    wanted = whole.run(inputs, outputs)
    (lights,) = first.run(inputs, [SUGGESTED.name])
    if lights.shape != input_shape(SUGGESTED, *TILE):
        return False
    found = rest.run({**inputs, SUGGESTED.name: lights}, outputs)
    for programs in (whole, first, rest):
        programs.rest()
    return all(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))


def _check_signature(graph: Any, artifact: Artifact) -> None:
    """The graph's own inputs and outputs against the manifest's. Raises ArtifactError."""
    given = dict(zip(input_names(graph), map(_type_and_channels, graph.inputs), strict=True))
    wanted = {s.name: ("f32", str(s.channels)) for s in INPUTS}
    if given != wanted:
        raise ArtifactError(f"the graph of {artifact.manifest.name} takes {given}; it must take {wanted}")
    missing = {t.name for t in artifact.manifest.outputs} - {
        name for port in graph.outputs for name in port.get_names()
    }
    if missing:
        raise ArtifactError(f"the graph of {artifact.manifest.name} lacks the outputs {sorted(missing)}")


def _type_and_channels(port: Any) -> tuple[str, str]:
    shape = port.get_partial_shape()
    channels = str(shape[1]) if shape.rank.is_static and len(shape) > 1 else "?"
    return port.get_element_type().get_type_name(), channels


def _version() -> str:
    """As in "2026.4.1"."""
    return str(ov.__version__).partition("-")[0]
