"""A graph as programs of OpenVINO, one for each tile shape that comes."""

from __future__ import annotations

import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import ALIGNED, FEATURES, OFFSET
from deeplight.engine.raster.align import align
from deeplight.engine.runtime.backends.openvino_graph import input_names
from deeplight.engine.runtime.backends.openvino_kept import Kept
from deeplight.engine.runtime.backends.openvino_library import check_process, ov

Fill = Callable[[Floats], None]
HELD = 2.0
"""Programs in memory, each of which holds that of a tile for every stream, have so many times the pixels of the
largest: those of a scene (tiling.common_sides), and of the small places that a run looks at again."""


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
        with self.computed(inputs, outputs) as made:
            return [np.array(values, np.float32) for values in made]

    @contextmanager
    def computed(
        self, inputs: Mapping[str, Floats], outputs: Sequence[str], fill: Fill | None = None
    ) -> Iterator[list[Floats]]:
        """As `run`, in memory of the program that is another's afterwards. fill: writes the input ALIGNED into such
        memory."""
        check_process(computes=True)
        batch, _, h, w = inputs["ntl"].shape
        with self._naming(h, w):
            program = self._program(batch, h, w)
            request = program.idle.get()
        try:
            with self._naming(h, w):
                if fill is not None:
                    fill(request.get_tensor(ALIGNED.name).data)
                self._infer(request, {n: inputs[n] for n in program.inputs if n != ALIGNED.name})
                made = [request.get_tensor(name).data for name in outputs]
            yield made
        finally:
            program.idle.put(request)

    @contextmanager
    def _naming(self, h: int, w: int) -> Iterator[None]:
        """Name the tile in what the library raises, as DeepLightError."""
        try:
            yield
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

    def _infer(self, request: Any, inputs: Mapping[str, Floats]) -> None:
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

    def _program(self, batch: int, h: int, w: int) -> _Program:
        """The program of a shape, compiled where it is not there; those used the longest ago go."""
        shape = (batch, h, w)
        with self._compiling:
            program = self._made.get(shape)
            if program is None:
                self._make_room(shape)
                compiled = self._kept.program(self._graph, shape, self._options)
                program = self._made[shape] = _Program(compiled, self._streams)
            self._made.move_to_end(shape)
            return program

    def _make_room(self, shape: tuple[int, int, int]) -> None:
        """Let go of the programs used the longest ago until there may be one of this shape beside the others."""
        sizes = {made: math.prod(made) for made in (*self._made, shape)}
        while sum(sizes.values()) > HELD * max(sizes.values()):
            gone, _ = self._made.popitem(last=False)
            del sizes[gone]


class InHalves:
    """Two halves of a model as Programs with the alignment between them, see onnx_aligned. estimates: whether the front
    makes the offset. threads: of the alignment."""

    def __init__(self, front: Programs, back: Programs, threads: int, *, estimates: bool) -> None:
        self._front, self._back, self._threads = front, back, threads
        self._made = [OFFSET.name] if estimates else []

    def run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        """See Programs.run."""
        rest = [name for name in outputs if name not in self._made]
        with self._front.computed(inputs, [FEATURES.name, *self._made]) as (features, *found):
            offset = found[0] if found else inputs[OFFSET.name]
            made = {name: np.array(offset) for name in self._made}

            def fill(aligned: Floats) -> None:
                align(features, offset, aligned, self._threads)

            with self._back.computed(inputs, rest, fill) as others:
                made |= {
                    name: np.array(values, np.float32) for name, values in zip(rest, others, strict=True)
                }
        return [made[name] for name in outputs]

    def takes(self, name: str) -> bool:
        """Whether tiles come with this input; that of the offset is used between the halves."""
        given = name == OFFSET.name and not self._made
        return given or self._front.takes(name) or self._back.takes(name)

    def cancel(self) -> None:
        """See Programs.cancel."""
        self._front.cancel()
        self._back.cancel()

    def rest(self) -> None:
        """See Programs.rest."""
        self._front.rest()
        self._back.rest()


def first_line(error: Exception) -> str:
    """What the library says, behind the places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1]
