"""The page of pictures: one HTML file with everything inside, to look at rather than to compute with."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.output.colormap import NODATA_RGB, light_colours
from deeplight.train.evaluation.models import BICUBIC, NEAREST, NETWORK, NO_AUXILIARY
from deeplight.train.evaluation.pixels import logarithm
from deeplight.train.evaluation.showcase import EDGES, Clouds, Picture, Showcase, along, find_street

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_COLOURS = {
    NETWORK: "#c0392b",
    NO_AUXILIARY: "#8e6bbf",
    BICUBIC: "#2a78b8",
    NEAREST: "#8a8a8a",
    "truth": "#111111",
}
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.45rem;line-height:1.35;max-width:52ch}h2{margin-top:2.2rem}p{max-width:75ch}
img{max-width:100%;height:auto;display:block;margin:.5rem 0 1.5rem}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th{background:#f5f5f3;white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left}"""


def page(showcase: Showcase, clouds: Clouds, table: str, unit: str) -> str:
    """Return the page as HTML. table: metrics.md, whose first line is the verdict."""
    parts = [as_html(table)]
    for title, text, figure in _figures(showcase, clouds, unit):
        parts.append(
            f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>"
            f'<img alt="{html.escape(title)}" src="data:image/png;base64,{_png(figure)}">'
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>DeepLight: evaluation</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def as_html(table: str) -> str:
    """Return metrics.md as HTML, with its headings, sentences and tables."""
    from markdown import markdown

    # escaped first: names of places and models are the user's, and Markdown lets HTML pass
    return str(markdown(html.escape(table, quote=False), extensions=["tables"]))


def _figures(showcase: Showcase, clouds: Clouds, unit: str) -> Iterator[tuple[str, str, Figure]]:
    """Title, explanation and figure of each section."""
    for _, picture in showcase.pictures:
        where = f"{picture.place}, LR row {picture.row}, column {picture.col}"
        yield (
            where,
            f"The same scale of light in all maps (logarithmic, {unit}; grey: not scored); errors are output − truth.",
            maps(picture, unit),
        )
        profile = profiles(picture, unit)
        if profile is not None:
            yield (
                f"Across a street: {where}",
                "Radiance along the dashed line of the map of the truth, across its brightest ridge.",
                profile,
            )
    yield (
        "Output against truth",
        "Share of all scored pixels, logarithmic colours; the line: equal.",
        scatter(clouds, unit),
    )
    yield (
        "Histogram",
        "How many scored pixels have which radiance, in the truth and in each output.",
        histogram(clouds, unit),
    )


def maps(picture: Picture, unit: str) -> Figure:
    """Draw LR, truth and results on one scale of light, and below them the errors and the result without auxiliary."""
    high, wide = picture.truth.shape
    figure = _figure(12.4, float(np.clip(6.0 * high / wide, 2.4, 9.0)) + 0.6)
    axes = figure.subplots(2, 4)
    top = float(np.nanpercentile(logarithm(picture.truth), 99.8)) or 1.0
    results = {n: picture.outputs[n] for n in (NETWORK, BICUBIC, NO_AUXILIARY) if n in picture.outputs}
    shown = {"LR input": picture.lr, "truth": picture.truth, **results}
    for axis, (name, image) in zip([*axes[0], axes[1, 3]], shown.items(), strict=False):
        lights = axis.imshow(_log(image), cmap=_lights(), vmin=0, vmax=top, interpolation="nearest")
        axis.set_title(name, fontsize=10)
    errors = {n: image - picture.truth for n, image in results.items()}
    reach = max(1e-6, *(float(np.nanpercentile(np.abs(e), 99.5)) for e in errors.values()))
    for axis, (name, error) in zip(axes[1], errors.items(), strict=False):
        wrong = axis.imshow(error, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
        axis.set_title(f"error: {name}", fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    _mark_street(axes[0, 1], picture)
    bar = figure.colorbar(lights, ax=list(axes[0]), shrink=0.9, pad=0.01, label=unit)
    _light_ticks(bar.set_ticks, top)
    figure.colorbar(wrong, ax=list(axes[1]), shrink=0.9, pad=0.01, label=f"error, {unit}")
    return figure


def profiles(picture: Picture, unit: str) -> Figure | None:
    """Draw truth and outputs along the line across the brightest street. Returns None where there is no street."""
    street = find_street(picture.truth)
    if street is None:
        return None
    figure = _figure(9.0, 3.2)
    axis = figure.subplots()
    for name, image in [("truth", picture.truth), *picture.outputs.items()]:
        width = 2.4 if name in ("truth", NETWORK) else 1.3
        axis.plot(street.distance, along(image, street), label=name, color=_COLOURS.get(name), lw=width)
    axis.set(xlabel="HR pixels from the street", ylabel=unit)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9)
    _plain_axes(axis)
    return figure


def scatter(clouds: Clouds, unit: str) -> Figure:
    """Draw the counts of (truth, output), one picture for each method."""
    figure = _figure(12.4, 3.6)
    axes = figure.subplots(1, len(clouds.counts), sharey=True, squeeze=False)[0]
    scale = logarithm(EDGES)
    top = float(np.log1p(_highest(clouds)))
    for axis, (name, counts) in zip(axes, clouds.counts.items(), strict=True):
        share = np.where(counts > 0, counts, np.nan) / counts.sum()
        axis.pcolormesh(scale, scale, np.log10(share).T, cmap="viridis", rasterized=True)
        axis.plot([0, top], [0, top], color="#c0392b", lw=1)
        axis.set(title=name, xlabel=f"truth ({unit})", xlim=(0, top), ylim=(0, top))
        _light_ticks(axis.set_xticks, top)
        _light_ticks(axis.set_yticks, top)
        _plain_axes(axis)
    axes[0].set_ylabel(f"output ({unit})")
    return figure


def histogram(clouds: Clouds, unit: str) -> Figure:
    """Draw how many pixels have which radiance, of the truth and of each method."""
    figure = _figure(9.0, 3.4)
    axis = figure.subplots()
    scale = logarithm(EDGES)
    first = next(iter(clouds.counts.values()))
    for name, counts in [
        ("truth", first.sum(axis=1)),
        *((n, c.sum(axis=0)) for n, c in clouds.counts.items()),
    ]:
        density = counts / counts.sum() / np.diff(scale)
        axis.stairs(np.maximum(density, 1e-9), scale, label=name, color=_COLOURS.get(name), lw=1.6)
    top = float(np.log1p(_highest(clouds)))
    axis.set(yscale="log", xlabel=unit, ylabel="pixels per unit of log1p", xlim=(0, top), ylim=(1e-6, None))
    _light_ticks(axis.set_xticks, top)
    axis.legend(frameon=False, fontsize=9)
    _plain_axes(axis)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _lights() -> Colormap:
    from matplotlib.colors import ListedColormap

    red, green, blue = (part / 255.0 for part in NODATA_RGB)
    return ListedColormap(light_colours() / 255.0).with_extremes(bad=(red, green, blue))


def _log(image: Doubles) -> Doubles:
    return np.where(np.isnan(image), np.nan, logarithm(image))


def _mark_street(axis: Axes, picture: Picture) -> None:
    street = find_street(picture.truth)
    if street is not None:
        axis.plot(street.points[:, 1], street.points[:, 0], color="#3fd0ff", lw=1.2, ls=(0, (3, 2)))


def _light_ticks(setter: Any, top: float) -> None:
    values = [v for v in (0, 1, 3, 10, 30, 100, 300, 1000) if np.log1p(v) <= top]
    setter([float(np.log1p(v)) for v in values], labels=[str(v) for v in values])


def _plain_axes(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _highest(clouds: Clouds) -> float:
    """Upper edge of the highest bin that holds anything."""
    used = sum(c.sum(axis=0) + c.sum(axis=1) for c in clouds.counts.values())
    return float(EDGES[1 + int(np.flatnonzero(used)[-1])])
