"""`deeplight-eval`: score a model, with its baselines beside it."""

from __future__ import annotations

from pathlib import Path

import click

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.terminal import Command, Parsed, Real, parse_folder, run_cli

POSITIVE = Real(min=0, min_open=True)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--model", required=True, metavar="NAME|DIR|RUN", help="Built-in, exported or trained")
@click.option("--data", required=True, metavar="DIR|synthetic", help="Clips, a province, held-out countries")
@click.option("--out", type=Parsed("dir", parse_folder), required=True, help="Folder for the results")
@click.option("--split", help="Part of the clips  [test]")
@click.option(
    "--protocol",
    type=click.Choice(["paired", "wald"]),
    default="paired",
    show_default=True,
    help="wald: the NTL is the truth, degraded 8× it is the input",
)
@click.option("--degradation", default="", metavar="KEY=N,…", help="Of wald, as in psf=1.2,noise=0.1")
@click.option(
    "--data-range", type=POSITIVE, default=200.0, show_default=True, help="Of PSNR and SSIM, radiance"
)
@click.option(
    "--lit", type=POSITIVE, default=1.0, show_default=True, help="A pixel is lit above this radiance"
)
@click.option(
    "--saturated", type=POSITIVE, help="NTL is saturated from here on  [its product's or degradation's]"
)
@click.option(
    "--block",
    type=click.IntRange(8, 256),
    default=32,
    show_default=True,
    help="LR pixels along a block, the unit of the intervals",
)
@click.option(
    "--tiles", type=click.IntRange(8), metavar="CORE", help="The engine's tiles on a province  [auto]"
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the runtime  [all CPUs]")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the bootstrap"
)
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier evaluation")
def command(
    model: str,
    data: str,
    out: Path,
    split: str | None,
    protocol: str,
    degradation: str,
    data_range: float,
    lit: float,
    saturated: float | None,
    block: int,
    tiles: int | None,
    threads: int | None,
    seed: int,
    overwrite: bool,
) -> None:
    """Score a model against bicubic, nearest and itself without auxiliary layers.

    DATA is a tree of clips (several: A,B), a province (a folder with ntl.tif, ntl_hr.tif and, where there are any,
    dmo.tif and dem.tif) or "synthetic". Leaves metrics.json, metrics.md and page.html in OUT, and for a province
    the maps.

    Example: deeplight-eval --model deeplight-tiny --data synthetic --out scores
    """
    from deeplight.train.clips.data_folders import data_folders
    from deeplight.train.evaluation.folder import METRICS, PAGE, TABLE, check_unused, require_packages

    if data != "synthetic":
        data_folders(data)
    if degradation and protocol != "wald":
        raise InputError("--degradation belongs to --protocol wald: give that too, or leave it out")
    check_unused(out, overwrite)
    require_packages("deeplight-eval")
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.engine.core.terminal import logging_to, told_in_flags
    from deeplight.train.evaluation.blocks import ScoreSettings
    from deeplight.train.evaluation.run import EvalOptions, run
    from deeplight.train.evaluation.strata import Strata

    settings = ScoreSettings(data_range, Strata(lit), block)
    options = EvalOptions(
        model, data, out, split, protocol, degradation, settings, saturated, tiles, threads, seed, overwrite
    )
    progress = terminal_progress(told_in_flags())
    with logging_to(progress.log):
        run(options, progress)
    for name in (TABLE, METRICS, PAGE):
        click.echo(str(out / name))


def main() -> None:
    """Entry point of `deeplight-eval`."""
    run_cli(command, go_on="nothing is kept, run the same command with --overwrite to start again")


if __name__ == "__main__":
    main()
