"""Pictures of a result: the quicklook of deeplight-infer, and a figure of matplotlib."""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deeplight.api.result import CONTEXT, Result
from deeplight.engine.core.spec import SCALE

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST = 180
"""LR pixels a side of a picture: of larger results the middle is drawn."""


def as_image(result: Result) -> Image:
    """Lights, result and bicubic interpolation side by side, with a colour bar."""
    from deeplight.engine.output.quicklook import render
    from deeplight.engine.raster.units import shown

    height, width = (side // SCALE for side in result.radiance.shape)
    h, w = min(height, _MOST), min(width, _MOST)
    row, col = (height - h) // 2, (width - w) // 2
    lr = result.lr[row : row + h + 2 * CONTEXT, col : col + w + 2 * CONTEXT]
    hr = result.radiance[row * SCALE : (row + h) * SCALE, col * SCALE : (col + w) * SCALE]
    place = "" if (h, w) == (height, width) else f"the middle {h}×{w} of {height}×{width} LR pixels"
    return render(lr, hr, shown(result.unit), place)


def as_png(result: Result) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    as_image(result).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(result: Result) -> Any:
    """A figure of matplotlib, or the picture where that is not installed."""
    image = as_image(result)
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError:
        return image
    figure, axes = pyplot.subplots(figsize=(image.width / 160, image.height / 160), layout="constrained")
    axes.imshow(image)
    axes.set_axis_off()
    return figure
