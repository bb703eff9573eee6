"""Windows of places as batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS
from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import SampleSource
from deeplight.train.fit.losses import Truth
from deeplight.train.fit.parts import Parts, window_parts

CHECKED, LARGEST = 40, 96
"""Side, in LR pixels, of what validation scores in each place, and the largest window that it takes with its rim."""


@dataclass(frozen=True)
class Batch(Truth):
    """What a step or a validation sees of some windows: the truth, and the inputs that it is to be told from.

    inputs: in the order of `spec.INPUTS`, with its shapes.
    """

    inputs: tuple[Tensor, ...] = field(kw_only=True)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in pinned memory; the DataLoader calls it."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        truth = {f.name: getattr(self, f.name) for f in fields(Truth)}
        changed: dict[str, Any] = {name: None if t is None else change(t) for name, t in truth.items()}
        return replace(self, inputs=tuple(change(t) for t in self.inputs), **changed)


def collated(rows: Sequence[Parts]) -> Batch:
    """Make one batch of several windows. It has an offset only where all of them have one."""
    offset = all("offset" in row for row in rows)
    names = [name for name in rows[0] if name != "offset" or offset]
    parts = {name: torch.stack([row[name] for row in rows]) for name in names}
    return Batch(
        parts["ntl_hr"],
        parts["isp"],
        parts["weight"],
        parts.get("offset"),
        _mask(parts["ntl_hr_valid"]),
        _mask(parts["isp_valid"]),
        inputs=tuple(parts[spec.name] for spec in INPUTS),
    )


def _mask(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid


class FixedBatches:
    """The windows of validation: the centre of each place, not augmented, with a rim that only serves as surroundings.

    Reads anew each time it is gone through, so memory holds one batch. Places that cannot be read are left out and
    named in `unreadable`.
    """

    def __init__(
        self,
        source: SampleSource,
        size: int,
        halo: int,
        limit: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """size: places in a batch. halo: of the network, in LR pixels. limit: the most places, which are taken evenly.
        device: where the batches go.
        """
        self._source, self._size, self._halo = source, size, halo
        self._device = device or torch.device("cpu")
        step = max(1, -(-len(source) // limit)) if limit else 1
        self._places = range(0, len(source), step)
        checked = min(CHECKED, LARGEST - 2 * halo)
        if checked < 1:
            raise InputError(f"a halo of {halo} LR pixels leaves nothing to validate in {LARGEST}")
        sides = [max(source.size(i)) for i in self._places]
        self._crop = min(checked + 2 * halo, max(sides, default=1))
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-len(self._places) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        """Read and yield batches of up to `size` places."""
        rows: list[Parts] = []
        for index in self._places:
            try:
                rows.append(self._centre(index))
            except InputError as error:
                self.unreadable[self._source.name(index)] = str(error)
            if len(rows) == self._size:
                yield collated(rows).to(self._device)
                rows = []
        if rows:
            yield collated(rows).to(self._device)

    def _centre(self, index: int) -> Parts:
        h, w = self._source.size(index)
        height, width = min(h, self._crop), min(w, self._crop)
        window = Window((h - height) // 2, (w - width) // 2, height, width)
        return window_parts(self._source.read(index, window), (h, w), self._crop, self._halo)
