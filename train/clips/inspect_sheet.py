"""A contact sheet of a clip tree: for each clip what the index says and its layers side by side, as PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.files import write_file
from deeplight.engine.core.windows import Window
from deeplight.engine.output.colormap import NODATA_RGB, light_colours
from deeplight.engine.output.quicklook import Stretch
from deeplight.train.clips.samples import ClipError, Sample
from deeplight.train.clips.tree import ClipTree

MOST = 24
"""Clips on a sheet, spread evenly over splits and places."""
_THUMB, _GAP, _MARGIN, _LABEL, _HEAD = 176, 8, 24, 204, 28
_LETTERS = 26
"""That fit beside a clip."""
_BACKGROUND, _TEXT, _DIM, _WRONG = (16, 18, 24), (236, 238, 242), (158, 164, 176), (255, 120, 100)
_TITLES = {
    "ntl": "LR lights",
    "ntl_hr": "HR lights",
    "dmo": "daytime",
    "dem": "elevation",
    "isp": "impervious",
}
Picture = NDArray[np.uint8]


def write_sheet(tree: ClipTree, out: Path) -> int:
    """Draw up to MOST clips and write the PNG; returns how many. Unreadable ones are drawn as such.

    Lights of a clip share one asinh stretch, whose top is told; daytime is red, green, blue (or the first band in
    grey), reflectance 0 … 0.4, brightened by a square root; elevation is stretched over the clip; grey is no data.
    A clip is shown whole, at whatever size it has.
    """
    chosen = _chosen(tree)
    there = {name for row in tree.rows for name in row.layers.split()}
    layers = [name for name in _TITLES if name in there]
    cell = _LABEL + len(layers) * (_THUMB + _GAP)
    across = math.ceil(math.sqrt(len(chosen) * (_THUMB + _GAP) / cell))  # nearly square
    down = -(-len(chosen) // across)
    size = (_MARGIN * 2 + across * cell, _MARGIN * 2 + _HEAD + down * (_THUMB + _GAP))
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, index in enumerate(chosen):
        column, line = divmod(number, down)
        left = _MARGIN + column * cell
        if not line:
            for k, name in enumerate(layers):
                draw.text((left + _LABEL + k * (_THUMB + _GAP), _MARGIN), _TITLES[name], _TEXT, _font(16))
        _draw_clip(canvas, draw, tree, index, (left, _MARGIN + _HEAD + line * (_THUMB + _GAP)), layers)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    write_file(out, [buffer.getvalue()])
    return len(chosen)


def _chosen(tree: ClipTree) -> list[int]:
    """Clips in the order split, place, name: all, or evenly spaced ones."""
    rows = tree.rows
    order = sorted(range(len(rows)), key=lambda i: (rows[i].split, rows[i].place, rows[i].clip))
    picks = np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int))
    return [order[i] for i in picks.tolist()]


def _draw_clip(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    tree: ClipTree,
    index: int,
    corner: tuple[int, int],
    layers: list[str],
) -> None:
    row, (left, top) = tree.rows[index], corner
    lines = [f"{row.split}: {row.place}"[:_LETTERS], row.date[:_LETTERS], f"row {row.row}, column {row.col}",
             f"{row.height} x {row.width} LR px", f"valid {row.valid:.0%}, lit {row.lit:.0%}"]  # fmt: skip
    if row.cloud:
        lines.append(f"cloud {row.cloud:.0%}")
    try:
        sample = tree.read(index, Window(0, 0, *tree.size(index)))
    except ClipError as error:
        told = [*lines, *_wrapped(str(error), 24 + 24 * len(layers))]
        draw.text(corner, "\n".join(told), _WRONG, _font(14))
        return
    pictures, most = _pictures(sample, row.layers.split())
    lines.append(f"up to {most:g} {row.unit}".translate(str.maketrans("²", "2")))
    draw.text(corner, "\n".join(filter(None, lines)), _DIM, _font(14))
    for k, layer in enumerate(layers):
        at = (left + _LABEL + k * (_THUMB + _GAP), top)
        if layer in pictures:
            canvas.paste(_thumb(pictures[layer]), at)
        else:
            draw.rectangle((*at, at[0] + _THUMB - 1, at[1] + _THUMB - 1), outline=(44, 48, 58))
            draw.text((at[0] + 10, at[1] + 8), "none", _DIM, _font(14))


def _pictures(sample: Sample, layers: list[str]) -> tuple[dict[str, Picture], float]:
    """RGB (h, w, 3) by layer, and the top of the lights' stretch."""
    lights: dict[str, Floats] = {
        name: np.where(getattr(sample, f"{name}_valid")[0] != 0, getattr(sample, name)[0], np.float32(np.nan))
        for name in ("ntl", "ntl_hr")
        if name in layers
    }
    stretch = Stretch.of(*lights.values())
    colours = light_colours()
    out: dict[str, Picture] = {name: _painted(stretch(values), colours) for name, values in lights.items()}
    grey = np.linspace(0, 255, 256).round().astype(np.uint8)[:, None].repeat(3, 1)
    if "dmo" in layers:
        out["dmo"] = _daytime(sample)
    if "dem" in layers:
        heights = np.where(sample.dem_valid[0] != 0, sample.dem[0], np.float32(np.nan))
        low, high = (np.nanmin(heights), np.nanmax(heights)) if sample.dem_valid.any() else (0.0, 1.0)
        out["dem"] = _painted((heights - low) / max(float(high - low), 1.0), grey)
    if "isp" in layers:
        built = np.where(sample.isp_valid[0] != 0, sample.isp[0], np.float32(np.nan))
        out["isp"] = _painted(built, grey)
    return out, stretch.top


def _painted(share: NDArray[np.floating], colours: Picture) -> Picture:
    """Colours of values 0 … 1; NaN is no data."""
    index = np.nan_to_num(np.clip(share, 0, 1) * (len(colours) - 1)).round().astype(np.intp)
    rgb: Picture = colours[index]
    rgb[np.isnan(share)] = NODATA_RGB
    return rgb


def _daytime(sample: Sample) -> Picture:
    bands: list[Floats] = [sample.dmo[i] for i in (3, 2, 1)]
    if not sample.dmo_bands[[1, 2, 3]].all():
        bands = [sample.dmo[int(np.argmax(sample.dmo_bands))]] * 3
    shown = np.sqrt(np.clip(np.stack(bands, axis=-1) / np.float32(0.4), 0, 1))
    rgb: Picture = (shown * 255).round().astype(np.uint8)
    rgb[sample.dmo_valid[0] == 0] = NODATA_RGB
    return rgb


def _thumb(rgb: Picture) -> Image.Image:
    """At most _THUMB a side: enlarged without, reduced with averaging."""
    image = Image.fromarray(rgb)
    factor = _THUMB / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX)


def _wrapped(text: str, columns: int) -> list[str]:
    return [text[i : i + columns] for i in range(0, min(len(text), 8 * columns), columns)]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
