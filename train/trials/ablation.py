"""The ablation of the paper's three modules: the same budget, seeds and data for each configuration of VARIANTS.

python -m deeplight.train.trials.ablation --out DIR
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.markdown import markdown_table
from deeplight.engine.core.terminal import Command, Parsed, parse_folder, run_cli

if TYPE_CHECKING:
    from deeplight.engine.network.model import DeepLightSR
    from deeplight.train.clips.samples import SampleSource
    from deeplight.train.fit.batch import Batch

TABLE, NUMBERS = "ablation.md", "ablation.json"
LAYERS = ("DMO + DEM", "none")
"""What the network is given where it is scored."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """One configuration: what differs from the full network, as tables of deeplight-train's settings."""

    name: str
    what: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


VARIANTS = (
    Variant("full", "all three modules, our objective"),
    Variant(
        "no alignment",
        "the offset is 0; the steps that would train it, or use the true one, go to the whole network",
        {"model": {"align": False}, "training": {"light_steps": 0, "localise_steps": 0, "told_steps": 0}},
    ),
    Variant(
        "fusion by concatenation",
        "a pointwise layer on the features side by side, in place of the weighted modulation",
        {"model": {"fusion": "concatenate"}},
    ),
    Variant(
        "no refinement with ISP",
        "no 3×3 layers, no embedding of the impervious probability, no ISP term in the objective",
        {"model": {"refine": [0, 0, 0], "embed_isp": False}, "objective": {"alpha": 1.0}},
    ),
    Variant(
        "literal ISP objective",
        "cross-entropy between radiance and ISP, as printed",
        {"objective": {"literal_isp": True}},
    ),
    Variant(
        "no modality dropout",
        "layers and bands are always given in training",
        {"augment": {"drop_dmo": 0.0, "drop_dem": 0.0, "drop_both": 0.0, "drop_bands": 0.0}},
    ),
)


