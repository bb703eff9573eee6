"""A picture of a table: the mean radiance of regions over time."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, cast

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.files import write_file
from deeplight.engine.zonal.table import IN_COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST = 12
"""Regions that are drawn: those with the most light."""
_ACROSS = 4
_LONGEST = 32
_LINE, _BAND = "#b3387a", "#f2c4dc"


def require_matplotlib() -> None:
    """Raises InputError where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise InputError(f"a plot needs matplotlib, which is not installed: {install_command('matplotlib')}")


def draw(table: DataFrame, path: Path) -> None:
    """Write the picture of a table of `zonal_table` as PNG. Raises DeepLightError where the disk refuses."""
    buffer = io.BytesIO()
    figure(table).savefig(buffer, format="png", dpi=110)
    write_file(path, [buffer.getvalue()])


def figure(table: DataFrame) -> Figure:
    """The regions with the most light: a panel for each, or for one date a row for each in one panel."""
    spelt, unit = next((s, u) for u, s in IN_COLUMNS.items() if f"mean_{s}" in table)
    light = table.groupby("region", sort=False)[f"sum_{spelt}_km2"].mean()
    names = list(light.sort_values(ascending=False, kind="stable").index[:MOST])
    title = f"Mean radiance, {unit}"
    if len(names) < len(light):
        title += f", of the {len(names)} regions with the most light ({len(light)} in all)"
    if f"mean_low_{spelt}" in table:
        title += "; pale: from the lower to the upper ends of the pixels' intervals"
    shown = [table[table["region"] == name] for name in names]
    return _moment(shown, spelt, title) if table["date"].nunique() < 2 else _series(shown, spelt, title)


def _titled(size: tuple[float, float], title: str) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    drawn.suptitle("\n".join(wrap(title, int(size[0] * 14))), x=0.01, ha="left", fontsize=11)
    return drawn


def _moment(regions: list[DataFrame], spelt: str, title: str) -> Figure:
    """A row for each region."""
    drawn = _titled((7.0, 1.2 + 0.32 * len(regions)), title)
    panel = drawn.subplots()
    rows = range(len(regions))[::-1]
    if f"mean_low_{spelt}" in regions[0]:
        low, high = ([r[f"mean_{end}_{spelt}"].iloc[0] for r in regions] for end in ("low", "high"))
        panel.hlines(rows, low, high, color=_BAND, linewidth=8)
    panel.plot([r[f"mean_{spelt}"].iloc[0] for r in regions], rows, "o", color=_LINE, markersize=5)
    panel.set_yticks(rows, [_short(r) for r in regions], fontsize=9)
    panel.set_xlim(left=min(0.0, panel.get_xlim()[0]))
    _plain(panel)
    return drawn


def _series(regions: list[DataFrame], spelt: str, title: str) -> Figure:
    """A panel for each region, with one scale of time and a scale of radiance of its own."""
    from matplotlib import dates

    across = min(_ACROSS, len(regions))
    down = -(-len(regions) // across)
    drawn = _titled((max(5.0, 3.1 * across), 2.3 * down + 0.9), title)
    panels = drawn.subplots(down, across, squeeze=False, sharex=True).ravel()
    locator, formatter = cast(Any, dates.AutoDateLocator), cast(Any, dates.ConciseDateFormatter)
    for number, panel in enumerate(panels):
        if number >= len(regions):
            panel.set_axis_off()
            continue
        rows = regions[number]
        if f"mean_low_{spelt}" in rows:
            low, high = (rows[f"mean_{end}_{spelt}"] for end in ("low", "high"))
            panel.fill_between(rows["date"], low, high, color=_BAND, linewidth=0)
        panel.plot(
            rows["date"], rows[f"mean_{spelt}"], color=_LINE, marker="o", markersize=3.5, linewidth=1.5
        )
        panel.set_title(_short(rows), fontsize=10, loc="left")
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        ticks = locator(minticks=2, maxticks=5)
        panel.xaxis.set_major_locator(ticks)
        panel.xaxis.set_major_formatter(formatter(ticks))
        _plain(panel)
        panel.tick_params(labelbottom=number + across >= len(regions))
    return drawn


def _short(rows: DataFrame) -> str:
    name = str(rows["region"].iloc[0])
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
