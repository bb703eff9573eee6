"""A graph as programs of OpenVINO, one for each tile shape that comes."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.runtime.backends.openvino_graph import input_names
from deeplight.engine.runtime.backends.openvino_kept import Kept
from deeplight.engine.runtime.backends.openvino_library import check_process, ov

_KEPT = 2
"""Programs in memory, each of which holds that of a tile for every stream: a scene's most frequent shape, and one more
(tiling.common_sides)."""


class _Program:
    """A graph for one tile shape. idle: a request for each stream."""

    def __init__(self, compiled: Any, streams: int) -> None:
        self.inputs = input_names(compiled)
        self.idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self.idle.put(compiled.create_infer_request())


class Programs:
    """Runs a graph on tiles of any shape, `streams` at a time with `threads` threads in all.

    kept: the graph's, for the next process. hint: INFERENCE_PRECISION_HINT. `run` may be called from several threads.
    """

    def __init__(self, kept: Kept, graph: Any, hint: str, streams: int, threads: int) -> None:
        self._kept, self._graph, self._streams = kept, graph, streams
        self._options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # readers and writers need these CPUs, too, and other processes may be bound to them
            "ENABLE_CPU_PINNING": False,
        }
        self._made: OrderedDict[tuple[int, int, int], _Program] = OrderedDict()
        self._running: set[Any] = set()
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._cancelled = False

    def run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        """These outputs of a tile, as float32. Inputs that the graph does not take are left out.

        Raises DeepLightError where the library fails, or the run is cancelled.
        """
        check_process(computes=True)
        batch, _, h, w = inputs["ntl"].shape
        try:
            program = self._program(batch, h, w)
            request = program.idle.get()
            try:
                return self._called(request, {name: inputs[name] for name in program.inputs}, outputs)
            finally:
                program.idle.put(request)
        except Exception as e:  # the library's exceptions share no public base class
            remedy = "; use smaller `tiles`" if "alloc" in str(e).lower() else ""
            raise DeepLightError(
                f"OpenVINO failed on a tile of {h}×{w} LR pixels: {first_line(e)}{remedy}"
            ) from None

    def takes(self, name: str) -> bool:
        """Whether the graph has an input of this name."""
        return name in input_names(self._graph)

    def cancel(self) -> None:
        """Stop the runs in progress before their next operation, and all further ones."""
        with self._lock:
            self._cancelled = True
            for request in self._running:
                request.cancel()

    def rest(self) -> None:
        """Let go of the programs, and of the memory of tiles that they hold."""
        with self._compiling:
            self._made.clear()

    def _called(self, request: Any, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        # nothing is written to them, but OpenVINO takes no memory that could not be
        arrays = {n: np.require(a, requirements=("C", "W")) for n, a in inputs.items()}
        tensors = {n: ov.Tensor(a, shared_memory=True) for n, a in arrays.items()}
        with self._lock:
            if self._cancelled:
                raise DeepLightError("the run was stopped")
            self._running.add(request)
        try:
            request.start_async(tensors, share_inputs=True)
            request.wait()
        finally:
            with self._lock:
                self._running.discard(request)
        # copies: the request's own memory is for its next tile
        return [np.array(request.get_tensor(name).data, np.float32) for name in outputs]

    def _program(self, batch: int, h: int, w: int) -> _Program:
        """The program of a shape, compiled where it is not there; the one used the longest ago goes."""
        shape = (batch, h, w)
        with self._compiling:
            program = self._made.get(shape)
            if program is None:
                while len(self._made) >= _KEPT:
                    self._made.popitem(last=False)
                compiled = self._kept.program(self._graph, shape, self._options)
                program = self._made[shape] = _Program(compiled, self._streams)
            self._made.move_to_end(shape)
            return program


def first_line(error: Exception) -> str:
    """What the library says, behind the places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1]
