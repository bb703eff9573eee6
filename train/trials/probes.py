"""Probes: scenes whose right answer is known, and what a model makes of them.

python -m deeplight.train.trials.probes deeplight-tiny
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np

from deeplight.engine.core.arrays import to_hr
from deeplight.engine.core.markdown import markdown_table
from deeplight.engine.core.spec import INPUTS, SCALE, input_shape
from deeplight.engine.core.terminal import Command, Parsed, run_cli
from deeplight.train.synth.degrade import sensor_matrix

if TYPE_CHECKING:
    from deeplight.engine.core.arrays import Doubles, Floats
    from deeplight.engine.network.model import DeepLightSR
    from deeplight.train.fit.batch import Batch

SIDE = 25
"""LR pixels along each side of a scene: beyond the network's reach around its middle."""
BLURS, SIGMAS, LIGHTS, GROUNDS = (0.0, 1.0, 2.0), (0.0, 1.0, 3.0, 6.0), (640.0, 6400.0), (0.0, 0.3)
"""FWHM in LR pixels; sizes of lone lights in HR pixels; their sums and the lights around them."""
UNSEEN_WORLDS = range(950_000, 950_024)
UNLIT = {
    "water": (0.04, 0.04, 0.04, 0.03, 0.02, 0.01, 0.01),
    "fields": (0.03, 0.04, 0.07, 0.06, 0.30, 0.18, 0.09),
}
"""Reflectance, in the slots' order, of ground that has no lights of its own."""
_NEAR = 5 * SCALE
Say = Callable[[str], None]


def predicted(
    model: DeepLightSR,
    ntl: Floats,
    fwhm: float,
    noise: float,
    valid: Floats | None = None,
    ground: Sequence[float] | None = None,
) -> Doubles:
    """Return the radiance (8h,8w) from lights (h,w), told the blur in LR pixels and the noise (negative: not known).
    ground: reflectance of the daytime bands, the same everywhere, beside flat land at sea level; None: lights alone."""
    import torch

    h, w = ntl.shape
    inputs = {spec.name: torch.zeros(input_shape(spec, 1, h, w)) for spec in INPUTS}
    known = np.ones_like(ntl) if valid is None else valid
    inputs["ntl"][0, 0] = torch.from_numpy(ntl * known)
    inputs["ntl_valid"][0, 0] = torch.from_numpy(known)
    inputs["psf"][:], inputs["limits"][:] = fwhm, torch.tensor([-1.0, noise])
    if ground is not None:
        inputs["dmo"][:] = torch.tensor(ground)[:, None, None]
        for mask in ("dmo_valid", "dmo_bands", "dem_valid"):
            inputs[mask][:] = 1.0
    with torch.no_grad():
        out: Doubles = model(*inputs.values())[0][0, 0].double().numpy()
    return out


class LoneLight(NamedTuple):
    """Share of a lone light that stays within 5 LR pixels of it, over places, sums and grounds. fwhm: of the blur, in
    LR pixels. sigma: how wide the light is, in HR pixels. peak: the brightest HR pixel over the brightest LR pixel, at
    most; a point that no blur widens has 64."""

    fwhm: float
    sigma: float
    mean: float
    least: float
    most: float
    peak: float


def lone_lights(model: DeepLightSR, below: Sequence[float] | None = None) -> list[LoneLight]:
    """Return what stays of lone lights, for each blur and size. below: reflectance of the ground, see `predicted`."""
    rng = np.random.default_rng(0)
    rows = []
    for fwhm in BLURS:
        for sigma in SIGMAS:
            found = [
                _kept(model, rng, fwhm, sigma, light, ground, below) for light in LIGHTS for ground in GROUNDS
            ]
            shares, peaks = zip(*found, strict=True)
            rows.append(LoneLight(fwhm, sigma, float(np.mean(shares)), min(shares), max(shares), max(peaks)))
    return rows


def _lone_table(rows: list[LoneLight]) -> str:
    cells = [
        [f"{r.fwhm:g}", f"{r.sigma:g}", *(f"{100 * v:.0f} %" for v in r[2:5]), f"{r.peak:.0f}"] for r in rows
    ]
    return markdown_table(["blur, LR pixels", "σ, HR pixels", "kept", "least", "most", "peak"], cells)


