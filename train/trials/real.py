"""Trials on real lights: does a network beat bicubic on places that it has not seen?

python -m deeplight.train.trials.real --data TREE --out DIR                      leave one place out, Wald's protocol
python -m deeplight.train.trials.real --data TREE --out DIR --protocol paired    the tree's own test split
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.terminal import Command, Parsed, Real, parse_folder, run_cli
from deeplight.train.fit.config import FROM_NOTHING

if TYPE_CHECKING:
    from deeplight.train.clips.degrade import Degradation
    from deeplight.train.clips.samples import SampleSource
    from deeplight.train.evaluation.evaluate import Evaluation
    from deeplight.train.evaluation.models import EvaluatedNetwork

TABLE, NUMBERS = "trial.md", "trial.json"
MOST_EXCESS = 0.01
"""How much farther off than bicubic's the sum of lights may be."""
BLOCK = 8
"""Side of a block, the unit of the intervals, in LR pixels: by Wald's protocol a place has few of them."""


@dataclass(frozen=True)
class Trial:
    """What is tried. data: clip trees, separated by commas. places: to leave out in turn by Wald's protocol, each with
    a network of its own; empty: all of the index. settings: of each training, as deeplight-train's tables.
    data_range, lit: as for evaluation.blocks.ScoreSettings.
    """

    data: str
    protocol: str = "wald"
    places: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    degradation: str = ""
    start: Path | None = None
    data_range: float = 200.0
    lit: float = 1.0


