"""ONNX Runtime on the CPU. Bits do not depend on the thread count at batch 1 (MEASURED: 1–16 threads)."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Self

import numpy as np
import onnxruntime as ort

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OFFSET, SUGGESTED, input_shape
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.onnx_asked import asked, made_by
from deeplight.engine.runtime.onnx_notes import check_origin
from deeplight.engine.runtime.onnx_suggested import in_parts
from deeplight.engine.runtime.trial import TILE, trial_inputs

_log = logging.getLogger(__name__)

_LOG_FATAL = 4
"""ONNX Runtime's log level: errors reach the user once, as exceptions, not also as log lines."""


class OnnxRuntimeBackend(Backend):
    """Runs the artifact's ONNX file with the CPU execution provider, one session a stream.

    Where no tile has daytime bands or elevation, it runs what is left of the file then (`onnx_alone`), which gives the
    same bits. Where tiles share their layers, it runs the file in two parts (`onnx_suggested`), once these have given
    the same bits for a trial.
    """

    name: ClassVar[str] = "onnxruntime"
    splits: ClassVar[bool] = True
    takes_offset: ClassVar[bool] = True

    def __init__(self, model: bytes, session: ort.InferenceSession) -> None:
        self.device = "cpu"
        self._model = model
        self._idle: queue.SimpleQueue[ort.InferenceSession] = queue.SimpleQueue()
        self._idle.put(session)
        self._whole: ort.InferenceSession | None = session
        self._suggesting: ort.InferenceSession | None = None
        self._open_suggesting: Callable[[], ort.InferenceSession] | None = None
        self._one_at_a_time = threading.Lock()
        self._closed = False
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
        return cls(model, session)

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
        if streams == self.streams and outputs is None:
            return
        shares = [threads // streams + (i < threads % streams) for i in range(streams)]
        model = self._model
        try:
            if outputs is not None:
                model = asked(model, outputs, layers=layers, offset=offset)
                outputs = made_by(outputs, offset=offset)
            divided = self._divided(model, outputs, shares) if suggested and outputs is not None else None
            sessions, opener = divided or (_open_all(model, shares), None)
        except ArtifactError:
            raise
        except Exception as e:  # the runtime's exceptions share no public base class
            raise DeepLightError(
                f"ONNX Runtime cannot open {streams} sessions ({_first_line(e)}); use fewer `streams`"
            ) from None
        self._drop()
        for session in sessions:
            self._idle.put(session)
        self.streams, self._open_suggesting, self.suggests = streams, opener, opener is not None

    def _divided(
        self, model: bytes, outputs: Sequence[str], shares: Sequence[int]
    ) -> tuple[list[ort.InferenceSession], Callable[[], ort.InferenceSession]] | None:
        """Sessions of a model's rest, a stream each, and what opens that of what its layers suggest, if they give the
        bits of the whole for a trial; None if they do not, or where there are no such parts. outputs: all of them."""
        parts = in_parts(model, outputs)
        if parts is None:
            return None
        try:
            opener = partial(open_session, parts.suggest, sum(shares))
            sessions = _open_all(parts.rest, shares)
            whole = self._whole or open_session(model, sum(shares))
            same = _same(whole, opener(), sessions[0], list(outputs))
        except Exception as e:  # the whole may run all the same
            _log.debug("the model does not run in two parts: %s", _first_line(e))
            return None
        return (sessions, opener) if same else None

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        """What the layers of a tile suggest, see Backend.suggest. For one tile at a time, so that it takes the memory
        of one beside that of the streams."""
        if self._open_suggesting is None:
            raise ValueError("the backend is closed, or was not asked for what layers suggest")
        with self._one_at_a_time:
            self._suggesting = self._suggesting or self._open_suggesting()
            return self._called(self._suggesting, inputs, [SUGGESTED.name])[0]

    def rest(self) -> None:
        """See Backend.rest. What suggests holds the memory of its largest tile, and opens within a few milliseconds."""
        self._suggesting = None

    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        if self._closed:
            raise ValueError("the backend is closed")
        if self.suggests and SUGGESTED.name not in inputs:
            inputs = {**inputs, SUGGESTED.name: self.suggest(inputs)}
        session = self._idle.get()
        try:
            return self._called(session, inputs, outputs)
        finally:
            self._idle.put(session)

    def _called(
        self, session: ort.InferenceSession, inputs: Mapping[str, Floats], outputs: Sequence[str]
    ) -> list[Floats]:
        try:
            wanted = {i.name: inputs[i.name] for i in session.get_inputs()}
            if OFFSET.name in inputs.keys() - wanted.keys():
                raise ValueError("the session estimates the offset: say before that it is given")
            results = session.run(list(outputs), wanted, self._options)
        except Exception as e:  # the runtime's exceptions share no public base class
            h, w = inputs["ntl"].shape[-2:]
            remedy = "; use smaller `tiles`" if "alloc" in str(e).lower() else ""
            raise DeepLightError(
                f"ONNX Runtime failed on a tile of {h}×{w} LR pixels: {_first_line(e)}{remedy}"
            ) from None
        return [np.asarray(r, np.float32) for r in results]

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's version."""
        return {"onnxruntime": str(ort.__version__)}

    def close(self) -> None:
        """Release the sessions, each of which holds the memory of its largest tile. Further calls are not allowed."""
        self._drop()
        self._closed = True

    def _drop(self) -> None:
        self._whole, self._suggesting, self._open_suggesting, self.suggests = None, None, None, False
        while not self._idle.empty():
            self._idle.get()

    def cancel(self) -> None:
        """Stop the run in progress before its next graph node, and all further runs."""
        self._options.terminate = True


def _same(
    whole: ort.InferenceSession, first: ort.InferenceSession, rest: ort.InferenceSession, outputs: list[str]
) -> bool:
    """Whether two parts of a model give the bits of the whole."""
    inputs = trial_inputs()
    wanted = whole.run(outputs, inputs)
    (lights,) = first.run([SUGGESTED.name], inputs)
    if lights.shape != input_shape(SUGGESTED, *TILE):
        return False
    found = rest.run(outputs, {**inputs, SUGGESTED.name: lights})
    return all(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))


def _open_all(model: bytes, shares: Sequence[int]) -> list[ort.InferenceSession]:
    """A session for each share of the threads."""
    return [open_session(model, max(1, share)) for share in shares]


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
