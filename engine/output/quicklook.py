"""A picture of a run: LR | result | bicubic of one window, in one stretch, with a colour bar and the unit; of a large
scene all of it first, with a frame where the window lies."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deeplight.engine.core.arrays import Floats, to_hr
from deeplight.engine.core.files import write_file
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.colormap import NODATA_RGB, light_colours
from deeplight.engine.output.overview import Overview, brightest, overview, read_map
from deeplight.engine.raster.units import shown

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

_PANEL = 720
"""Longest side in pixels that a panel should have."""
_WHOLE_LR = 2 * _PANEL // SCALE
"""Scenes up to this many LR pixels a side are shown whole, larger ones by a crop of half of it, 1:1."""
_CONTEXT = 2
"""LR pixels around the window that bicubic interpolation can reach."""
_BACKGROUND, _TEXT, _DIM = (16, 18, 24), (236, 238, 242), (158, 164, 176)
_FRAME = (90, 220, 255)
_MARGIN, _GAP, _COLUMN = 28, 18, 330
_BAR = 16
_LEAST_WEIGHT = 0.2
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_LOWERED = str.maketrans(_RAISED, "0123456789-")
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Stretch:
    """Radiance → 0 … 1: asinh(v / soft) / asinh(top / soft), linear near zero, logarithmic above `soft`."""

    top: float
    soft: float

    @classmethod
    def of(cls, *arrays: Floats) -> Stretch:
        """Fits all arrays: `top` is their largest 99.8th percentile, rounded up to 1, 2 or 5 times 10^k."""
        seen = [a[np.isfinite(a)] for a in arrays]
        peak = max((float(np.percentile(a, 99.8)) for a in seen if a.size), default=0.0)
        top = next(t for t in _round_numbers(peak) if t >= peak) if peak > 0 else 1.0
        return cls(top, top / 100.0)

    def __call__(self, values: Floats) -> NDArray[np.float64]:
        """Clipped to 0 … 1; NaN stays."""
        t = np.arcsinh(values.astype(np.float64) / self.soft) / np.arcsinh(self.top / self.soft)
        return np.asarray(np.clip(t, 0.0, 1.0), np.float64)

    def ticks(self, width: int, spacing: int) -> list[tuple[float, int]]:
        """(value, position in 0 … width) of round numbers at least `spacing` apart, with 0 and the top."""
        wanted = [self.top, 0.0, *reversed(list(_round_numbers(self.top)))]
        kept: list[tuple[float, int]] = []
        for value in wanted:
            x = round(width * float(self(np.array(value, np.float32))))
            if value <= self.top and all(abs(x - other) >= spacing for _, other in kept):
                kept.append((value, x))
        return sorted(kept)


def _round_numbers(peak: float) -> list[float]:
    """1, 2, 5 × 10^k from three decades below `peak` to just above it, rising."""
    k = int(np.floor(np.log10(peak)))
    return [float(f"{m}e{e}") for e in range(k - 3, k + 2) for m in (1, 2, 5)]


def write_quicklook(scene: Scene, result: Path, out: Path) -> None:
    """Draw the first band of a finished output beside its input and bicubic interpolation, as PNG.

    Scenes up to 180 LR pixels a side are shown whole; of larger ones the scene, coarsely, and its brightest square of
    90 LR pixels.
    Raises DeepLightError where `out` cannot be written.
    """
    window = choose_window(scene)
    lr, valid = scene.read_ntl(window.grown(_CONTEXT))
    place = f"LR rows {window.row} to {window.row + window.height - 1} of {scene.grid.height}, "
    place += f"columns {window.col} to {window.col + window.width - 1} of {scene.grid.width}"
    whole = None if window.shape == scene.grid.shape else overview(scene, window, _PANEL)
    known = np.where(valid != 0, lr, np.float32(np.nan))
    image = render(known, read_map(result, window), shown(scene.unit), place, whole)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    write_file(out, [buffer.getvalue()])


def choose_window(scene: Scene) -> Window:
    """The LR pixels to show: the whole scene, or the square with the highest sum of lights."""
    height, width = scene.grid.height, scene.grid.width
    if max(height, width) <= _WHOLE_LR:
        return Window(0, 0, height, width)
    return brightest(scene, _WHOLE_LR // 2)


def bicubic(lr: Floats) -> Floats:
    """Bicubic ×8 (Pillow's, a = −0.5) of lr (h, w), NaN = nodata; (8h, 8w), NaN wherever lr is.

    Nodata does not bleed: values and mask are interpolated alike and divided. Below zero is cut.
    """
    valid = np.isfinite(lr)
    size = (lr.shape[1] * SCALE, lr.shape[0] * SCALE)

    def grow(a: Floats) -> Floats:
        return np.asarray(Image.fromarray(a).resize(size, Image.Resampling.BICUBIC), np.float32)

    weight = grow(valid.astype(np.float32))
    values = grow(np.where(valid, lr, np.float32(0))) / np.maximum(weight, _LEAST_WEIGHT)
    return np.where(to_hr(valid), np.maximum(values, 0), np.float32(np.nan))


def render(lr: Floats, hr: Floats, unit: str, place: str = "", whole: Overview | None = None) -> Image.Image:
    """The picture, RGB.

    lr: (h + 4, w + 4), the window with 2 pixels of context on each side; hr: (8h, 8w). NaN = nodata. whole: the scene
    that the window is from, to be drawn before it.
    """
    edge = _CONTEXT * SCALE
    inner = np.s_[_CONTEXT:-_CONTEXT, _CONTEXT:-_CONTEXT]
    panels = {
        "LR input": to_hr(lr[inner]),
        f"DeepLight {SCALE}x": hr,
        f"Bicubic {SCALE}x": bicubic(lr)[edge:-edge, edge:-edge],
    }
    stretch = Stretch.of(*panels.values())
    pictures = {title: _to_panel(values, stretch) for title, values in panels.items()}
    if whole is not None:
        pictures = {
            "The scene (frame: the place beside it)": _framed(whole, stretch),
            **pictures,
        }
    return _compose(pictures, stretch, unit, place, bool(np.isnan(hr).any()))


def _framed(whole: Overview, stretch: Stretch) -> Image.Image:
    """The scene with a frame around the window, which is widened to a size that can be seen."""
    picture = _to_panel(whole.values, stretch)
    scale = picture.width / whole.values.shape[1] / whole.factor
    w = whole.window
    corners = (w.col * scale, w.row * scale, (w.col + w.width) * scale, (w.row + w.height) * scale)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(
        [round(v) + d for v, d in zip(corners, (-3, -3, 3, 3), strict=True)], outline=_FRAME, width=2
    )
    return picture


def _to_panel(values: Floats, stretch: Stretch) -> Image.Image:
    """Colours at panel size: halved by a mean, or enlarged by a whole factor."""
    longest = max(values.shape)
    if longest > _PANEL:
        values = _halved(values)
    t = stretch(values)
    colours = light_colours()
    rgb = colours[np.nan_to_num(t * (len(colours) - 1)).round().astype(np.intp)]
    rgb[np.isnan(t)] = NODATA_RGB
    image = Image.fromarray(rgb)
    factor = max(1, _PANEL // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _halved(values: Floats) -> Floats:
    """Mean of the valid pixels of 2×2; NaN where there is none. (8h, 8w) → (4h, 4w)."""
    h, w = values.shape
    blocks = values.reshape(h // 2, 2, w // 2, 2)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, blocks, 0).sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _compose(
    pictures: dict[str, Image.Image], stretch: Stretch, unit: str, place: str, has_nodata: bool
) -> Image.Image:
    """Title, panels with their names, colour bar."""
    columns = [max(picture.width, _COLUMN) for picture in pictures.values()]
    height = max(picture.height for picture in pictures.values())
    total = 2 * _MARGIN + sum(columns) + (len(pictures) - 1) * _GAP
    top = _MARGIN + 66
    canvas = Image.new("RGB", (total, top + height + 108), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (_MARGIN, _MARGIN + 8), f"Nighttime lights, {unit}", 24)
    draw.text((total - _MARGIN, _MARGIN), place, _DIM, _font(15), anchor="ra")
    start = _MARGIN
    for (title, picture), column in zip(pictures.items(), columns, strict=True):
        left = start + (column - picture.width) // 2
        draw.text((left, top - 26), title, _TEXT, _font(17))
        canvas.paste(picture, (left, top))
        start += column + _GAP
    _colour_bar(canvas, (_MARGIN, top + height + 26), stretch, unit, has_nodata)
    return canvas


def _colour_bar(
    canvas: Image.Image, corner: tuple[int, int], stretch: Stretch, unit: str, has_nodata: bool
) -> None:
    """A horizontal bar with ticks and the unit, a swatch for nodata at its right."""
    draw, font = ImageDraw.Draw(canvas), _font(15)
    x, y = corner
    swatch = 110 if has_nodata else 0
    unit_width = _write(draw, None, unit, 15)
    width = canvas.width - x - _MARGIN - unit_width - 14 - swatch
    ramp = light_colours(width)[None].repeat(_BAR, 0)
    canvas.paste(Image.fromarray(ramp), (x, y))
    draw.rectangle((x - 1, y - 1, x + width, y + _BAR), outline=_DIM)
    for value, at in stretch.ticks(width - 1, 56):
        draw.line((x + at, y + _BAR, x + at, y + _BAR + 6), _DIM)
        label = f"{value:g}+" if value == stretch.top else f"{value:g}"
        anchor = "la" if value == 0 else "ma"
        draw.text((x + at, y + _BAR + 9), label, _TEXT, font, anchor=anchor)
    _write(draw, (x + width + 14, y + _BAR // 2), unit, 15)
    if has_nodata:
        left = canvas.width - _MARGIN - 78
        draw.rectangle((left, y - 1, left + 22, y + _BAR), NODATA_RGB, _DIM)
        draw.text((left + 30, y + _BAR // 2), "nodata", _TEXT, font, anchor="lm")


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int] | None, text: str, size: int) -> int:
    """Text whose left middle is `at` (nothing is drawn for None); returns its width.

    The built-in font has no superscript digits, so they are drawn as small raised ones.
    """
    x = 0.0
    for raised, part in re.findall(f"([{_RAISED}]+)|([^{_RAISED}]+)", text):
        font = _font(round(size * 0.65) if raised else size)
        shown = raised.translate(_LOWERED) or part
        if at is not None:
            lift = round(size * 0.28) if raised else 0
            draw.text((at[0] + x, at[1] - lift), shown, _TEXT, font, anchor="lm")
        x += draw.textlength(shown, font)
    return round(x)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