def training_settings(steps: int, seed: int, rate: float, crop: int) -> dict[str, dict[str, Any]]:
    """Short training on real lights. Crops are small since Wald's places are; their edge is a scene's edge."""
    training = {
        "steps": steps,
        "learning_rate": rate,
        "warm_up": max(1, steps // 10),
        "crop": crop,
        "margin": max(1, crop // 8),
        # the true offset is not known, so nothing can be told; and lights alone do not place anything
        **dict.fromkeys(FROM_NOTHING, 0),
        # the stage that holds sums of lights, longer than elsewhere: they are half of the question
        "finish_steps": max(1, steps // 2),
        "finish_rate": rate,
        "average": 0.98,
        "validate_every": 10 * steps,
        "checkpoint_every": 10 * steps,
        "seed": seed,
    }
    # the sum of each 8×8 block counts more than elsewhere: real lights scatter more than their neighbours tell,
    # and what an absolute error in the log domain aims at, their median, then lies far below their mean
    objective = {"consistency": 2.0, "totals": 0.5}
    tables: dict[str, dict[str, Any]] = {"model": {"preset": "tiny"}, "training": training}
    return tables | {"objective": objective, "data": {"workers": 0}}


def run(trial: Trial, out: Path, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and score; leave trial.json and trial.md in `out`. Returns what trial.json holds."""
    from deeplight.train.clips.degrade import parse_degradation
    from deeplight.train.evaluation.report import summary, to_markdown
    from deeplight.train.evaluation.sources import unit_of

    degradation = parse_degradation(trial.degradation)
    pooled: Evaluation | None = None
    folds = trial.places or (tuple(_places(trial.data)) if trial.protocol == "wald" else ("",))
    if trial.protocol == "wald" and len(folds) < 2 and not trial.places:
        raise InputError(f"{trial.data} has one place, {folds[0]}: to leave one out takes two or more")
    for place in folds:
        say(f"{place or 'test split'}: training")
        held = (place,) if place else ()
        network = _trained(trial, degradation, held, out / "runs" / (place or "paired"), say)
        test = _opened(trial, "test", degradation, held)
        say(f"{place or 'test split'}: scoring {len(test)} clips")
        pooled = score(network, test, trial, pooled)
    assert pooled is not None
    data: dict[str, Any] = {"data": trial.data, "protocol": trial.protocol, "left_out": ", ".join(folds)}
    data |= {"degradation": str(asdict(degradation)) if trial.protocol == "wald" else None}
    model = {"training": "fine-tuned" if trial.start else "from scratch", "start": str(trial.start or "–")}
    values = summary(pooled, model, data, unit_of(test), seed)
    values["settings"]["training"] = {name: dict(table) for name, table in trial.settings.items()}
    values["verdict"] = verdict(values)
    write_file(out / NUMBERS, [(json.dumps(values, indent=1, allow_nan=False) + "\n").encode()])
    text = "\n".join(["# Trial on real lights", "", *in_words(values["verdict"]), "", to_markdown(values)])
    write_file(out / TABLE, [text.encode()])
    return values


def score(
    network: EvaluatedNetwork, test: SampleSource, trial: Trial, pooled: Evaluation | None
) -> Evaluation:
    """Add the test places to the pooled evaluation of network, bicubic and nearest."""
    from deeplight.train.evaluation.blocks import ScoreSettings
    from deeplight.train.evaluation.evaluate import evaluate
    from deeplight.train.evaluation.models import NO_AUXILIARY, methods_of
    from deeplight.train.evaluation.sources import ceiling_of
    from deeplight.train.evaluation.strata import Strata

    methods = methods_of(network)
    if trial.protocol == "wald":  # of lights alone: there is nothing else to leave out
        del methods[NO_AUXILIARY]
    settings = ScoreSettings(trial.data_range, Strata(trial.lit, ceiling_of(test)), BLOCK)
    return evaluate(test, methods, settings, into=pooled)


def verdict(values: Mapping[str, Any]) -> dict[str, Any]:
    """The two questions of a trial, each with its number, its interval and its answer, over all pixels.

    better_psnr: PSNR less bicubic's, in dB, above 0. better_psnr_log1p: of log1p. sums_kept: |error of the sum of
    lights| less bicubic's, at most MOST_EXCESS. places: how many clips, and in how many PSNR is above bicubic's.
    """
    from deeplight.train.evaluation.models import BICUBIC, NETWORK

    mine, base = (values["methods"][m]["strata"]["all"] for m in (NETWORK, BICUBIC))
    between = mine["interval"]
    out: dict[str, Any] = {"pixels": mine["n"], "blocks": values["settings"]["bootstrap"]["blocks"]}
    for name in ("psnr", "psnr_log1p"):
        gain = mine[name] - base[name]
        out[f"better_{name}"] = {"value": gain, "interval": between.get(f"{name}_gain"), "met": gain > 0}
    excess = abs(mine["sum_of_lights_error"]) - abs(base["sum_of_lights_error"])
    found = between.get("sum_of_lights_excess")
    out["sums_kept"] = {"value": excess, "interval": found, "met": excess <= MOST_EXCESS}
    errors = [(place[NETWORK]["rmse"], place[BICUBIC]["rmse"]) for place in values["places"].values()]
    known = [(ours, theirs) for ours, theirs in errors if None not in (ours, theirs)]
    out["places"] = {"number": len(known), "better_psnr": sum(ours < theirs for ours, theirs in known)}
    return out


def in_words(found: Mapping[str, Any]) -> list[str]:
    """The verdict as lines of Markdown."""
    texts = {
        "better_psnr": ("PSNR over bicubic", "+.2f", " dB"),
        "better_psnr_log1p": ("PSNR of log1p over bicubic", "+.2f", " dB"),
        "sums_kept": (
            f"|error of the sum of lights| over bicubic's (at most +{MOST_EXCESS:.0%})",
            "+.2%",
            "",
        ),
    }
    lines = [f"Pooled over {found['pixels']:,} pixels of unseen ground in {found['blocks']} blocks:", ""]
    for name, (title, form, unit) in texts.items():
        part = found[name]
        between = part["interval"]
        text = "too few blocks for an interval"
        if between:
            text = f"95 % interval {between[0]:{form}} … {between[1]:{form}}{unit}"
        answer = "met" if part["met"] else "**not met**"
        lines.append(f"- {title}: {part['value']:{form}}{unit} ({text}): {answer}")
    places = found["places"]
    lines.append(f"- PSNR over bicubic in {places['better_psnr']} of {places['number']} clips")
    return lines


def _places(data: str) -> list[str]:
    """The places in the indices of the trees."""
    from deeplight.train.clips.index import read_index

    rows = [row for tree in data.split(",") for row in read_index(Path(tree.strip()))]
    return sorted({row.place for row in rows})


def _opened(trial: Trial, split: str, degradation: Degradation, held: tuple[str, ...]) -> SampleSource:
    from deeplight.train.clips.tree import open_source

    return open_source(trial.data, split, trial.protocol, degradation, held)


def _trained(
    trial: Trial, degradation: Degradation, held: tuple[str, ...], folder: Path, say: Callable[[str], None]
) -> EvaluatedNetwork:
    """A network that has not seen the places of `held`."""
    from deeplight.train.evaluation.models import EvaluatedNetwork
    from deeplight.train.trials.training import train_once

    learn = _opened(trial, "train", degradation, held)
    try:
        check = _opened(trial, "val", degradation, held)
    except InputError:  # few clips: none for validation, which decides nothing here
        check = learn
    train_once(trial.settings, learn, check, folder, say, trial.start)
    return EvaluatedNetwork(str(folder), threads=1)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--data", required=True, metavar="TREE,…", help="Clip trees")
@click.option("--out", type=Parsed("dir", parse_folder), required=True, help="Folder for the results")
@click.option("--protocol", type=click.Choice(["wald", "paired"]), default="wald", show_default=True)
@click.option("--places", default="", metavar="NAME,…", help="To leave out in turn  [all]")
@click.option(
    "--degradation", default="", metavar="KEY=N,…", help="Of Wald's protocol, as in psf=1.2,noise=0.1"
)
@click.option(
    "--start", type=click.Path(path_type=Path), metavar="CHECKPOINT", help="Fine-tune it  [from scratch]"
)
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True, help="Of each training")
@click.option("--rate", type=Real(min=0, min_open=True), default=1e-3, show_default=True)
@click.option("--crop", type=click.IntRange(8), default=16, show_default=True, help="LR pixels of a window")
@click.option("--data-range", type=Real(min=0, min_open=True), default=200.0, show_default=True)
@click.option("--lit", type=Real(min=0), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace earlier results")
def command(data: str, out: Path, overwrite: bool, **given: Any) -> None:
    """Train on real lights and score places that were left out, with bicubic beside them."""
    from deeplight.train.clips.data_folders import data_folders
    from deeplight.train.evaluation.folder import require_packages
    from deeplight.train.fit.requirements import TRAINING, require
    from deeplight.train.fit.run_folder import made_for

    if (out / NUMBERS).exists() and not overwrite:
        raise InputError(
            f"{out} already holds {NUMBERS}; give --overwrite to replace, or choose another --out"
        )
    if given["degradation"] and given["protocol"] != "wald":
        raise InputError("--degradation belongs to --protocol wald: give that too, or leave it out")
    data_folders(data)
    require("the trial", TRAINING)
    require_packages("the trial")
    settings = training_settings(given["steps"], given["seed"], given["rate"], given["crop"])
    places = tuple(name.strip() for name in given["places"].split(",") if name.strip())
    trial = Trial(
        data,
        given["protocol"],
        places,
        settings,
        given["degradation"],
        given["start"],
        given["data_range"],
        given["lit"],
    )
    with made_for(out):
        values = run(trial, out, given["seed"], lambda text: click.echo(text, err=True))
    for line in in_words(values["verdict"]):
        click.echo(line)


def main() -> None:
    """Entry point."""
    run_cli(command)


if __name__ == "__main__":
    main()
