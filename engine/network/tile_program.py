"""A whole tile on the device: the files' pixels in, the output's pixels out, in one piece of memory each.

The same steps as on a CPU (raster.layers, the network, run.products, output.facts), written for tensors. All shapes of
TileProgram are fixed, so that a CUDA graph holds it; `cut` follows with what depends on where the core lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.core.forms import LATTICE, LayerForm, Steps, Wanted, layer_of, returned, sent
from deeplight.engine.core.layout import Layout
from deeplight.engine.core.spec import INPUTS, LIGHTS_ALONE, SCALE
from deeplight.engine.network.compiled import compiled
from deeplight.engine.network.divided import Divided
from deeplight.engine.network.finished import Finished
from deeplight.engine.network.model import Auxiliary
from deeplight.engine.network.tile_layers import (
    CHANNELS,
    Standard,
    TileFile,
    TileLayer,
    Usable,
    empty_layer,
)
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.float32 import exact_float32

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def tensors(layout: Layout, memory: Tensor) -> dict[str, Tensor]:
    """Views of a layout's parts in `memory` (n,), uint8."""
    return {
        p.name: memory[layout.starts[p.name] :][: p.bytes].view(getattr(torch, p.dtype)).view(p.shape)
        for p in layout.parts
    }


class TileProgram:
    """Tiles of height × width LR pixels. Called without arguments, it works from `memory` to `result`.

    compute: the network, as a function of the tensors of spec.INPUTS. forms: how the files of "dmo" and "dem" are
    sent, where they are given. slots: 1 for each of spec.DMO_SLOTS that the scene has. memory, result: bytes on the
    device, laid out as `forms.sent` and `forms.returned`. implementation: of kernels.align. compiling: on CUDA, let
    Inductor fuse what is around the network.
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
        self._size = (SCALE * shape[0], SCALE * shape[1])
        standard = _standard(forms, None if suggested is None else divided)
        # files of like pixels share one, which is compiled once
        self._usable = {
            like: fuse(Usable(like).to(device).eval(), device) for like in map(_pixels_of, forms.values())
        }
        files: dict[str, list[TileFile]] = {}
        for key, form in forms.items():
            usable = self._usable[_pixels_of(form)]
            file = TileFile(key, form, self._size, usable, device, implementation, standard)
            files.setdefault(layer_of(key), []).append(file)
        self._layers = {name: TileLayer(own, name, self._size, device) for name, own in files.items()}
        self._absent = {
            name: empty_layer(name, self._size, device, standard.dtype)
            for name in CHANNELS
            if standard is not None and name not in self._layers
        }
        self._standardised = standard is not None
        self._finished = fuse(Finished(wanted).to(device).eval(), device)

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor([list(values)], dtype=torch.float32, device=device)

        self._told = {"dmo_bands": vector(slots), "psf": vector(wanted.psf), "limits": vector(wanted.limits)}

    @property
    def fallbacks(self) -> dict[str, str]:
        """What runs uncompiled here, beside the network, although a compiler was asked, and why."""
        found: dict[str, str] = {}
        for part in (self._finished, *self._usable.values()):
            found |= getattr(part, "fallbacks", {})
        return found

    def __call__(self) -> None:
        """One tile, with products in full float32, whether or not it is captured."""
        with exact_float32():
            self._tile(known=False)

    def known(self) -> None:
        """As a call, of a tile of which `suggested` holds the lights that its layers suggest."""
        with exact_float32():
            self._tile(known=True)

    def _tile(self, *, known: bool) -> None:
        aux = self._auxiliary() if self._standardised else None
        inputs = self.inputs() if aux is None else self._beside(aux)
        given = [inputs[spec.name] for spec in INPUTS]
        if self._alone is not None:
            radiance, isp, interval = self._alone([inputs[name] for name in LIGHTS_ALONE])
            outputs: Sequence[Tensor] = (radiance, isp, radiance.new_zeros(1, 2, *self._shape), interval)
        elif self._divided is not None and self._suggested is not None:
            outputs = self._divided(given, self._suggested, known=known, aux=aux)
        else:
            outputs = self._compute(given)
        own = self._parts["own"][None, None]
        found = self._finished(*outputs, *given, own)
        for name, values in zip(("pixels", "seen", "counts"), found, strict=True):
            self._result[name].copy_(values)

    def _auxiliary(self) -> Auxiliary:
        """DMO and DEM, standardised, each with its validity."""
        absent, parts = self._absent, self._parts
        return tuple(absent[name] if name in absent else self._layers[name](parts) for name in CHANNELS)

    def _beside(self, aux: Auxiliary) -> dict[str, Tensor]:
        """As `inputs`, with validity of the layers, but what stands for their values is not read by the network."""
        found = self._lights()
        for name, both in zip(CHANNELS, aux, strict=True):
            found[name], found[f"{name}_valid"] = both[:, :-1], both[:, -1:]
        return found

    def inputs(self) -> dict[str, Tensor]:
        """The network's inputs, physical, batch of 1; of a program whose network takes physical ones."""
        found = self._lights()
        for name, channels in CHANNELS.items():
            layer = self._layers.get(name)
            if layer is None:
                # the network for lights alone reads none of it, so one number stands for all
                side = (1, 1) if self._alone is not None else self._size
                values = found["ntl"].new_zeros(1, channels, *side).expand(1, channels, *self._size)
                valid = values[:, :1]
            else:
                both = layer(self._parts)
                values, valid = both[:, :-1], both[:, -1:]
            found[name], found[f"{name}_valid"] = values, valid
        return found

    def _lights(self) -> dict[str, Tensor]:
        """What does not belong to layers."""
        lights = {"ntl": self._parts["ntl"][None, None], "ntl_valid": self._parts["valid"][None, None]}
        return lights | self._told


def _standard(forms: Mapping[str, LayerForm], divided: Divided | None) -> Standard | None:
    """How layers of these forms reach the network: a network in parts takes what `align` writes, values and validity
    together. None: as physical values."""
    if divided is None or not forms:
        return None
    return Standard(divided.normalise.lines(), divided.dtype)


def _pixels_of(form: LayerForm) -> LayerForm:
    """The form without what says nothing of its pixels: which channels they are, and where they lie."""
    return replace(form, channels=tuple(range(len(form.channels))), step=LATTICE)


def _as_it_is(part: nn.Module, device: torch.device) -> nn.Module:
    return part


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
