"""The numbers of an evaluation: as plain values for metrics.json and as tables for metrics.md."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from deeplight.engine.core.markdown import markdown_table
from deeplight.train.evaluation.blocks import TRUTH, Sums
from deeplight.train.evaluation.evaluate import Evaluation
from deeplight.train.evaluation.intervals import LEVEL, RESAMPLES, Interval, quality_intervals
from deeplight.train.evaluation.models import BICUBIC
from deeplight.train.evaluation.pixels import N, quality
from deeplight.train.evaluation.strata import STRATA
from deeplight.train.evaluation.verdict import verdict

MOST_PLACES = 50
"""Places listed in metrics.md; metrics.json has all."""
Values = dict[str, Any]


def summary(result: Evaluation, model: Values, data: Values, unit: str, seed: int) -> Values:
    """Return everything that was measured, ready for JSON: None stands for a number that does not exist."""
    settings, total = result.settings, result.total
    pixels = np.stack(list(result.groups.values()))
    baseline = result.methods.index(BICUBIC)
    intervals = quality_intervals(pixels, baseline, settings.data_range, seed)
    strata = settings.strata
    return {
        "schema": 1,
        "model": model,
        "data": data,
        "settings": {
            "unit": unit,
            "data_range": settings.data_range,
            "lit_above": strata.lit,
            "saturated_from": strata.ceiling if math.isfinite(strata.ceiling) else None,
            "block_lr": settings.block,
            "bootstrap": {
                "blocks": len(pixels),
                "resamples": RESAMPLES,
                "level": LEVEL,
                "seed": seed,
                "baseline": BICUBIC,
            },
        },
        "pixels": {
            "in_blocks": int(total["counts"][0, 1]),
            "scored": int(total["counts"][0, 0]),
            **{s: int(total["pixels"][0, i, N]) for i, s in enumerate(STRATA) if i},
        },
        "methods": {
            m: {
                "strata": {s: _stratum(result, i, k, intervals[i][k]) for k, s in enumerate(STRATA)},
                **_whole(total, i),
            }
            for i, m in enumerate(result.methods)
        },
        TRUTH: _piqe_and_means(total, len(result.methods)),
        "places": {name: _place(result, sums) for name, sums in result.places.items()},
        "skipped": result.skipped,
    }


def _stratum(result: Evaluation, m: int, s: int, intervals: dict[str, Interval]) -> Values:
    sums, similar = result.total["pixels"][m, s], result.total["ssim"][m, s]
    found = {name: float(v) for name, v in quality(sums, result.settings.data_range).items()}
    found["ssim"], found["ssim_log1p"] = (_ratio(similar[k], similar[2]) for k in (0, 1))
    values: Values = {"n": int(sums[N]), **{name: _plain(v) for name, v in found.items()}}
    values["interval"] = {name: v and [_plain(x) for x in v] for name, v in intervals.items()}
    return values


def _whole(total: Sums, m: int) -> Values:
    """Metrics over all strata of method m."""
    lit, blocks, shift, seams = (total[name][m] for name in ("lit", "blocks", "shift", "seams"))
    excess = _ratio(seams[0], seams[1]) - _ratio(seams[2], seams[3])
    x, y, length = (_plain(_ratio(shift[k], shift[3])) for k in range(3))
    return {
        "iou_lit": _plain(_ratio(lit[0], lit[1])),
        "block_total_error": _plain(_ratio(blocks[0], blocks[1])),
        "lit_blocks": int(blocks[1]),
        "shift_hr_px": {"x": x, "y": y, "length": length, "blocks": int(shift[3])},
        "seam": _plain(_ratio(excess, _ratio(seams[4], seams[5]))),
        **_piqe_and_means(total, m),
    }


def _piqe_and_means(total: Sums, row: int) -> Values:
    piqe, means = total["piqe"][row], total["reaggregation"][row]
    return {
        "piqe": _plain(_ratio(piqe[0], piqe[1])),
        "piqe_blocks": int(piqe[1]),
        "reaggregation_rmse": _plain(math.sqrt(_ratio(means[1], means[0]))),
        "reaggregation_error": _plain(_ratio(means[2], means[3]) - 1.0),
        "reaggregation_lr_pixels": int(means[0]),
    }


def _place(result: Evaluation, sums: Sums) -> Values:
    found = quality(sums["pixels"][:, 0], result.settings.data_range)
    names = ("psnr", "psnr_log1p", "rmse", "sum_of_lights_error")
    return {
        "n": int(sums["counts"][0, 0]),
        **{m: {n: _plain(float(found[n][i])) for n in names} for i, m in enumerate(result.methods)},
    }


def _ratio(a: float, b: float) -> float:
    return float(a) / float(b) if b else math.nan


def _plain(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def to_json(values: Values) -> str:
    """Return the text of metrics.json."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(values: Values) -> str:
    """Return metrics.md: the verdict, what was scored, a table for each stratum, one of the whole, one of places."""
    settings, pixels = values["settings"], values["pixels"]
    boot = settings["bootstrap"]
    lines = [
        f"# {verdict(values)}",
        "",
        f"Model: {_facts(values['model'])}  ",
        f"Data: {_facts(values['data'])}  ",
        f"Unit {settings['unit']}; data range of PSNR and SSIM {settings['data_range']:g} (log1p: "
        f"{math.log1p(settings['data_range']):.3f}); lit above {settings['lit_above']:g}; saturated from "
        f"{_cell(settings['saturated_from'], 'g')}.  ",
        f"{pixels['scored']:,} of {pixels['in_blocks']:,} HR pixels are valid in truth, NTL and every output, and only "
        "these count.  ",
        f"Brackets: {boot['level']:.0%} bootstrap intervals over {boot['blocks']} blocks ({settings['block_lr']}² LR "
        f"pixels or more, {boot['resamples']} draws, seed {boot['seed']}).",
    ]
    for stratum in STRATA:
        n = values["methods"][BICUBIC]["strata"][stratum]["n"]
        lines += ["", f"## {stratum.capitalize()} pixels ({n:,})", ""]
        lines += _stratum_table(values["methods"], stratum) if n else ["None."]
    lines += ["", "## Whole blocks", "", *_whole_table(values)]
    lines += ["", "## Places", "", *_place_table(values)]
    if values["skipped"]:
        lines += ["", "## Skipped", "", *(f"- {text}" for text in values["skipped"])]
    return "\n".join(lines) + "\n"


