"""The device's side of a run: a program for each tile shape, three streams, and what a tile does on them.

A tile goes up in one copy, through one graph and down in one copy, and nothing on the host waits for it but the thread
that writes it. Three streams, so that the copies of one tile lie beside the computation of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.forms import LayerForm, Steps, Wanted, returned, sent
from deeplight.engine.core.layout import Layout
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.meter import Meter
from deeplight.engine.run.slots import Slot
from deeplight.engine.runtime.device import DeviceFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from deeplight.engine.runtime.backends.base import Resident
    from deeplight.engine.runtime.device import Graph, Memory

WARM_UPS, MEASURED = 2, 3
"""Tiles that a new program computes before the run, first without being timed, then timed: a few milliseconds each."""


@dataclass(frozen=True)
class TileShape:
    """What a program is made for: LR pixels of the tile, and how its layers are sent."""

    height: int
    width: int
    forms: tuple[tuple[str, LayerForm], ...]

    @property
    def sent(self) -> Layout:
        """What goes up."""
        return sent(dict(self.forms), self.height, self.width)

    @property
    def lights(self) -> int:
        """Bytes of it, at its beginning, that are not of layers."""
        return sent({}, self.height, self.width).size

    @property
    def layers(self) -> int:
        """Bytes of it behind those."""
        return self.sent.size - self.lights

    @property
    def suggested(self) -> int:
        """Bytes of the lights that the layers suggest."""
        return 4 * self.height * self.width

    @property
    def kept(self) -> int:
        """Bytes of both, for the next dates; 0 where there are no layers."""
        return self.layers + self.suggested if self.layers else 0


@dataclass
class SentLayers:
    """The layers of one tile as they were sent, and behind them the lights that they suggest, in memory of the device
    that stays. there: they have arrived in it."""

    shape: TileShape
    memory: Memory
    there: bool = False


@dataclass
class _Program:
    """A program and the memory that it works in. graph: it captured, None where it is launched anew for each tile.
    parts, made: what lies in its memory, as tensors. tile: what a tile does, and what is told of that. suggested: the
    lights that a tile's layers suggest; None where they cannot be given. known: as graph, for tiles whose are there
    already; asked: whether it was to be made. alone_s: seconds of a tile with nothing beside it; 0: not timed yet."""

    graph: Graph | None
    memory: Memory
    result: Memory
    suggested: Memory | None
    parts: Mapping[str, Any]
    made: Mapping[str, Any]
    tile: Any
    known: Graph | None = None
    asked: bool = False
    alone_s: float = 0.0

    @property
    def writes(self) -> list[Memory]:
        """What it writes."""
        return [self.result] if self.suggested is None else [self.result, self.suggested]


class DevicePath:
    """Tiles of a scene through one device, or of dates that want the same, one after the other. `launch` is for one
    thread at a time; `landed` for several.

    resident: the model on the device. wanted: see forms.Wanted. slots: 1 for each of spec.DMO_SLOTS that there is.
    """

    def __init__(self, resident: Resident, wanted: Wanted, slots: tuple[int, ...]) -> None:
        self.device, self.wanted = resident.device, wanted
        self.meter = Meter()
        self.slots, self._resident = slots, resident
        self._up, self._compute, self._down = (self.device.stream() for _ in range(3))
        self._programs: dict[TileShape, _Program] = {}

    def returned(self, height: int, width: int, *, physical: bool = False) -> Layout:
        """What comes back of so many LR pixels. physical: float32, whatever the output's type is."""
        return returned(self.wanted.count, height, width, steps=self._steps(physical) is not None)

    def prepare(self, shape: TileShape, slot: Slot, core: Window, window: Window) -> float:
        """Make the program of a shape, which takes seconds to a minute, and return the seconds of a tile alone, whose
        pixels lie in the memory of a slot that nothing else uses; of one that is there, without timing it again. core,
        window: of any tile. Raises OutOfDeviceMemory, DeviceFailed."""
        with self.failing(None):
            program = self._program(shape)
            if program.alone_s == 0.0:
                begin, end = self.device.event(), self.device.event()
                cut = self._cut(program, slot, core, window, physical=False)
                self._send(slot, shape.sent.size)
                for number in range(WARM_UPS + MEASURED):
                    if number == WARM_UPS:  # by now all is compiled that was not captured
                        self._compute.record(begin)
                    self._tile(program, self._given(program, slot, shape, None))
                    self._finish(program, slot, cut)
                self._compute.record(end)
                end.wait()
                program.alone_s = end.seconds_since(begin) / MEASURED
        self.meter.alone_px, self.meter.alone_s = shape.height * shape.width * SCALE**2, program.alone_s
        return program.alone_s

    def forget(self, keep: TileShape | None = None) -> None:
        """Let go of all programs and their memory, but for that of one shape, once nothing is done with it."""
        # a device that has failed fails here again, and what it said first must not be replaced
        with suppress(DeviceFailed), self.failing(None):
            for stream in (self._up, self._compute, self._down):
                end = self.device.event()
                stream.record(end)
                end.wait()
        self._programs = {shape: program for shape, program in self._programs.items() if shape == keep}
        if self._resident.keep is not None:
            self._resident.keep([(shape.height, shape.width) for shape in self._programs])
        with suppress(DeviceFailed), self.failing(None):
            self.device.release()

    def launch(
        self,
        slot: Slot,
        shape: TileShape,
        core: Window,
        window: Window,
        *,
        physical: bool = False,
        layers: SentLayers | None = None,
    ) -> None:
        """Put a tile whose pixels lie in `slot.host` on the streams. core, window: in LR pixels. physical: see
        `returned`. layers: of the tile; they are taken from there, or where they are not there yet, put there. Does not
        wait."""
        with self.failing(core):
            program, events = self._program(shape), slot.events
            kept = layers if layers is not None and layers.there else None
            if kept is not None:
                self._know(program)  # now: capturing is no part of a tile's time
            cut = self._cut(program, slot, core, window, physical=physical)
            size = shape.sent.size if kept is None else shape.lights
            self._send(slot, size)
            graph = self._given(program, slot, shape, kept)
            # nothing between these but the program: while this thread waits for its turn the device would be idle
            self._compute.record(events["started"])
            self._tile(program, graph)
            self._compute.record(events["computed"])
            self._finish(program, slot, cut)
            if layers is not None and kept is None:
                self._compute.copy(layers.memory, slot.there, shape.layers, since=shape.lights)
                if program.suggested is not None:
                    self._compute.copy(layers.memory, program.suggested, shape.suggested, to=shape.layers)
            self._compute.record(events["cut"])
            back = self.returned(*core.shape, physical=physical).size
            self._down.wait(events["cut"])
            self._down.record(events["leaving"])
            self._down.copy(slot.back, slot.result, back)
            self._down.record(events["left"])
            self.meter.add(bytes_up=size, bytes_down=back)

    def _send(self, slot: Slot, size: int) -> None:
        """So many bytes of `slot.host` to `slot.there`, for which the computing waits."""
        self._up.record(slot.events["up"])
        self._up.copy(slot.there, slot.host, size)
        self._up.record(slot.events["arrived"])
        self._compute.wait(slot.events["arrived"])

    def _given(
        self, program: _Program, slot: Slot, shape: TileShape, kept: SentLayers | None
    ) -> Graph | None:
        """Put a tile from `slot.there` where its program takes it from. kept: its layers, which are not there. Returns
        the graph that computes it, if there is one."""
        self._compute.copy(program.memory, slot.there, shape.sent.size if kept is None else shape.lights)
        if kept is None:
            return program.graph
        self._compute.copy(program.memory, kept.memory, shape.layers, to=shape.lights)
        if program.known is None:
            return program.graph
        assert program.suggested is not None
        self._compute.copy(program.suggested, kept.memory, shape.suggested, since=shape.layers)
        return program.known

    def _tile(self, program: _Program, graph: Graph | None) -> None:
        """Compute a tile in its program's memory."""
        if graph is not None:
            self._compute.replay(graph)
        else:
            self._compute.run(program.tile, [program.memory], program.writes)

    def _finish(self, program: _Program, slot: Slot, cut: Any) -> None:
        """Cut a core out of what was computed, into `slot.result`; the mask is among what was sent."""
        self._compute.run(cut, [program.memory, program.result], [slot.result])

    @contextmanager
    def landed(self, slot: Slot, core: Window, *, physical: bool = False) -> Iterator[dict[str, Any]]:
        """Wait for a tile: views of forms.returned in `slot.back`, of the core, to be used inside this context.
        physical: as when it was launched."""
        events = slot.events
        with self.failing(core):
            events["left"].wait()
            pairs = {
                "upload": ("up", "arrived"),
                "compute": ("started", "computed"),
                "download": ("leaving", "left"),
            }
            took = {name: events[b].seconds_since(events[a]) for name, (a, b) in pairs.items()}
            self.meter.add(**took)
        with self.device.host_uses(slot.back):
            yield self.returned(*core.shape, physical=physical).arrays(slot.back.array)

    def fallbacks(self) -> dict[str, str]:
        """What runs uncompiled although it should not, and why."""
        found: dict[str, str] = {}
        for program in self._programs.values():
            found |= program.tile.fallbacks
        return found

    @contextmanager
    def failing(self, core: Window | None) -> Iterator[None]:
        """Errors of the device as one sentence."""
        try:
            yield
        except DeepLightError:
            raise
        except Exception as error:
            # Triton's own, as of a kernel that asks for more than a multiprocessor has, are no RuntimeError
            if not isinstance(error, RuntimeError | MemoryError) and not _of_triton(error):
                raise
            place = "" if core is None else f" at the tile at row {core.row}, column {core.col}"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if self.device.out_of_memory(error) or isinstance(error, MemoryError):
                raise OutOfDeviceMemory(
                    f"the memory of {self.device.name} did not suffice{place} ({reason}): make the same call with "
                    "`overwrite=True` and smaller `tiles`, or with `resume=True` when others use less of it"
                ) from error
            raise DeviceFailed(
                f"{self.device.name} failed{place} ({reason}); what is finished is kept: make the same call with "
                "`resume=True`"
            ) from error

    def _program(self, shape: TileShape) -> _Program:
        if shape not in self._programs:
            self._programs[shape] = self._capture(shape)
        return self._programs[shape]

    def _capture(self, shape: TileShape) -> _Program:
        from deeplight.engine.network.tile_program import TileProgram, tensors

        size = (shape.height, shape.width)
        layout = self.returned(*size, physical=True)
        memory, result = self.device.memory(shape.sent.size), self.device.memory(layout.size)
        suggested = None if self._resident.divided is None else self.device.memory(shape.suggested)
        forms: Mapping[str, LayerForm] = dict(shape.forms)
        model = self._resident
        tile = TileProgram(
            model.compute,
            forms,
            self.wanted,
            self.slots,
            size,
            memory.bytes,
            result.bytes,
            implementation=model.implementation,
            compiling=model.compiling,
            alone=model.alone,
            divided=model.divided,
            suggested=None if suggested is None else suggested.bytes,
        )
        parts, made = tensors(shape.sent, memory.bytes), tensors(layout, result.bytes)
        program = _Program(None, memory, result, suggested, parts, made, tile)
        if model.captured:
            program.graph = self.device.capture(self._compute, tile, [memory], program.writes)
        else:
            self._compute.follow_default()
        return program

    def _know(self, program: _Program) -> None:
        """Capture the program for tiles whose suggested lights are known, when the first one comes."""
        if program.asked or program.graph is None or program.suggested is None:
            return
        program.asked = True
        reads, writes = [program.memory, program.suggested], [program.result]
        try:
            program.known = self.device.capture(
                self._compute, program.tile.known, reads, writes, beside=program.graph
            )
        except RuntimeError as error:
            if not self.device.out_of_memory(error):
                raise
            # the whole program suggests the same lights again

    def _steps(self, physical: bool) -> Steps | None:
        return None if physical else self.wanted.steps

    def _cut(self, program: _Program, slot: Slot, core: Window, window: Window, *, physical: bool) -> Any:
        from deeplight.engine.network.tile_program import cut, tensors

        wanted = tensors(self.returned(*core.shape, physical=physical), slot.result.bytes)
        place, steps = core.slices_in(window), self._steps(physical)
        return cut(program.made, program.parts["own"], wanted, place, steps, self._resident.implementation)


def _of_triton(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "triton"
