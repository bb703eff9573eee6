"""The numbers of the model card: quality on unseen countries for each set of layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.markdown import markdown_table
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.train.evaluation.quick import validate
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.checkpoint import load_checkpoint
from deeplight.train.fit.pool import synthetic_source

HELD_OUT_SEEDS = range(900_000, 900_012)
"""Countries that no training run ever sees."""

LAYERS = {"DMO + DEM": (1, 1), "DMO": (1, 0), "DEM": (0, 1), "none": (0, 0)}

Scores = dict[str, dict[str, float]]


def by_layers(model: DeepLightSR, sets: Iterable[Batch]) -> Scores:
    """`validate` for each row of LAYERS, the other layers taken away as the engine does it."""
    return {name: validate(model, (_with(batch, *given) for batch in sets)) for name, given in LAYERS.items()}


def _with(batch: Batch, dmo: int, dem: int) -> Batch:
    keep = (1, 1, dmo, dmo, dmo, dem, dem)
    return replace(batch, inputs=tuple(t * k for t, k in zip(batch.inputs, keep, strict=True)))


def table(scores: Scores) -> str:
    """Markdown: one row for each set of layers, and bicubic."""
    header = ("layers given", "PSNR, log1p", "over bicubic", "mean over scenes", "median", "RMSE")
    rows = []
    for name, s in scores.items():
        gain = s["psnr_log1p"] - s["psnr_log1p_bicubic"]
        rows.append(
            [
                name,
                f"{s['psnr_log1p']:.1f} dB",
                f"{gain:+.2f} dB",
                f"{s['psnr_log1p_gain_scene_mean']:+.2f} dB",
                f"{s['psnr_log1p_gain_scene_median']:+.2f} dB",
                f"{s['rmse']:.2f}",
                f"{100 * s['sum_of_lights_error']:+.1f} %",
                f"{s['offset_epe_lit_px']:.3f} LR px of {s['offset_epe_lit_px_if_zero']:.3f}",
            ]
        )
    s = next(iter(scores.values()))
    total = f"{100 * s['sum_of_lights_error_bicubic']:+.1f} %"
    rows.append(
        ["bicubic", f"{s['psnr_log1p_bicubic']:.1f} dB", "", "", "", f"{s['rmse_bicubic']:.2f}", total, ""]
    )
    return markdown_table((*header, "sum of lights", "offset error"), rows)


def score(run: str | Path) -> str:
    """The table for the model `run`; makes the held-out countries first."""
    model, _ = load_checkpoint(run)
    held_out = synthetic_source(HELD_OUT_SEEDS, len(HELD_OUT_SEEDS), available_cpus())
    return table(by_layers(model, FixedBatches(held_out, 4, halo(model.config))))
