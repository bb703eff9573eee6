"""A whole tile on the device: the files' pixels in, the output's pixels out, in one piece of memory each.

The same steps as on a CPU (raster.layers, the network, run.products, output.facts), written for tensors. All shapes of
TileProgram are fixed, so that a CUDA graph holds it; `cut` follows with what depends on where the core lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.core.forms import LayerForm, Steps, Wanted, returned, sent
from deeplight.engine.core.layout import Layout
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, LIGHTS_ALONE, SCALE
from deeplight.engine.network.compiled import Compiled, compiled
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.finished import Finished
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.dispatch import Implementation

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_CHANNELS = {"dmo": len(DMO_SLOTS), "dem": 1}


def tensors(layout: Layout, memory: Tensor) -> dict[str, Tensor]:
    """Views of a layout's parts in `memory` (n,), uint8."""
    return {
        p.name: memory[layout.starts[p.name] :][: p.bytes].view(getattr(torch, p.dtype)).view(p.shape)
        for p in layout.parts
    }


class TileProgram:
    """Tiles of height × width LR pixels. Called without arguments, it works from `memory` to `result`.

    compute: the network, as a function of the tensors of spec.INPUTS. forms: how "dmo" and "dem" are sent, where they
    are given. slots: 1 for each of spec.DMO_SLOTS that the scene has. memory, result: bytes on the device, laid out as
    `forms.sent` and `forms.returned`. implementation: of kernels.align. compiling: on CUDA, let Inductor fuse what is
    around the network.
    """

    def __init__(
        self,
        compute: Compute,
        forms: Mapping[str, LayerForm],
        wanted: Wanted,
        slots: Sequence[int],
        shape: tuple[int, int],
        memory: Tensor,
        result: Tensor,
        implementation: Implementation = "auto",
        *,
        compiling: bool = True,
        alone: Compute | None = None,
        divided: Divided | None = None,
        suggested: Tensor | None = None,
    ) -> None:
        """alone: the network without layers, as a function of the tensors of spec.LIGHTS_ALONE; it takes the place of
        `compute` where there are no layers and nothing is wanted that comes from them. divided: the network in parts,
        in place of `compute`; what the layers suggest then lies in `suggested`, (h, w) float32 as bytes."""
        self._compute, self._shape = compute, shape
        self._alone = alone if not forms and not {"offset", "quality"}.intersection(wanted.bands) else None
        self._divided, device = divided, memory.device
        self._suggested = None if suggested is None else suggested.view(torch.float32).view(1, 1, *shape)
        self._parts = tensors(sent(forms, *shape), memory)
        self._result = tensors(returned(wanted.count, *shape), result)
        fuse = compiled if compiling else _as_it_is
        self._layers = {
            name: _Layer(name, form, fuse(Usable(form).to(device).eval(), device), device, implementation)
            for name, form in forms.items()
        }
        self._finished = fuse(Finished(wanted).to(device).eval(), device)
        # bands that a file lacks stay 0; beside each other, as the network reads them
        self._gathered = {
            name: torch.empty(
                (1, _CHANNELS[name], *(SCALE * n for n in shape)),
                device=device,
                memory_format=torch.channels_last,
            ).zero_()
            for name, form in forms.items()
            if len(form.channels) < _CHANNELS[name]
        }

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor([list(values)], dtype=torch.float32, device=device)

        self._told = {"dmo_bands": vector(slots), "psf": vector(wanted.psf), "limits": vector(wanted.limits)}

    @property
    def fallbacks(self) -> dict[str, str]:
        """What runs uncompiled here, beside the network, although a compiler was asked, and why."""
        found: dict[str, str] = {}
        for part in (self._finished, *(layer.usable for layer in self._layers.values())):
            found |= getattr(part, "fallbacks", {})
        return found

    def __call__(self) -> None:
        """One tile."""
        self._tile(known=False)

    def known(self) -> None:
        """One tile, of which `suggested` holds the lights that its layers suggest."""
        self._tile(known=True)

    def _tile(self, *, known: bool) -> None:
        inputs = self.inputs()
        given = [inputs[spec.name] for spec in INPUTS]
        if self._alone is not None:
            radiance, isp, interval = self._alone([inputs[name] for name in LIGHTS_ALONE])
            outputs: Sequence[Tensor] = (radiance, isp, radiance.new_zeros(1, 2, *self._shape), interval)
        elif self._divided is not None and self._suggested is not None:
            outputs = self._divided(given, self._suggested, known=known)
        else:
            outputs = self._compute(given)
        own = self._parts["own"][None, None]
        found = self._finished(*outputs, *given, own)
        for name, values in zip(("pixels", "seen", "counts"), found, strict=True):
            self._result[name].copy_(values)

    def inputs(self) -> dict[str, Tensor]:
        """The network's inputs, physical, batch of 1."""
        high, wide = (SCALE * n for n in self._shape)
        found = {"ntl": self._parts["ntl"][None, None], "ntl_valid": self._parts["valid"][None, None]}
        for name, channels in _CHANNELS.items():
            if name in self._layers:
                values, valid = self._layers[name](self._parts, (high, wide))
                if name in self._gathered:
                    values = self._gathered[name].index_copy_(1, self._layers[name].places, values)
            else:
                # the network for lights alone reads none of it, so one number stands for all
                side = (1, 1) if self._alone is not None else (high, wide)
                values = found["ntl"].new_zeros(1, channels, *side).expand(1, channels, high, wide)
                valid = values[:, :1]
            found[name], found[f"{name}_valid"] = values, valid
        return found | self._told


