"""ONNX Runtime on the CPU. Bits do not depend on the thread count at batch 1 (MEASURED: 1–16 threads)."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import onnxruntime as ort

from deeplight.engine.core.arrays import Floats, kept_memory
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import ALIGNED, FEATURES, INPUTS, OFFSET, SCALE, SUGGESTED, input_shape
from deeplight.engine.raster.align import align
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.onnx_aligned import FRONT, in_halves, joined
from deeplight.engine.runtime.onnx_asked import asked, made_by
from deeplight.engine.runtime.onnx_notes import check_origin
from deeplight.engine.runtime.onnx_outputs import output_names
from deeplight.engine.runtime.onnx_suggested import in_parts
from deeplight.engine.runtime.trial import TILE, trial_inputs

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)

_NONE_YET = np.zeros((1, ALIGNED.channels, SCALE, SCALE), np.float32)
_LOG_FATAL = 4
"""ONNX Runtime's log level: errors reach the user once, as exceptions, not also as log lines."""


class _Lane:
    """What computes one tile at a time: a model, or its halves with the alignment between them."""

    def __init__(self, model: bytes, outputs: Sequence[str], threads: int) -> None:
        """outputs: all that the model has. Raises what ONNX Runtime raises where it cannot load the model."""
        halves = in_halves(model, outputs)
        self.session = open_session(model if halves is None else joined(halves), threads)
        self._threads = threads
        self._front = [] if halves is None else output_names(halves.front)
        self._features = self._aligned = kept_memory((0,))

    def run(
        self, inputs: Mapping[str, Floats], outputs: Sequence[str], options: ort.RunOptions
    ) -> list[Floats]:
        """These outputs. Raises ValueError where an offset is given that the model does not take, and what ONNX Runtime
        raises."""
        if OFFSET.name in inputs.keys() - {i.name for i in self.session.get_inputs()}:
            raise ValueError("the session estimates the offset: say before that it is given")
        made: dict[str, Floats] = {}
        if self._front:
            first = {**inputs, ALIGNED.name: _NONE_YET, FRONT: np.array(True)}
            made = self._first(first, options)
            offset = made[OFFSET.name] if OFFSET.name in made else inputs[OFFSET.name]
            align(made[FEATURES.name], offset, self._aligned, self._threads)
            inputs = {**inputs, ALIGNED.name: self._aligned, FRONT: np.array(False)}
        made |= _called(self.session, inputs, [name for name in outputs if name not in made], options)
        return [made[name] for name in outputs]

    def _first(self, inputs: Mapping[str, Any], options: ort.RunOptions) -> dict[str, Floats]:
        """What the front half makes. The features are in memory that the next tile of the shape takes again, as that
        of the aligned ones: taking it anew cost a twentieth of a run's CPU time."""
        batch, _, h, w = inputs["ntl"].shape
        shape = input_shape(FEATURES, batch, h, w)
        if self._features.shape != shape:
            self._features, self._aligned = kept_memory(shape), kept_memory(shape)
        made = {FEATURES.name: self._features}
        if OFFSET.name in self._front:
            made[OFFSET.name] = np.empty(input_shape(OFFSET, batch, h, w), np.float32)
        binding = self.session.io_binding()
        for given in self.session.get_inputs():
            binding.bind_cpu_input(given.name, inputs[given.name])
        for name, memory in made.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(memory))
        self.session.run_with_iobinding(binding, options)
        return made


