"""One window as tensors by name, which augmentation changes and batches are made of."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from deeplight.engine.core.spec import SCALE
from deeplight.train.clips.samples import Sample

Parts = dict[str, Tensor]
"""A `Sample` by the names of its fields, and `weight` (1,h,w), the loss's; without `offset` where it is not known."""

_SPATIAL_LR = {"ntl", "ntl_valid", "offset"}


def window_parts(sample: Sample, place: tuple[int, int], crop: int, margin: int) -> Parts:
    """Return a window as tensors of crop × crop LR pixels, nodata beyond the window, and the weight of its loss.

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