class _Layer:
    """One layer: what was sent → physical values (1, C, 8h, 8w), 0 where invalid, and validity (1, 1, 8h, 8w)."""

    def __init__(
        self,
        name: str,
        form: LayerForm,
        usable: nn.Module | Compiled,
        device: torch.device,
        implementation: Implementation,
    ) -> None:
        """usable: as Usable(form)."""
        self.usable = usable
        self.form, self._name, self._implementation = form, name, implementation
        bands = len(form.channels)
        gain, bias = (form.gain, form.bias) if form.kind == "raw" else ((1.0,) * bands, (0.0,) * bands)
        # on the device from the start: a graph cannot hold a copy from the host
        self.places = torch.tensor(form.channels, device=device)
        self._gain = torch.tensor([gain], dtype=torch.float32, device=device)
        self._bias = torch.tensor([bias], dtype=torch.float32, device=device)

    def __call__(self, parts: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        def part(name: str) -> Tensor:
            return parts[f"{self._name}.{name}"]

        if self.form.kind == "hr":
            return part("values")[None], part("mask")[None, None].to(torch.float32)
        pixels = part("pixels")
        # Inductor and PyTorch know little of uint16: the same bits as int16
        bits = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
        mask = part("mask") if self.form.masked else torch.ones_like(part("extent"), dtype=torch.uint8)
        mask = self.usable(bits, part("extent"), mask)
        out = kernels.align(
            pixels.permute(2, 0, 1)[None],
            self._gain,
            self._bias,
            mask[None, None],
            mesh=TileMesh(part("whole")[None], part("fraction")[None], 0, 0, self.form.step),
            size=size,
            bounds=(-math.inf, math.inf),
            dtype=torch.float32,
            implementation=self._implementation,
        )
        return out[:, :-1], out[:, -1:]


def _as_it_is(part: nn.Module, device: torch.device) -> nn.Module:
    return part


class Usable(nn.Module):
    """Where all bands of a pixel hold a value: as raster.convert.to_physical and Layer.read_native."""

    gain: Tensor
    bias: Tensor

    def __init__(self, form: LayerForm) -> None:
        super().__init__()
        self._form = form
        self.register_buffer("gain", torch.tensor(form.gain, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(form.bias, dtype=torch.float32))

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
            values = raw.to(torch.float32) * self.gain + self.bias
            if form.dtype == "float32":
                usable = usable & torch.isfinite(values).all(dim=-1)
            if form.limits is not None:
                low, high = form.limits
                usable = usable & ((values >= low) & (values <= high)).all(dim=-1)
        return usable.to(torch.uint8)


def cut(
    made: Mapping[str, Tensor],
    own: Tensor,
    wanted: Mapping[str, Tensor],
    place: tuple[slice, slice],
    steps: Steps | None,
    implementation: Implementation = "auto",
) -> Callable[[], None]:
    """What makes the output's pixels of a core.

    made: a tile's result, `forms.returned`, not masked. own: (h, w), 0 where the output is nodata. wanted: written,
    `forms.returned` of the core, with `steps` where the output is uint16. place: of the core in the tile, in LR pixels.
    """
    rows, cols = place
    how = {} if steps is None else {"scale": steps.scale, "offset": steps.offset, "nodata": steps.nodata}

    def run() -> None:
        wanted["counts"].copy_(made["counts"])
        wanted["seen"].copy_(made["seen"][rows, cols])
        kernels.finish(
            made["pixels"],
            own,
            wanted["pixels" if steps is None else "steps"],
            wanted.get("halves"),
            corner=(rows.start, cols.start),
            implementation=implementation,
            **how,
        )

    return run
