"""`deeplight-train`: make a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplight.engine.core.errors import InputError, Interrupted
from deeplight.engine.core.terminal import Command, Parsed, parse_folder, run_cli, told_in_flags

if TYPE_CHECKING:
    from deeplight.engine.network.model import DeepLightSR
    from deeplight.train.fit.logs import Reporter
    from deeplight.train.fit.loop import TrainingData
    from deeplight.train.fit.settings import Settings


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--data", default="synthetic", show_default=True, metavar="synthetic|DIR", help="Clips, or a scene."
)
@click.option("--out", type=Parsed("dir", parse_folder), required=True, help="Run directory.")
@click.option("--preset", help="Network: tiny (default) or base.")
@click.option(
    "--start", type=Parsed("run", parse_folder), help="Go on from these weights: a run, or deeplight-tiny."
)
@click.option("--steps", type=int, help="Steps of the stage `whole` (4200); other stages keep their share.")
@click.option("--protocol", type=click.Choice(["paired", "wald"]), help="wald needs no HR lights.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings as TOML.")
@click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in OUT.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is already there.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", metavar="32-true|bf16-mixed|16-mixed", help="Default: 32-true.")
@click.option("--batch", type=int, help="Windows a step, over all processes (4).")
@click.option("--seed", type=int, help="Of weights, windows and augmentation (0).")
@click.option(
    "--regions", type=int, help="Synthetic regions in memory, 12 MB each; at first half more (320)."
)
@click.option("--workers", type=int, help="Reading processes (none on a CPU).")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads (default: torch's choice).")
def command(
    data: str, out: Path, config: Path | None, sets: tuple[str, ...], resume: bool, **rest: Any
) -> None:
    """Train DeepLightSR and leave a checkpoint (safetensors + JSON) in OUT.

    Several processes: torchrun --nproc-per-node 2 -m deeplight.train.cli … . docs/training.md lists the settings.

    Example: deeplight-train --out run && deeplight-export run --out my-model
    """
    from deeplight.train.clips.data_folders import data_folders
    from deeplight.train.fit.requirements import TRAINING, require
    from deeplight.train.fit.run_folder import check_unused, made_for
    from deeplight.train.fit.settings import load_settings

    if resume and rest["overwrite"]:
        raise InputError("--resume goes on and --overwrite starts anew: give one of them")
    options = {name: rest[key] for key, name in _OPTIONS.items()}
    first = _started(rest["start"])
    settings = load_settings(config, sets, options, None if first is None else first.config)
    if first is not None:
        from deeplight.train.fit.checkpoint import check_start

        check_start(rest["start"], first.config, settings.model)
    check_unused(out, rest["overwrite"], resume)
    if data != "synthetic":
        data_folders(data)
    require("deeplight-train", TRAINING)
    import torch

    from deeplight.train.fit.devices import check_device
    from deeplight.train.fit.logs import terminal_reporter
    from deeplight.train.fit.loop import train

    if rest["threads"]:
        torch.set_num_threads(rest["threads"])
    reporter = terminal_reporter(told_in_flags())
    check_device(rest["device"], settings.training.precision)
    with _saying_how_to_go_on(out, rest["overwrite"]), made_for(out):
        found = _data(data, settings, rest["threads"], reporter)
        if first is not None:
            found.card["start"] = rest["start"].name
        train(settings, found, out, device=rest["device"], resume=resume, reporter=reporter, start=first)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _started(start: Path | None) -> DeepLightSR | None:
    """The network to go on from."""
    if start is None:
        return None
    from deeplight.train.fit.requirements import TRAINING, require

    require("deeplight-train", TRAINING)
    from deeplight.train.fit.checkpoint import load_checkpoint

    return load_checkpoint(start)[0]


@contextlib.contextmanager
def _saying_how_to_go_on(out: Path, overwrite: bool) -> Iterator[None]:
    """Adds to an interruption how to go on, which depends on what has been written."""
    from deeplight.engine.runtime.manifest import MANIFEST_NAME, WEIGHTS
    from deeplight.train.fit.run_folder import STATE

    try:
        yield
    except Interrupted as error:
        again = "run the same command"
        if (out / STATE).exists():
            instead = " in place of --overwrite" if overwrite else ""
            hint = f"{again} with --resume{instead} to go on from the last checkpoint"
        else:
            held = not overwrite and any((out / name).exists() for name in (WEIGHTS, MANIFEST_NAME))
            hint = f"there is no checkpoint yet, {again}{' with --overwrite' if held else ''} to start again"
        error.args = (f"{error}: {hint}",)
        raise


_OPTIONS = {
    "preset": "model.preset",
    "steps": "training.steps",
    "protocol": "data.protocol",
    "precision": "training.precision",
    "batch": "training.batch",
    "seed": "training.seed",
    "regions": "data.regions",
    "workers": "data.workers",
}
"""Options that are settings, by their names in both."""


def _data(data: str, settings: Settings, threads: int | None, reporter: Reporter) -> TrainingData:
    """What `--data` names: synthetic countries, or the train and val splits of a folder."""
    from deeplight.train.fit.loop import TrainingData

    if data == "synthetic":
        return _synthetic(settings, threads, reporter)
    from deeplight.train.clips.degrade import Degradation
    from deeplight.train.clips.tree import open_source

    degradation = Degradation(**dict(settings.degradation))
    protocol = settings.data.protocol
    sources = [open_source(data, split, protocol, degradation) for split in ("train", "val")]
    card: dict[str, object] = {"kind": "folder", "name": Path(data).resolve().name, "protocol": protocol}
    card |= {"places": [len(source) for source in sources]}
    return TrainingData(sources[0], sources[1], card)


def _synthetic(settings: Settings, threads: int | None, reporter: Reporter) -> TrainingData:
    from deeplight.engine.core.machine import available_cpus
    from deeplight.train.evaluation.scores import HELD_OUT_SEEDS
    from deeplight.train.fit.loop import TrainingData
    from deeplight.train.fit.pool import STYLE_SHARES, SyntheticSource, synthetic_source, training_config

    if settings.data.protocol != "paired":
        raise InputError(
            "synthetic countries come with their HR lights: leave --protocol away, or name a folder with --data"
        )
    regions, first = settings.data.regions, settings.training.seed * 10_000
    seeds, workers = range(first, first + regions), threads or available_cpus()
    own = range(first + _SIMPLE_SEEDS, first + _SIMPLE_SEEDS + max(1, regions // 2))
    reporter.log(f"making {regions} regions of synthetic countries, and {len(HELD_OUT_SEEDS)} for validation")
    reporter.start("making regions", 0, regions + len(HELD_OUT_SEEDS))
    card: dict[str, object] = {
        "kind": "synthetic",
        "seeds": [seeds.start, seeds.stop],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop],
        "regions": regions,
        "styles": STYLE_SHARES,
    }
    if settings.training.told_steps or settings.training.simple_steps:
        card["simple_seeds"] = [own.start, own.stop]

    def simple() -> SyntheticSource:
        """Countries of towns and of the usual materials alone."""
        reporter.log(f"making {len(own)} regions of simple countries")
        reporter.start("making regions", 0, len(own))
        return synthetic_source(own, len(own), workers, reporter.advance)

    return TrainingData(
        synthetic_source(seeds, regions, workers, reporter.advance, training_config),
        synthetic_source(HELD_OUT_SEEDS, len(HELD_OUT_SEEDS), workers, reporter.advance),
        card,
        simple,
    )


_SIMPLE_SEEDS = 5_000
"""What lies between a run's countries and its simple ones."""


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Parsed("dir", parse_folder))
def score_command(run: Path) -> None:
    """Print the quality of the checkpoint in RUN on unseen synthetic countries, for each set of layers."""
    from deeplight.train.fit.requirements import TRAINING, require

    require("deeplight-train", TRAINING)
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.train.evaluation.scores import score

    click.echo(score(run, terminal_progress(told_in_flags())))


def score_main() -> None:
    """Entry point of `deeplight-score`."""
    run_cli(score_command)


def main() -> None:
    """Entry point of `deeplight-train`."""
    run_cli(command)


if __name__ == "__main__":
    main()
