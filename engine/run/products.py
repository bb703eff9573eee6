"""From the model's outputs over a tile to the bands of its core."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from deeplight.engine.core.arrays import Floats, to_hr
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.conserve import conserve_radiance, seen_of
from deeplight.engine.run.quality import extrapolated_from, quality_flags
from deeplight.engine.runtime.manifest import Manifest

_MODEL_OUTPUT = {"quality": "offset"}
"""Extra bands that are made from a model output of another name."""


def model_outputs(bands: Sequence[str]) -> tuple[str, ...]:
    """The model outputs that the radiance band and these extra bands need, each once."""
    return tuple(dict.fromkeys(["ntl_hr", *(_MODEL_OUTPUT.get(band, band) for band in bands)]))


class Products:
    """What one run writes. `make` may be called from any thread.

    bands: of options.EXTRA_BANDS. conserve: bring it into agreement with LR. ceiling: see Scene.ceiling.
    """

    def __init__(self, bands: Sequence[str], manifest: Manifest, ceiling: float, conserve: bool) -> None:
        self.model_outputs = model_outputs(bands)
        self._bands = tuple(bands)
        self._conserve = conserve
        self._ceiling = ceiling
        self._radius = math.ceil(manifest.receptive_field_lr)
        self._far = extrapolated_from(manifest.d_max)

    def make(
        self, outputs: Mapping[str, Floats], inputs: Mapping[str, Floats], core: Window, window: Window
    ) -> tuple[Floats, Floats]:
        """The bands (n, 8h, 8w) of a core, not masked yet, and what the sensor would see of its radiance (h, w).

        outputs, inputs: the model's, of `window`, batch of 1. core, window: in LR pixels; `window` is the core's
        tiling.tile_window.
        """
        radiance, factor = _cut(outputs["ntl_hr"], core, window)[0], None
        if self._conserve:
            radiance, factor, seen = conserve_radiance(outputs["ntl_hr"][0, 0], inputs, core, window)
        else:
            seen = seen_of(outputs["ntl_hr"][0, 0], inputs, core, window)
        made = [radiance[None]]
        for band in self._bands:
            if band == "quality":
                offset = outputs["offset"][0]
                flags = quality_flags(inputs, offset, core, window, self._radius, self._ceiling, self._far)
                made.append(flags[None])
            elif band == "interval":
                made.append(_around(_cut(outputs["interval"], core, window), radiance, factor))
            else:
                made.append(_cut(outputs[band], core, window))
        return np.concatenate(made), seen


def _cut(output: Floats, core: Window, window: Window) -> Floats:
    """The core of an output (1, C, …) over `window`, on the HR grid: LR pixels are repeated."""
    if output.shape[-2:] == window.shape:
        rows, cols = core.slices_in(window)
        return to_hr(output[0, :, rows, cols])
    rows, cols = core.scaled(SCALE).slices_in(window.scaled(SCALE))
    return output[0, :, rows, cols]


def _around(interval: Floats, radiance: Floats, factor: Floats | None) -> Floats:
    """The ends (2, 8h, 8w), moved as the radiance was and on their sides of it: low ≤ radiance ≤ high."""
    low, high = interval if factor is None else interval * factor
    return np.stack([np.minimum(low, radiance), np.maximum(high, radiance)])
