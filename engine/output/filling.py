"""Cores collected into packs; a pack is stored as soon as its last pixel is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.facts import Facts
from deeplight.engine.output.pack_format import Encoded
from deeplight.engine.output.packs import PackStore


class PackFiller:
    """Packs of a store that are not done yet. Threads may `add` cores at the same time.

    A core that comes twice, because it was tried twice, counts once. stored: told of every pack that is
    finished: its key, and the bytes it takes. finishing: called before each is stored; may raise. keys: the packs to
    take care of; None: all. alone: no other process writes into the folder.
    """

    def __init__(
        self,
        store: PackStore,
        stored: Callable[[tuple[int, int], int], None] | None = None,
        finishing: Callable[[], None] | None = None,
        keys: Collection[tuple[int, int]] | None = None,
        alone: bool = True,
    ) -> None:
        if alone:
            store.remove_leftovers()
        self._tell, self._finishing = stored, finishing
        self._store = store
        keys = store.keys() if keys is None else keys
        done = store.done(keys)
        windows = {key: store.window(key) for key in keys}
        self._windows = {key: window for key, window in windows.items() if key not in done}
        self._missing = {key: _area(w) for key, w in self._windows.items()}
        self._parts: dict[tuple[int, int], dict[Window, Facts]] = {key: {} for key in self._windows}
        self._open: dict[tuple[int, int], Floats | Encoded] = {}
        self._lock = threading.Lock()
        self._written = self._empty = 0
        self._kept = len(done)
        self._facts = {key: Facts.from_json(store.index(key).facts) for key in done}
        self.total_px = sum(map(_area, windows.values()))
        """HR pixels of all packs that it takes care of."""
        self.done_px = self.total_px - sum(self._missing.values())
        """HR pixels in packs that an earlier run stored."""

    @property
    def facts(self) -> Facts:
        """Over all pixels so far, those that earlier runs stored included; the same whoever computed which."""
        with self._lock:
            each = self._facts | {key: _total(parts) for key, parts in self._parts.items()}
        return sum((each[key] for key in sorted(each)), Facts())

    @property
    def pending(self) -> int:
        """Number of packs that are not stored yet."""
        return len(self._missing)

    def expect(self, key: tuple[int, int]) -> Window:
        """Take care of one more pack. Returns its HR pixels. What there is of one that was expected before stays."""
        window = self._store.window(key)
        with self._lock:
            if key not in self._missing:
                self._windows[key], self._missing[key], self._parts[key] = window, _area(window), {}
        return window

    def pending_windows(self, side: int) -> Iterator[Window]:
        """Packs to compute, row by row, in LR pixels. side: of a pack in LR pixels."""
        for key, window in sorted(self._windows.items()):
            yield Window(key[0] * side, key[1] * side, window.height // SCALE, window.width // SCALE)

    def add(
        self, core: Window, pixels: Floats | Encoded | None, facts: Callable[[Window], Facts] | None = None
    ) -> None:
        """Take over a core.

        core: in HR pixels, its bounds even or at the scene's end. pixels: float32 (bands, height, width), NaN = nodata,
        or of a uint16 output encoded already; None: all of it is nodata.
        facts: what there is to count in a part of the core, in HR pixels of the scene.
        """
        codec = self._store.spec.codec
        if isinstance(pixels, np.ndarray) and codec.dtype == "uint16":
            pixels = codec.encoded(pixels)
        for key in self._touched(core):
            part = core.shared_with(self._windows[key])
            if not self._first(key, part):
                continue
            if pixels is not None:
                self._paste(key, part, pixels, core)
                if facts is not None:
                    self._count(key, part, facts(part))
            if self._last(key, part):
                self._finish(key)

    def counts(self) -> dict[str, int]:
        """Packs by what became of them in this run."""
        return {"written": self._written, "all_nodata": self._empty, "kept_from_earlier_run": self._kept}

    def _touched(self, core: Window) -> list[tuple[int, int]]:
        side = self._store.side
        rows = range(core.row // side, (core.row + core.height - 1) // side + 1)
        cols = range(core.col // side, (core.col + core.width - 1) // side + 1)
        return [(r, c) for r in rows for c in cols if (r, c) in self._windows]

    def _paste(self, key: tuple[int, int], part: Window, pixels: Floats | Encoded, core: Window) -> None:
        window = self._windows[key]
        with self._lock:
            if key not in self._open:
                self._open[key] = self._store.spec.codec.empty(pixels.shape[0], *window.shape)
            target = self._open[key]
        rows, cols = part.slices_in(core)
        place = part.slices_in(window)
        if isinstance(pixels, Encoded):
            assert isinstance(target, Encoded)
            target.paste(pixels.cut(rows, cols), *place)
        else:
            assert isinstance(target, np.ndarray)
            target[:, place[0], place[1]] = pixels[:, rows, cols]

    def _count(self, key: tuple[int, int], part: Window, facts: Facts) -> None:
        with self._lock:
            self._parts[key][part] = facts

    def _first(self, key: tuple[int, int], part: Window) -> bool:
        with self._lock:
            if key not in self._missing or part in self._parts[key]:
                return False
            self._parts[key][part] = Facts()
            return True

    def _last(self, key: tuple[int, int], part: Window) -> bool:
        with self._lock:
            self._missing[key] -= _area(part)
            return self._missing[key] == 0

    def _finish(self, key: tuple[int, int]) -> None:
        with self._lock:
            pixels, facts = self._open.pop(key, None), _total(self._parts[key])
        if self._finishing is not None:
            self._finishing()
        store, counted = self._store, facts.to_json()
        size = store.write_empty(key) if pixels is None else store.write(key, pixels, counted)
        if self._tell is not None:
            self._tell(key, size)
        with self._lock:
            self._missing.pop(key)
            self._parts.pop(key)
            self._facts[key] = facts
            self._empty += pixels is None
            self._written += pixels is not None


def _total(parts: Mapping[Window, Facts]) -> Facts:
    """In the order of the cores: in that in which they came, the last bits of sums would be the threads' choice."""
    return sum((parts[part] for part in sorted(parts)), Facts())


def _area(window: Window) -> int:
    return window.height * window.width
