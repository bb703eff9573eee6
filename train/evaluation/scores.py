"""The numbers of the model card: quality on unseen countries for each set of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.markdown import markdown_table
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.train.evaluation.validation import validate
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.checkpoint import load_checkpoint
from deeplight.train.fit.pool import synthetic_source

HELD_OUT_SEEDS = range(900_000, 900_012)
"""Countries that no training run ever sees."""

LAYERS = {"DMO + DEM": (1, 1), "DMO": (1, 0), "DEM": (0, 1), "none": (0, 0)}

Scores = dict[str, dict[str, float]]


def rows_of(dmo: bool, dem: bool) -> dict[str, tuple[int, int]]:
    """Return the rows of LAYERS that data with these layers can fill."""
    return {name: given for name, given in LAYERS.items() if given[0] <= dmo and given[1] <= dem}


def by_layers(
    model: DeepLightSR,
    sets: Iterable[Batch],
    rows: Mapping[str, tuple[int, int]] = LAYERS,
    advance: Callable[[], None] = lambda: None,
) -> Scores:
    """Call `validate` for each of `rows`, the other layers taken away as the engine does it.

    sets: batches, gone through once for each row. advance: called after each batch.
    """

    def taken(given: tuple[int, int]) -> Iterator[Batch]:
        for batch in sets:
            yield _with(batch, *given)
            advance()

    return {name: validate(model, taken(given)) for name, given in rows.items()}


def _with(batch: Batch, dmo: int, dem: int) -> Batch:
    keep = (1, 1, dmo, dmo, dmo, dem, dem, 1, 1)
    return replace(batch, inputs=tuple(t * k for t, k in zip(batch.inputs, keep, strict=True)))


def table(scores: Scores) -> str:
    """Return a table in Markdown: a row for each set of layers and one for bicubic. It has a column for the offset
    where the truth has one."""
    header = [
        "layers given",
        "PSNR, log1p",
        "over bicubic",
        "mean over scenes",
        "median",
        "RMSE",
        "sum of lights",
    ]
    displaced = any(s["offset_epe_lit_px_if_zero"] > 0 for s in scores.values())
    rows = []
    for name, s in scores.items():
        gain = s.get("psnr_log1p", math.nan) - s.get("psnr_log1p_bicubic", math.nan)
        cells = [
            name,
            _cell(s.get("psnr_log1p"), ".1f", " dB"),
            _cell(gain, "+.2f", " dB"),
            _cell(s.get("psnr_log1p_gain_scene_mean"), "+.2f", " dB"),
            _cell(s.get("psnr_log1p_gain_scene_median"), "+.2f", " dB"),
            *_error_cells(s),
        ]
        offset = f"{s['offset_epe_lit_px']:.3f} LR px of {s['offset_epe_lit_px_if_zero']:.3f}"
        rows.append([*cells, offset] if displaced else cells)
    s = next(iter(scores.values()))
    base = _cell(s.get("psnr_log1p_bicubic"), ".1f", " dB")
    bicubic = ["bicubic", base, "", "", "", *_error_cells(s, "_bicubic")]
    rows.append([*bicubic, ""] if displaced else bicubic)
    return markdown_table([*header, "offset error"] if displaced else header, rows)


def _error_cells(scores: Mapping[str, float], ending: str = "") -> list[str]:
    """RMSE, and the error of the sum of lights."""
    total = scores.get(f"sum_of_lights_error{ending}", math.nan)
    return [_cell(scores.get(f"rmse{ending}"), ".2f"), _cell(100 * total, "+.1f", " %")]


def _cell(value: float | None, form: str, unit: str = "") -> str:
    """A number with its unit; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else format(value, form) + unit


def score(run: str | Path, progress: Progress | None = None) -> str:
    """Make the held-out countries, score the model `run` on them, and return the table."""
    progress = progress or Silent()
    model, _ = load_checkpoint(run)
    count = len(HELD_OUT_SEEDS)
    with progress:
        progress.start(count, "regions", "making unseen countries")
        held_out = synthetic_source(HELD_OUT_SEEDS, count, available_cpus(), progress.advance)
    sets = FixedBatches(held_out, 4, halo(model.config))
    with progress:
        progress.start(len(LAYERS) * len(sets), "batches", "scoring")
        return table(by_layers(model, sets, advance=progress.advance))
