"""`deeplight-train`: make a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from deeplight.engine.console import Parsed, parse_folder, run_cli
from deeplight.engine.errors import InputError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--data", default="synthetic", show_default=True, help="synthetic: countries made on the fly.")
@click.option(
    "--out", type=Parsed("dir", parse_folder), required=True, help="Run directory for the checkpoint."
)
@click.option("--preset", default="tiny", show_default=True, help="Network: tiny or base.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1950,
    show_default=True,
    help="Steps of the whole network; the stages before it keep their share.",
)
@click.option(
    "--regions",
    type=click.IntRange(min=1),
    default=320,
    show_default=True,
    help="Regions kept in memory (12 MB each).",
)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: torch's choice).")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is already there.")
def command(
    data: str,
    out: Path,
    preset: str,
    steps: int,
    regions: int,
    batch: int,
    seed: int,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Train DeepLightSR and leave a checkpoint (safetensors + JSON) in OUT.

    Example: deeplight-train --out run && deeplight-export run --out my-model
    """
    if data != "synthetic":
        raise InputError(f"--data {data!r} is not supported yet: the accepted value is 'synthetic'")
    from deeplight.train.config import preset as named
    from deeplight.train.requirements import TRAINING, require
    from deeplight.train.run_folder import check_unused, make_writable

    model_config = named(preset)
    check_unused(out, overwrite)
    require("deeplight-train", TRAINING)
    make_writable(out)
    import torch

    from deeplight.engine.machine import available_cpus
    from deeplight.train.loop import TrainConfig, train
    from deeplight.train.pool import build_pool
    from deeplight.train.scores import HELD_OUT_SEEDS

    if threads:
        torch.set_num_threads(threads)
    seeds = range(seed * 10_000, seed * 10_000 + regions)
    click.echo(f"making {regions} regions of synthetic countries", err=True)
    workers = threads or available_cpus()
    pool = build_pool(seeds, regions, workers)
    held_out = build_pool(HELD_OUT_SEEDS, len(HELD_OUT_SEEDS), workers)
    provenance = {
        "kind": "synthetic",
        "seeds": [seeds.start, seeds.stop],
        "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.stop],
        "regions": regions,
    }
    config = TrainConfig(batch=batch, seed=seed).scaled(steps)
    train(model_config, config, pool, held_out, out, provenance, _log)


def _log(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Parsed("dir", parse_folder))
def score_command(run: Path) -> None:
    """Print the quality of the checkpoint in RUN on unseen synthetic countries, for each set of layers."""
    from deeplight.train.requirements import TRAINING, require

    require("deeplight-train", TRAINING)
    from deeplight.train.scores import score

    click.echo(score(run))


def score_main() -> None:
    """Entry point of `deeplight-score`."""
    run_cli(score_command)


def main() -> None:
    """Entry point of `deeplight-train`."""
    run_cli(command)


if __name__ == "__main__":
    main()
