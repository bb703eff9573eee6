"""What is evaluated: a model on the engine's backend, with and without auxiliary layers; interpolations beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.tiling import tile_window
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.train.evaluation.bicubic import bicubic

Inputs = Mapping[str, NDArray[np.float32]]
NETWORK, NO_AUXILIARY, BICUBIC, NEAREST = "network", "network, no auxiliary", "bicubic", "nearest"
REACH = 4
"""LR pixels around a window that the interpolations see, filled holes included."""
_AUXILIARY = ("dmo", "dmo_valid", "dmo_bands", "dem", "dem_valid")
_FILLER = (1.0, 2.0, 4.0, 2.0, 1.0)


class EvaluatedNetwork:
    """A built-in model, an exported folder or a training run, on the engine's backend."""

    def __init__(self, model: str, threads: int) -> None:
        """Raises InputError in one sentence where there is no such model or nothing to run it."""
        self._artifact = load_artifact(model)
        self._backend = open_backend("auto", self._artifact, threads=threads)

    @property
    def trained_on(self) -> str:
        """The name of the folder that held its training data; empty where it was trained on another kind of data."""
        data = self._artifact.manifest.training.get("data")
        if not isinstance(data, dict) or data.get("kind") != "folder":
            return ""
        return str(data.get("name", ""))

    def window(self, wanted: Window) -> Window:
        """Return the LR pixels to read so that `wanted` comes out as it would without tiles."""
        return tile_window(wanted, self._artifact.manifest.halo_lr, self._artifact.manifest)

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the radiance (8h, 8w) of the inputs of one tile (as spec.INPUTS, batch of 1)."""
        radiance: NDArray[np.float32] = self._backend.run(dict(inputs))["ntl_hr"][0, 0]
        return radiance

    def describe(self) -> dict[str, Any]:
        """Return what the report says of the model."""
        manifest = self._artifact.manifest
        return {
            "name": manifest.name,
            "sha256": self._artifact.digest,
            "backend": self._backend.name,
            "step": manifest.training.get("step"),
        }


class Method(Protocol):
    """One way to get radiance on the HR grid."""

    def window(self, wanted: Window) -> Window:
        """Return the LR pixels that `radiance` needs for `wanted`."""
        ...

    def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
        """Return radiance on `wanted`, (8h, 8w), NaN where there is none. inputs: on `read`, which holds
        `window(wanted)`."""
        ...


@dataclass(frozen=True)
class NetworkMethod:
    """The network, with or without the auxiliary layers that there are."""

    network: EvaluatedNetwork
    auxiliary: bool = True

    def window(self, wanted: Window) -> Window:
        """Return the window with the network's halo."""
        return self.network.window(wanted)

    def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
        """Return the network's radiance on `wanted`, (8h, 8w)."""
        given = inputs if self.auxiliary else without_auxiliary(inputs)
        out = self.network.run(given).astype(np.float64)
        return out[wanted.scaled(SCALE).slices_in(read.scaled(SCALE))]


@dataclass(frozen=True)
class Interpolation:
    """BICUBIC or NEAREST of the LR radiance, holes of the LR filled first."""

    kind: str

    def window(self, wanted: Window) -> Window:
        """Return the window and REACH LR pixels around it."""
        return wanted.grown(REACH)

    def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
        """Return the interpolated radiance on `wanted`, (8h, 8w)."""
        near = wanted.grown(REACH).slices_in(read)
        lr, valid = (
            torch.from_numpy(np.ascontiguousarray(inputs[name][..., near[0], near[1]])).double()
            for name in ("ntl", "ntl_valid")
        )
        filled = fill_holes(lr * valid, valid)
        image: Doubles = _ENLARGED[self.kind](filled)[0, 0].numpy()
        rim = REACH * SCALE
        return image[rim:-rim, rim:-rim]


def nearest(radiance: torch.Tensor) -> torch.Tensor:
    """Each pixel of radiance (B,1,h,w) repeated 8×8, (B,1,8h,8w)."""
    return F.interpolate(radiance, scale_factor=SCALE, mode="nearest")


_ENLARGED = {BICUBIC: bicubic, NEAREST: nearest}


def without_auxiliary(inputs: Inputs) -> Inputs:
    """Return the inputs as the engine makes them where neither DMO nor DEM is given."""
    return {name: np.zeros_like(v) if name in _AUXILIARY else v for name, v in inputs.items()}


def fill_holes(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Invalid pixels take the weighted mean of valid ones within 2 pixels, so that interpolation leaves rims bright.

    values (0 where invalid), valid: (1,1,h,w). The network fills holes in the same way, so the
    baselines have the same chance.
    """
    line = torch.tensor(_FILLER, dtype=values.dtype)
    kernel = (line[:, None] * line[None, :])[None, None]
    near, weight = (F.conv2d(x, kernel, padding=2) for x in (values, valid))
    return values + (1.0 - valid) * near / weight.clamp(min=1.0)


def methods_of(network: EvaluatedNetwork) -> dict[str, Method]:
    """Return the network and every method that stands beside it, in the order of the tables."""
    return {
        NETWORK: NetworkMethod(network),
        NO_AUXILIARY: NetworkMethod(network, auxiliary=False),
        BICUBIC: Interpolation(BICUBIC),
        NEAREST: Interpolation(NEAREST),
    }