def _facts(found: Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)


def _stratum_table(methods: Values, stratum: str) -> list[str]:
    head = ("PSNR dB", "PSNR log1p dB", f"over {BICUBIC}, log1p", "SSIM", "SSIM log1p", "RMSE", "MAE", "R²")
    rows = []
    for name, method in methods.items():
        s, i = method["strata"][stratum], method["strata"][stratum]["interval"]
        gain = _difference(s["psnr_log1p"], methods[BICUBIC]["strata"][stratum]["psnr_log1p"])
        rows.append(
            [
                name,
                _cell(s["psnr"], ".2f", i.get("psnr")),
                _cell(s["psnr_log1p"], ".2f", i.get("psnr_log1p")),
                "" if name == BICUBIC else _cell(gain, "+.2f", i.get("psnr_log1p_gain")),
                *(_cell(s[n], ".3f") for n in ("ssim", "ssim_log1p", "rmse", "mae", "r2")),
                _cell(s["sum_of_lights_error"], "+.1%", i.get("sum_of_lights_error")),
            ]
        )
    return markdown_table(["method", *head, "sum of lights"], rows).splitlines()


def _whole_table(values: Values) -> list[str]:
    head = [
        "method",
        "PIQE",
        "IoU of lit area",
        "shift x, y (HR px)",
        "shift length",
        "sum of lights, mean per block",
    ]
    head += ["seams", "8×8 means: RMSE", "8×8 means: total"]
    rows = []
    for name, m in [*values["methods"].items(), (TRUTH, values[TRUTH])]:
        means = [_cell(m["reaggregation_rmse"], ".3f"), _cell(m["reaggregation_error"], "+.1%")]
        if name == TRUTH:
            rows.append([name, _cell(m["piqe"], ".1f"), *[""] * 5, *means])
            continue
        shift = m["shift_hr_px"]
        place = f"{_cell(shift['x'], '+.2f')}, {_cell(shift['y'], '+.2f')}"
        cells = [_cell(m["piqe"], ".1f"), _cell(m["iou_lit"], ".3f"), place, _cell(shift["length"], ".2f")]
        cells += [_cell(m["block_total_error"], ".1%"), _cell(m["seam"], "+.3f")]
        rows.append([name, *cells, *means])
    first = next(iter(values["methods"].values()))
    note = (
        f"PIQE over {first['piqe_blocks']} blocks that are valid throughout; shift over "
        f"{first['shift_hr_px']['blocks']} and sums over {first['lit_blocks']} lit blocks; 8×8 means against the LR "
        f"input over {first['reaggregation_lr_pixels']:,} LR pixels that are not saturated."
    )
    return [*markdown_table(head, rows).splitlines(), "", note]


def _place_table(values: Values) -> list[str]:
    methods = list(values["methods"])
    head = [
        "place",
        "pixels",
        *(f"PSNR log1p, {m}" for m in methods),
        *(f"sum of lights, {m}" for m in methods),
    ]
    rows = []
    for name, place in list(values["places"].items())[:MOST_PLACES]:
        psnr = [_cell(place[m]["psnr_log1p"], ".2f") for m in methods]
        sums = [_cell(place[m]["sum_of_lights_error"], "+.1%") for m in methods]
        rows.append([name, f"{place['n']:,}", *psnr, *sums])
    more = len(values["places"]) - len(rows)
    rest = ["", f"{more} more in metrics.json."] if more > 0 else []
    return [*markdown_table(head, rows).splitlines(), *rest]


def _cell(value: float | None, form: str, between: list[float | None] | None = None) -> str:
    """A number, with its interval in brackets; a dash where there is none."""
    if value is None:
        return "–"
    text = format(value, form)
    if between and None not in between:
        text += f" [{format(between[0], form)}, {format(between[1], form)}]"
    return text


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