class OnnxRuntimeBackend(Backend):
    """Runs the artifact's ONNX file with the CPU execution provider, sessions of its own for each stream.

    The layers are aligned between two halves of the file (`onnx_aligned`). Where no tile has daytime bands or
    elevation, what is left of the file then runs (`onnx_alone`), which gives the same bits. Where tiles share their
    layers, it runs in two parts (`onnx_suggested`), once these have given the same bits for a trial.
    """

    name: ClassVar[str] = "onnxruntime"
    splits: ClassVar[bool] = True
    takes_offset: ClassVar[bool] = True

    def __init__(self, model: bytes, threads: int) -> None:
        self.device = "cpu"
        self._model, self._threads = model, threads
        self._idle: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self._suggesting: ort.InferenceSession | None = None
        self._open_suggesting: Callable[[], ort.InferenceSession] | None = None
        self._one_at_a_time = threading.Lock()
        self._opened = self._closed = False
        self._options = ort.RunOptions()
        self._options.log_severity_level = _LOG_FATAL

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Load the ONNX file, see Backend.open. device: "cpu"."""
        if device != "cpu":
            raise InputError(f"backend onnxruntime runs on the cpu, not on {device!r}")
        try:
            model = artifact.read(precision)
            session = open_session(model, threads)
        except ArtifactError:
            raise
        except Exception as e:  # the runtime's exceptions share no public base class
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} cannot load {artifact.file(precision)}: {_first_line(e)}"
            ) from None
        check_origin(artifact.manifest, model)
        _check_signature(session, artifact)
        return cls(model, threads)

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
        """From now on run so many tiles at a time, see Backend.split.

        Threads of one call wait for each other; calls of one thread each never do.
        """
        if streams == self.streams and outputs is None and self._opened:
            return
        shares = [max(1, threads // streams + (i < threads % streams)) for i in range(streams)]
        model, made = self._model, output_names(self._model)
        try:
            if outputs is not None:
                model, made = (
                    asked(model, outputs, layers=layers, offset=offset),
                    made_by(outputs, offset=offset),
                )
            divided = self._divided(model, made, shares) if suggested and outputs is not None else None
            lanes, opener = divided or ([_Lane(model, made, share) for share in shares], None)
        except ArtifactError:
            raise
        except Exception as e:  # the runtime's exceptions share no public base class
            raise DeepLightError(
                f"ONNX Runtime cannot open {streams} sessions ({_first_line(e)}); use fewer `streams`"
            ) from None
        self._take(lanes)
        self.streams, self._open_suggesting, self.suggests = streams, opener, opener is not None

    def _divided(
        self, model: bytes, outputs: Sequence[str], shares: Sequence[int]
    ) -> tuple[list[_Lane], Callable[[], ort.InferenceSession]] | None:
        """Lanes of a model's rest, one a stream, and what opens the part that its layers suggest, if they give the bits
        of the whole for a trial; None if they do not, or where there are no such parts. outputs: all of them."""
        parts = in_parts(model, outputs)
        if parts is None:
            return None
        try:
            opener = partial(open_session, parts.suggest, sum(shares))
            lanes = [_Lane(parts.rest, outputs, share) for share in shares]
            same = _same(_Lane(model, outputs, sum(shares)), opener(), lanes[0], list(outputs), self._options)
        except Exception as e:  # the whole may run all the same
            _log.debug("the model does not run in two parts: %s", _first_line(e))
            return None
        return (lanes, opener) if same else None

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        """What the layers of a tile suggest, see Backend.suggest. For one tile at a time, so that it takes the memory
        of one beside that of the streams."""
        if self._open_suggesting is None:
            raise ValueError("the backend is closed, or was not asked for what layers suggest")
        with self._one_at_a_time:
            self._suggesting = self._suggesting or self._open_suggesting()
            session = self._suggesting
            call = partial(_called, session, inputs, [SUGGESTED.name], self._options)
            return self._saying(call, inputs)[SUGGESTED.name]

    def rest(self) -> None:
        """See Backend.rest. What suggests holds the memory of its largest tile, and opens within a few milliseconds."""
        self._suggesting = None

    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        if self._closed:
            raise ValueError("the backend is closed")
        if not self._opened:
            self.split(1, self._threads, None)
        if self.suggests and SUGGESTED.name not in inputs:
            inputs = {**inputs, SUGGESTED.name: self.suggest(inputs)}
        lane = self._idle.get()
        try:
            return self._saying(partial(lane.run, inputs, outputs, self._options), inputs)
        finally:
            self._idle.put(lane)

    def _saying(self, call: Callable[[], _Result], inputs: Mapping[str, Floats]) -> _Result:
        """What a call returns. Raises DeepLightError, naming the tile, where it fails."""
        try:
            return call()
        except Exception as e:  # the runtime's exceptions share no public base class
            h, w = inputs["ntl"].shape[-2:]
            remedy = "; use smaller `tiles`" if "alloc" in str(e).lower() else ""
            raise DeepLightError(
                f"ONNX Runtime failed on a tile of {h}×{w} LR pixels: {_first_line(e)}{remedy}"
            ) from None

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's version."""
        return {"onnxruntime": str(ort.__version__)}

    def close(self) -> None:
        """Release the sessions, each of which holds the memory of its largest tile. Further calls are not allowed."""
        self._take([])
        self._closed = True

    def _take(self, lanes: Sequence[_Lane]) -> None:
        """Put these in the place of all that was open."""
        self._suggesting, self._open_suggesting, self.suggests = None, None, False
        while not self._idle.empty():
            self._idle.get()
        for lane in lanes:
            self._idle.put(lane)
        self._opened = bool(lanes)

    def cancel(self) -> None:
        """Stop the run in progress before its next graph node, and all further runs."""
        self._options.terminate = True


def _called(
    session: ort.InferenceSession,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    options: ort.RunOptions,
) -> dict[str, Floats]:
    """Outputs of a session by name; without any it does not run. Raises what ONNX Runtime raises."""
    if not outputs:
        return {}
    results = session.run(list(outputs), {i.name: inputs[i.name] for i in session.get_inputs()}, options)
    return {name: np.asarray(r, np.float32) for name, r in zip(outputs, results, strict=True)}


def _same(
    whole: _Lane, first: ort.InferenceSession, rest: _Lane, outputs: list[str], options: ort.RunOptions
) -> bool:
    """Whether two parts of a model give the bits of the whole."""
    inputs = trial_inputs()
    wanted = whole.run(inputs, outputs, options)
    lights = _called(first, inputs, [SUGGESTED.name], options)[SUGGESTED.name]
    if lights.shape != input_shape(SUGGESTED, *TILE):
        return False
    found = rest.run({**inputs, SUGGESTED.name: lights}, outputs, options)
    return all(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))


def open_session(model: bytes, threads: int) -> ort.InferenceSession:
    """A session on the CPU with `threads` threads. Raises what ONNX Runtime raises where it cannot load the model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    # Planned as one block, a run's tensors took 4.3 GB at a tile of 296²; allocated in turn 2.2 GB, at the same speed.
    options.enable_mem_pattern = False
    # Spinning threads would take the cores from readers and writers between two tiles.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def _check_signature(session: ort.InferenceSession, artifact: Artifact) -> None:
    """The graph's own inputs and outputs against the manifest's. Raises ArtifactError."""
    given = {i.name: (i.type, i.shape[1]) for i in session.get_inputs()}
    wanted = {s.name: ("tensor(float)", s.channels) for s in INPUTS}
    if given != wanted:
        raise ArtifactError(f"the graph of {artifact.manifest.name} takes {given}; it must take {wanted}")
    missing = {t.name for t in artifact.manifest.outputs} - {o.name for o in session.get_outputs()}
    if missing:
        raise ArtifactError(f"the graph of {artifact.manifest.name} lacks the outputs {sorted(missing)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