def _kept(
    model: DeepLightSR,
    rng: np.random.Generator,
    fwhm: float,
    sigma: float,
    light: float,
    ground: float,
    below: Sequence[float] | None = None,
) -> tuple[float, float]:
    """What stays of one light, a Gaussian that lies anywhere in the middle LR pixel, and its peak."""
    y, x = np.mgrid[: SIDE * SCALE, : SIDE * SCALE]
    at = (SIDE * SCALE) // 2 + rng.integers(-4, 4, 2)
    truth = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    matrix = sensor_matrix(fwhm, SIDE)
    lr = matrix @ (truth * light / truth.sum()).astype(np.float32) @ matrix.T + np.float32(ground)
    lr = lr + rng.normal(0.0, 0.02, lr.shape).astype(np.float32)
    near = np.hypot(y - at[0], x - at[1]) < _NEAR
    found = predicted(model, lr, fwhm, 0.02, ground=below)
    return float((found - ground)[near].sum() / light), float(found.max() / lr.max())


def pattern(model: DeepLightSR, level: float) -> float:
    """Return the largest deviation from the mean of one of the 8×8 places within an LR pixel, on even lights."""
    rng = np.random.default_rng(1)
    lr = np.float32(level) + rng.normal(0.0, 0.0025 * level, (SIDE + 8, SIDE + 8)).astype(np.float32)
    inner = predicted(model, lr, 1.0, 0.0025 * level)[8 * SCALE : -8 * SCALE, 8 * SCALE : -8 * SCALE]
    places = inner.reshape(inner.shape[0] // SCALE, SCALE, -1, SCALE).mean(axis=(0, 2))
    return float(np.abs(places / places.mean() - 1.0).max())


def beside_border(model: DeepLightSR, fwhm: float, level: float = 10.0) -> tuple[float, float]:
    """Return the least and the most of even lights that end at a straight border, beyond which there is nodata, as
    shares of their level: of the lines of HR pixels within 3 LR pixels of it."""
    rng = np.random.default_rng(3)
    lr = np.float32(level) + rng.normal(0.0, 0.0025 * level, (2 * SIDE, 2 * SIDE)).astype(np.float32)
    valid = np.ones_like(lr)
    valid[:, SIDE:] = 0.0
    out = predicted(model, lr, fwhm, 0.0025 * level, valid)[8 * SCALE : -8 * SCALE]
    lines = out[:, (SIDE - 3) * SCALE : SIDE * SCALE].mean(axis=0) / level
    return float(lines.min()), float(lines.max())


def beside_nodata(model: DeepLightSR, sets: list[Batch]) -> float:
    """Return the light beside single missing pixels, as a share of what is there without them."""
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(2)
    light = whole = 0.0
    for batch in sets:
        for ntl, psf, limits in zip(batch.inputs[0], batch.inputs[-2], batch.inputs[-1], strict=True):
            lr = ntl[0].numpy()
            valid = (rng.random(lr.shape) > 0.06).astype(np.float32)
            told = float(psf[0]), float(limits[1])
            grown = F.max_pool2d(torch.from_numpy(1 - valid)[None], 3, 1, 1)[0].numpy()
            near = to_hr(grown * valid > 0)
            light += float(predicted(model, lr, *told, valid)[near].sum())
            whole += float(predicted(model, lr, *told)[near].sum())
    return light / whole


def foreign_layers(model: DeepLightSR, sets: list[Batch]) -> list[tuple[float, float]]:
    """Return for each unseen country, beside the layers of another one: the gain in log1p and the sum of lights, less
    those without any layers (dB, and a share)."""
    found = []
    for batch in sets:
        ntl, valid, *layers, psf, limits = batch.inputs
        none = [layer * 0 for layer in layers]
        alone = _scored(model, replace(batch, inputs=(ntl, valid, *none, psf, limits)))
        for step in range(1, len(ntl)):
            others = [layer.roll(step, 0) for layer in layers]
            given = _scored(model, replace(batch, inputs=(ntl, valid, *others, psf, limits)))
            found += [
                (float(10 * np.log10(a[0] / g[0])), g[1] / a[1] - 1.0)
                for a, g in zip(alone, given, strict=True)
            ]
    return found


def _scored(model: DeepLightSR, batch: Batch) -> list[tuple[float, float]]:
    """Squared error of log1p and sum of lights of each window, where the loss counts."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        out = model(*batch.inputs)[0]
    weight = F.interpolate(batch.weight, scale_factor=SCALE)
    errors = (torch.log1p(out) - torch.log1p(batch.ntl_hr)).square() * weight
    return list(zip(errors.sum((1, 2, 3)).tolist(), (out * weight).sum((1, 2, 3)).tolist(), strict=True))


def coverage(model: DeepLightSR, sets: Iterator[Batch]) -> dict[str, float]:
    """Return the share of pixels whose truth lies within the interval: of all, and by the LR light over its noise."""
    import torch
    import torch.nn.functional as F

    counts = dict.fromkeys(("all", "below 3 noise", "3 to 20 noise", "above 20 noise"), (0.0, 0.0))
    for batch in sets:
        with torch.no_grad():
            ends = model(*batch.inputs)[3]
        weight = F.interpolate(batch.weight, scale_factor=SCALE)
        if batch.ntl_hr_valid is not None:
            weight = weight * batch.ntl_hr_valid
        within = ((batch.ntl_hr >= ends[:, :1]) & (batch.ntl_hr <= ends[:, 1:])).float()
        noise = batch.inputs[-1][:, 1].clamp(min=0.01)[:, None, None, None]
        strength = F.interpolate(batch.inputs[0] / noise, scale_factor=SCALE)
        masks = [weight > 0, strength < 3, (strength >= 3) & (strength < 20), strength >= 20]
        for name, mask in zip(counts, masks, strict=True):
            share = weight * mask
            hits, n = counts[name]
            counts[name] = (hits + float((within * share).sum()), n + float(share.sum()))
    return {name: hits / n if n else float("nan") for name, (hits, n) in counts.items()}


def unseen_worlds(halo: int, count: int) -> Iterator[Batch]:
    """Windows of countries of all styles that no training sees, each varied as training varies them."""
    from deeplight.engine.core.windows import Window
    from deeplight.train.fit.batch import CHECKED, collated
    from deeplight.train.fit.config import VarietyConfig
    from deeplight.train.fit.parts import window_parts
    from deeplight.train.fit.pool import REGION, SyntheticSource, build_pool, training_config
    from deeplight.train.fit.variety import varied

    seeds = UNSEEN_WORLDS[:count]
    source = SyntheticSource(build_pool(seeds, len(seeds), config=training_config), seeds)
    side = min(CHECKED + 2 * halo, REGION)
    for place in range(len(source)):
        sample = source.read(place, Window(0, 0, side, side))
        parts = window_parts(sample, source.size(place), side, halo)
        yield collated([varied(parts, VarietyConfig(), np.random.default_rng(place))])


def probe(run: str | Path, say: Say, countries: int = 12, worlds: int = 24) -> str:
    """Probe the model `run`, and return what was found in Markdown. say: told what is being done."""
    from deeplight.engine.core.machine import available_cpus
    from deeplight.engine.network.receptive import halo
    from deeplight.train.evaluation.scores import HELD_OUT_SEEDS
    from deeplight.train.fit.batch import FixedBatches
    from deeplight.train.fit.checkpoint import load_checkpoint
    from deeplight.train.fit.pool import synthetic_source

    model, _ = load_checkpoint(run)
    model.eval()
    say("lone lights")
    lone = {"Lone lights": _lone_table(lone_lights(model))}
    lone |= {f"Over {name}": _lone_table(lone_lights(model, bands)) for name, bands in UNLIT.items()}
    say("even lights")
    levels = ", ".join(f"{100 * pattern(model, level):.2f} % at {level:g}" for level in (2.0, 20.0, 200.0))
    say(f"making {countries} unseen countries")
    source = synthetic_source(HELD_OUT_SEEDS[:countries], countries, available_cpus())
    sets = list(FixedBatches(source, 4, halo(model.config)))
    say("nodata and layers that belong elsewhere")
    gains, sums = np.array(foreign_layers(model, sets)).T
    rim = beside_nodata(model, sets)
    borders = ", ".join(
        f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in (beside_border(model, f) for f in BLURS)
    )
    say(f"making {worlds} unseen worlds")
    shares = {"countries": coverage(model, iter(sets))}
    shares["worlds"] = coverage(model, unseen_worlds(halo(model.config), worlds))
    names = list(shares["worlds"])
    rows = [[kind, *(f"{100 * found[name]:.1f} %" for name in names)] for kind, found in shares.items()]
    return "\n\n".join(
        [
            *(f"**{name}**, share of the light that stays:\n\n{table}" for name, table in lone.items()),
            f"**Pattern** with a period of 8 pixels, on even lights: {levels}.",
            f"**Beside single missing pixels** is {100 * rim:.1f} % of the light that is there without the holes.",
            f"**Even lights beside a border** of nodata, blurred with {', '.join(f'{f:g}' for f in BLURS)} LR pixels: "
            f"{borders} of their level.",
            f"**Layers of another country** ({len(gains)} pairings): log1p {gains.mean():+.2f} dB in the mean and "
            f"{gains.min():+.2f} dB at worst, sum of lights {100 * sums.mean():+.1f} % in the mean and "
            f"{100 * np.abs(sums).max():.1f} % at worst.",
            f"**Interval of 90 %**, share of pixels within it:\n\n{markdown_table(['', *names], rows)}",
        ]
    )


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Parsed("run", Path))
def command(model: Path) -> None:
    """Probe MODEL, a run's folder or deeplight-tiny, on scenes whose right answer is known."""
    click.echo(probe(model, lambda text: click.echo(text, err=True)))


def main() -> None:
    """Run from the command line."""
    run_cli(command)


if __name__ == "__main__":
    main()
