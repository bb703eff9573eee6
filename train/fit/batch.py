"""Windows of places as batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import Sample, SampleSource
from deeplight.train.fit.augment import Parts

CHECKED, LARGEST = 40, 96
"""Side, in LR pixels, of what validation scores in each place, and the largest window that it takes with its rim."""

_SPATIAL_LR = {"ntl", "ntl_valid", "offset", "weight"}


@dataclass(frozen=True)
class Batch:
    """inputs in the order of `spec.INPUTS`, then the supervision of `losses.Truth`.

    ntl_hr_valid, isp_valid: None where every pixel is valid. offset: None where it is not known.
    """

    inputs: tuple[Tensor, ...]
    ntl_hr: Tensor
    isp: Tensor
    weight: Tensor
    offset: Tensor | None
    ntl_hr_valid: Tensor | None = None
    isp_valid: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in pinned memory, for the DataLoader."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def maybe(t: Tensor | None) -> Tensor | None:
            return None if t is None else change(t)

        return Batch(
            tuple(change(t) for t in self.inputs),
            change(self.ntl_hr),
            change(self.isp),
            change(self.weight),
            maybe(self.offset),
            maybe(self.ntl_hr_valid),
            maybe(self.isp_valid),
        )


def window_parts(sample: Sample, place: tuple[int, int], crop: int, margin: int) -> Parts:
    """A sample's window as tensors of crop × crop LR pixels, nodata beyond the window, and the weight of its loss.

    place: (h, w) of the place. Where the place goes on beyond the crop, the outer `margin` pixels carry no loss, since
    what they would need is cut off; the edge of the place itself does, as the edge of a scene does in use.
    """
    h, w = sample.ntl.shape[1:]
    parts: Parts = {}
    for f in fields(sample):
        value = getattr(sample, f.name)
        if value is not None:
            parts[f.name] = _padded(torch.from_numpy(np.ascontiguousarray(value)), f.name, h, w, crop)
    weight = torch.zeros(1, crop, crop)
    my, mx = (margin if length > crop else 0 for length in place)
    weight[:, my : h - my, mx : w - mx] = 1.0
    parts["weight"] = weight * parts["ntl_valid"]
    return parts


def _padded(value: Tensor, name: str, h: int, w: int, crop: int) -> Tensor:
    if value.ndim == 1 or (h == crop and w == crop):
        return value.float()
    f = 1 if name in _SPATIAL_LR else SCALE
    out = torch.zeros(value.shape[0], crop * f, crop * f)
    out[:, : h * f, : w * f] = value
    return out


def collated(rows: Sequence[Parts]) -> Batch:
    """One batch of samples; their offset only where all have it."""
    offset = all("offset" in row for row in rows)
    names = [name for name in rows[0] if name != "offset" or offset]
    parts = {name: torch.stack([row[name] for row in rows]) for name in names}
    return Batch(
        tuple(parts[spec.name] for spec in INPUTS),
        parts["ntl_hr"],
        parts["isp"],
        parts["weight"],
        parts.get("offset"),
        _mask(parts["ntl_hr_valid"]),
        _mask(parts["isp_valid"]),
    )


def _mask(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid


class FixedBatches:
    """Validation: the centre of each place, not augmented; its rim gives the rest the surroundings that it sees.

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
        """size: places a batch. halo: of the network, in LR pixels. limit: places, evenly taken, at most. device: where
        the batches go.
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
        """Batches."""
        return -(-len(self._places) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of up to `size` places."""
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