@dataclass(frozen=True)
class Budget:
    """What each run may cost. steps: of the whole network; told: before, with the true offset; localise: of the offset.

    told and localise are 0 where all runs begin with an estimator that is trained already. regions: synthetic regions
    to learn from. countries: unseen ones that are scored. crop in LR pixels.
    """

    steps: int = 120
    told: int = 40
    localise: int = 40
    regions: int = 24
    countries: int = 6
    batch: int = 2
    crop: int = 32

    def settings(self, seed: int) -> dict[str, dict[str, Any]]:
        """Return the budget as tables of deeplight-train's settings."""
        training = {
            "steps": self.steps,
            "told_steps": self.told,
            "light_steps": self.localise // 2,
            "localise_steps": self.localise,
            "simple_steps": 0,
            "early_steps": 0,
            "finish_steps": max(1, self.steps // 16),
            "warm_up": max(1, self.steps // 10),
            "batch": self.batch,
            "crop": self.crop,
            "margin": 6,
            # a moving average over a run this short must forget sooner
            "average": 0.97,
            "validate_every": 10 * self.steps,
            "checkpoint_every": 10 * self.steps,
            "seed": seed,
        }
        return {"model": {"preset": "tiny"}, "training": training, "data": {"workers": 0}}

    def of(self, variant: Variant, seed: int) -> dict[str, dict[str, Any]]:
        """The settings of one run. Steps with the true offset that a variant leaves out are added to the others."""
        tables = merged(self.settings(seed), variant.settings)
        if not tables["training"]["told_steps"]:
            tables["training"]["steps"] += self.told
        return tables


def merged(*tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mapping[str, Mapping[str, Any]] of settings laid over each other, the later ones on top."""
    out: dict[str, dict[str, Any]] = {}
    for layer in tables:
        for name, values in layer.items():
            out[name] = {**out.get(name, {}), **values}
    return out


def ablate(
    variants: Sequence[Variant],
    seeds: Iterable[int],
    budget: Budget,
    out: Path,
    say: Callable[[str], None],
    alignment: Path | None = None,
) -> dict[str, Any]:
    """Train and score every variant with every seed; leave ablation.json and ablation.md in `out`.

    alignment: a checkpoint whose offset estimator every run begins with. Both files are written anew after each run, so
    that what is finished is never lost.
    """
    from deeplight.engine.core.machine import available_cpus
    from deeplight.train.evaluation.scores import HELD_OUT_SEEDS
    from deeplight.train.fit.checkpoint import load_checkpoint
    from deeplight.train.fit.pool import synthetic_source
    from deeplight.train.trials.training import train_once

    if alignment is not None:
        load_checkpoint(alignment)  # refused now rather than after the regions are made
    cpus, kept = available_cpus(), HELD_OUT_SEEDS[: budget.countries]
    say(f"making {budget.regions} regions to learn from and {len(kept)} unseen ones")
    learn = synthetic_source(range(budget.regions), budget.regions, cpus)
    check = synthetic_source(kept, len(kept), cpus)
    glance = synthetic_source(kept[:1], 1)
    found: dict[str, Any] = {"budget": asdict(budget), "held_out_seeds": [kept.start, kept.stop], "runs": []}
    found["alignment"] = alignment and alignment.name
    for seed in seeds:
        for variant in variants:
            began = time.monotonic()
            say(f"{variant.name}, seed {seed}")
            run = out / "runs" / f"{variant.name.replace(' ', '-')}-{seed}"
            tables = budget.of(variant, seed)
            model = train_once(tables, learn, glance, run, say, alignment=alignment)
            scores = scored(model, check, budget.batch)
            seconds = round(time.monotonic() - began, 1)
            found["runs"].append(
                {"variant": variant.name, "seed": seed, "seconds": seconds, "scores": scores}
            )
            write_file(out / NUMBERS, [(json.dumps(found, indent=1) + "\n").encode()])
            write_file(out / TABLE, [to_markdown(found, variants).encode()])
            say(f"  {_brief(scores)}, {seconds:.0f} s")
    return found


def scored(model: DeepLightSR, check: SampleSource, batch: int) -> dict[str, Numbers]:
    """`validate` with all layers and with none."""
    from deeplight.engine.network.receptive import halo
    from deeplight.train.evaluation.validation import validate
    from deeplight.train.fit.batch import FixedBatches

    sets = list(FixedBatches(check, batch, halo(model.config)))
    return {LAYERS[0]: validate(model, sets), LAYERS[1]: validate(model, [bare(b) for b in sets])}


def bare(batch: Batch) -> Batch:
    """Return the batch without DMO and DEM, as the engine makes inputs where neither is given."""
    ntl, ntl_valid, *layers = batch.inputs
    return replace(batch, inputs=(ntl, ntl_valid, *(layer * 0 for layer in layers)))


_HEADER = (
    "configuration",
    "gain, all layers",
    "against full",
    "gain, no layer",
    "against full",
    "RMSE",
    "sum of lights",
    "offset error, LR px",
)


def to_markdown(found: Mapping[str, Any], variants: Sequence[Variant]) -> str:
    """The table: mean over the seeds, and in brackets the lowest and highest; differences are of equal seeds."""
    runs = found["runs"]
    seeds = sorted({run["seed"] for run in runs})
    budget, held = found["budget"], found["held_out_seeds"]
    lines = [
        "# Ablation",
        "",
        f"Preset tiny, {budget['steps']} steps of {budget['batch']} crops of {budget['crop']}² LR pixels "
        f"{_before(budget, found.get('alignment'))}; {budget['regions']} synthetic regions; seeds "
        f"{', '.join(map(str, seeds))}; scored on countries {held[0]} to {held[1] - 1}, which no run has seen. Short "
        "runs: they rank modules, they are not the quality of the shipped model.",
        "",
        "PSNR is of log1p radiance (data range log1p(200)); gains are over bicubic, in dB; brackets hold the lowest "
        "and the highest seed; differences are from the full network with the same seed.",
        "",
    ]
    full = {run["seed"]: run["scores"] for run in runs if run["variant"] == variants[0].name}
    rows = []
    for variant in variants:
        mine = {run["seed"]: run["scores"] for run in runs if run["variant"] == variant.name}
        if mine:
            rows.append([variant.name, *_cells(mine, full)])
    lines += [
        markdown_table(_HEADER, rows),
        "",
        *(f"- {variant.name}: {variant.what}." for variant in variants),
    ]
    return "\n".join(lines) + "\n"


def _before(budget: Mapping[str, Any], alignment: str | None) -> str:
    if alignment:
        return f"from the trained offset estimator of {alignment}"
    return f"after {budget['told']} with the true offset and {budget['localise']} of the offset alone"


def _cells(mine: Mapping[int, dict[str, Numbers]], full: Mapping[int, dict[str, Numbers]]) -> list[str]:
    cells = []
    for layers in LAYERS:
        gains = {seed: gain(scores[layers]) for seed, scores in mine.items()}
        against = [g - gain(full[seed][layers]) for seed, g in gains.items() if seed in full]
        cells += [_spread(list(gains.values()), "+.2f"), _spread(against, "+.2f") if mine != full else ""]
    given = [scores[LAYERS[0]] for scores in mine.values()]
    cells.append(_spread([s["rmse"] for s in given], ".3f"))
    cells.append(_spread([s["sum_of_lights_error"] for s in given], "+.1%"))
    cells.append(_spread([s["offset_epe_lit_px"] for s in given], ".3f"))
    return cells


def gain(scores: Numbers) -> float:
    """dB over bicubic, of log1p radiance."""
    return scores["psnr_log1p"] - scores["psnr_log1p_bicubic"]


def _spread(values: Sequence[float], form: str) -> str:
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return "–"
    text = format(statistics.fmean(known), form)
    return text if len(known) == 1 else f"{text} [{min(known):{form}}, {max(known):{form}}]"


def _brief(scores: Mapping[str, Numbers]) -> str:
    return ", ".join(f"{name}: {gain(s):+.2f} dB over bicubic" for name, s in scores.items())


def chosen(names: str) -> tuple[Variant, ...]:
    """The variants named, separated by commas; all for an empty text. Raises InputError where there is no such one."""
    if not names:
        return VARIANTS
    known = {variant.name: variant for variant in VARIANTS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise InputError(f"{name!r} is no configuration: choose from {', '.join(known)}")
    return tuple(known[name] for name in known if name in wanted)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--out", type=Parsed("dir", parse_folder), required=True, help="Folder for the table and the runs"
)
@click.option("--seeds", type=click.IntRange(1, 20), default=2, show_default=True, help="Runs of each")
@click.option("--steps", type=click.IntRange(1), default=Budget.steps, show_default=True, help="Of each run")
@click.option(
    "--alignment",
    type=Parsed("run", Path),
    help="Checkpoint whose offset estimator all runs begin with, in place of training it",
)
@click.option("--regions", type=click.IntRange(1), default=Budget.regions, show_default=True)
@click.option("--countries", type=click.IntRange(1, 12), default=Budget.countries, show_default=True)
@click.option("--only", default="", metavar="NAME,…", help="Some configurations")
@click.option("--threads", type=click.IntRange(1), help="CPU threads")
@click.option("--overwrite", is_flag=True, help="Replace an earlier table")
def command(
    out: Path,
    seeds: int,
    steps: int,
    alignment: Path | None,
    regions: int,
    countries: int,
    only: str,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Train the network without each of its modules in turn, and table what each is worth.

    Synthetic data, preset tiny; every configuration has the same data, seeds and number of steps.
    """
    from deeplight.train.fit.requirements import TRAINING, require

    variants = chosen(only)
    if (out / NUMBERS).exists() and not overwrite:
        raise InputError(
            f"{out} already holds {NUMBERS}; give --overwrite to replace, or choose another --out"
        )
    require("the ablation", TRAINING)
    import torch

    from deeplight.train.fit.run_folder import made_for

    if threads:
        torch.set_num_threads(threads)
    share = steps / Budget.steps
    scaled = {name: max(1, round(getattr(Budget, name) * share)) for name in ("told", "localise")}
    if alignment is not None:
        scaled = dict.fromkeys(scaled, 0)
    budget = Budget(steps=steps, regions=regions, countries=countries, **scaled)
    with made_for(out):
        ablate(variants, range(seeds), budget, out, lambda text: click.echo(text, err=True), alignment)
    click.echo(str(out / TABLE))


def main() -> None:
    """Entry point."""
    run_cli(command, go_on="the runs that are finished are in the table")


if __name__ == "__main__":
    main()
