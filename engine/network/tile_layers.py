"""A layer of a tile on the device: from what was sent of it to what the network reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.core.admitted import admitted
from deeplight.engine.core.forms import LayerForm, layer_of
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.network.compiled import channels_last
from deeplight.engine.network.normalise import BOUNDS
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.dispatch import Implementation

CHANNELS = {"dmo": len(DMO_SLOTS), "dem": 1}
"""Of the network's layers, in order."""

Line = tuple[float, float]
"""Slope and intercept."""


def empty_layer(name: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Values and validity of a layer, (1, C + 1, H, W), all 0, as `kernels.align` writes them: channels-last, and of
    inference mode, since programs are compiled anew for tensors of another one."""
    shape = (1, CHANNELS[name] + 1, *size)
    with torch.inference_mode():
        return torch.empty(shape, device=device, dtype=dtype, memory_format=torch.channels_last).zero_()


class Standard(NamedTuple):
    """How a network wants its layers. lines: of each of their channels, from physical values to standardised ones,
    which BOUNDS then limit. dtype: of values and validity."""

    lines: Mapping[str, Sequence[Line]]
    dtype: torch.dtype


class TileFile:
    """What was sent of a file → values of its channels, 0 where invalid, and validity behind them: (1, n + 1, H, W),
    channels-last.

    key: of the file, see forms.file_key. size: (H, W), HR pixels. usable: as Usable(form). standard: what values
    become; None: they stay physical, float32.
    """

    def __init__(
        self,
        key: str,
        form: LayerForm,
        size: tuple[int, int],
        usable: nn.Module | Callable[..., Any],
        device: torch.device,
        implementation: Implementation,
        standard: Standard | None,
    ) -> None:
        self._usable = usable
        self.form, self._key, self._size, self._implementation = form, key, size, implementation
        bands, name = len(form.channels), layer_of(key)
        own = zip(form.gain, form.bias, strict=True) if form.kind == "raw" else [(1.0, 0.0)] * bands
        self._bounds = (-math.inf, math.inf) if standard is None else BOUNDS
        self.dtype = torch.float32 if standard is None else standard.dtype
        further = [(1.0, 0.0) if standard is None else standard.lines[name][c] for c in form.channels]
        line = [(a * slope, b * slope + shift) for (a, b), (slope, shift) in zip(own, further, strict=True)]
        # on the device from the start: a graph cannot hold a copy from the host. Each of its own, since kernels copy
        # what does not begin at a multiple of 16 bytes
        self._gain, self._bias = (
            torch.tensor([values], dtype=torch.float32, device=device) for values in zip(*line, strict=True)
        )

    def __call__(self, parts: Mapping[str, Tensor]) -> Tensor:
        """parts: what was sent of the tile."""

        def part(name: str) -> Tensor:
            return parts[f"{self._key}.{name}"]

        pixels = part("pixels")
        # Inductor and PyTorch know little of uint16: the same bits as int16
        bits = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
        mask = part("mask") if self.form.masked else torch.ones_like(part("extent"), dtype=torch.uint8)
        mask = self._usable(bits, part("extent"), mask)
        out = kernels.align(
            pixels.permute(2, 0, 1)[None],
            self._gain,
            self._bias,
            mask[None, None],
            mesh=TileMesh(part("whole")[None], part("fraction")[None], 0, 0, self.form.step),
            size=self._size,
            bounds=self._bounds,
            dtype=self.dtype,
            implementation=self._implementation,
        )
        return channels_last(out)


class TileLayer:
    """What was sent of all files of a layer → values of its channels and validity, (1, C + 1, H, W): valid where each
    file is, and 0 in bands that none has. One that holds all of them in order is the layer as it is."""

    def __init__(
        self, files: Sequence[TileFile], name: str, size: tuple[int, int], device: torch.device
    ) -> None:
        self._files, self._whole = files, None
        if len(files) == 1 and files[0].form.channels == tuple(range(CHANNELS[name])):
            return
        self._whole = empty_layer(name, size, device, files[0].dtype)
        # of the first file with its validity, of others without
        channels = [(*files[0].form.channels, CHANNELS[name]), *(file.form.channels for file in files[1:])]
        self._places = [torch.tensor(places, device=device) for places in channels]

    def __call__(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See TileFile. In inference mode, as `empty_layer` is."""
        first, whole = self._files[0](parts), self._whole
        if whole is None:
            return first
        whole.index_copy_(1, self._places[0], first)
        valid = whole[:, -1:]
        for file, places in zip(self._files[1:], self._places[1:], strict=True):
            found = file(parts)
            whole.index_copy_(1, places, found[:, :-1])
            valid *= found[:, -1:]
        if len(self._files) > 1:
            whole[:, :-1] *= valid
        return whole


class Usable(nn.Module):
    """Where all bands of a pixel hold a value: as raster.convert.to_physical and Layer.read_native."""

    least: Tensor
    most: Tensor

    def __init__(self, form: LayerForm) -> None:
        super().__init__()
        self._form = form
        ends = [admitted(a, b, form.limits) for a, b in zip(form.gain, form.bias, strict=True)]
        self.register_buffer("least", torch.tensor([low for low, _ in ends], dtype=torch.float32))
        self.register_buffer("most", torch.tensor([high for _, high in ends], dtype=torch.float32))

    def forward(self, pixels: Tensor, extent: Tensor, mask: Tensor) -> Tensor:
        """pixels: (h, w, stride), uint16 as int16. extent: (2,), rows and columns that are filled. mask: (h, w),
        nonzero = valid, of any shape where the layer has none. Returns (h, w) uint8."""
        form = self._form
        h, w, _ = pixels.shape
        rows = torch.arange(h, device=pixels.device)[:, None] < extent[0]
        usable = rows & (torch.arange(w, device=pixels.device)[None, :] < extent[1])
        if form.masked:
            usable = usable & (mask != 0)
        if form.kind == "raw":
            raw = pixels[..., : len(form.channels)]
            if form.dtype == "uint16":
                raw = raw.to(torch.int32) & 0xFFFF
            for band, wanted in enumerate(form.sentinels):
                if wanted is not None:
                    usable = usable & (raw[..., band] != wanted)
            values = raw.to(torch.float32)
            usable = usable & ((values >= self.least) & (values <= self.most)).all(dim=-1)
        return usable.to(torch.uint8)
