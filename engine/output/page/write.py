"""The page of a map: LR and HR under a swipe, in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.files import write_file
from deeplight.engine.core.spec import SCALE
from deeplight.engine.output.acquired import Span, shown_span
from deeplight.engine.output.colormap import NODATA_RGB, light_colours
from deeplight.engine.output.page.pieces import Codes, PageNight, as_json, pieces_of
from deeplight.engine.output.quicklook import Stretch
from deeplight.engine.raster.units import shown

if TYPE_CHECKING:
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.scene import Scene

_BAR, _SPACING = 278, 44
"""CSS pixels of the colour bar, and between its ticks."""


def night_of(
    scene: Scene, result: Path, when: Span | None, facts: Sequence[tuple[str, str]], dates: int = 1
) -> PageNight:
    """What a page shows of a finished output and the scene that it was made from. dates: how many share the page."""
    lr, hr = pieces_of(scene, result, dates)
    return PageNight("" if when is None else shown_span(when), list(facts), lr, hr)


def write_page(out: Path, title: str, unit: str, grid: Grid, nights: Sequence[PageNight]) -> None:
    """Write the page of one map, or of several dates of one. grid: the HR grid. unit: of the lights, "" if unknown.

    The same content gives the same bytes. Raises DeepLightError where `out` cannot be written.
    """
    data = json.dumps(_content(title, unit, grid, list(nights)), ensure_ascii=False, separators=(",", ":"))
    here = files("deeplight.engine.output.page")
    text = here.joinpath("page.html").read_text("utf-8")
    # the data last: it may hold anything, and "<" in it must not end the script that it is in
    for mark, value in (
        ("@TITLE@", html.escape(title)),
        ("@STYLE@", here.joinpath("page.css").read_text("utf-8")),
        ("@SCRIPT@", here.joinpath("page.js").read_text("utf-8")),
        ("@DATA@", data.replace("<", "\\u003c")),
    ):
        text = text.replace(mark, value, 1)
    write_file(out, [text.encode()])


def _content(title: str, unit: str, grid: Grid, nights: list[PageNight]) -> dict[str, Any]:
    """What the page's script reads."""
    stretch = Stretch.of(*(piece.values for night in nights for piece in night.lr + night.hr))
    codes = Codes.of(nights, stretch.soft)
    return {
        "title": title,
        "shown": _shown(grid, nights),
        "unit": shown(unit),
        "width": grid.width,
        "height": grid.height,
        "scale": SCALE,
        "degrees": bool(grid.crs.is_geographic),
        "transform": list(grid.transform[:6]),
        "colours": base64.b64encode(light_colours(256).tobytes()).decode(),
        "nodata": list(NODATA_RGB),
        "stretch": {"top": stretch.top, "soft": stretch.soft},
        "ticks": [[float(f"{value:g}"), at / _BAR] for value, at in stretch.ticks(_BAR, _SPACING)],
        "codes": {"soft": codes.soft, "low": codes.low, "step": codes.step},
        "nights": [
            {
                "name": night.name,
                "facts": night.facts,
                "lr": [as_json(piece, codes) for piece in night.lr],
                "hr": [as_json(piece, codes) for piece in night.hr],
            }
            for night in nights
        ],
    }


def _shown(grid: Grid, nights: list[PageNight]) -> str:
    """How much of the map the page holds."""
    size = f"{grid.width:,} × {grid.height:,} pixels"
    first = nights[0].hr[0]
    if first.factor == 1:
        return size
    detail = nights[0].hr[-1].values.shape
    return (
        f"{size}, shown as means of {first.factor} × {first.factor}; in full {detail[1]:,} × {detail[0]:,} in the "
        "frame, where the lights are brightest"
    )
