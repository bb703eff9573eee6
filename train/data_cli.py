"""`deeplight-data`: makes and cuts training data."""

from __future__ import annotations

import re
from pathlib import Path

import click

from deeplight.engine.console import Parsed, parse_folder, run_cli


def _size(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int]:
    """`N` or `HxW` in LR pixels → (height, width)."""
    found = re.fullmatch(r"(\d{1,9})(?:[xX](\d{1,9}))?", text.strip())
    if found is None:
        raise click.BadParameter(f"'{text}' is no size; give N or HxW in LR pixels, such as 128 or 96x128")
    return int(found[1]), int(found[2] or found[1])


def _window(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int, int, int] | None:
    """`ROW,COL,HxW` in LR pixels → (row, col, height, width)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}),(\d{1,9}),(\d{1,9})[xX](\d{1,9})", text.strip())
    if found is None:
        raise click.BadParameter(
            f"'{text}' is no window; give ROW,COL,HxW in LR pixels, such as 4096,0,256x8192"
        )
    row, col, height, width = map(int, found.groups())
    return row, col, height, width


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Make and cut data for training and trials."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command()
@click.option("--out", required=True, type=Parsed("dir", parse_folder), metavar="DIR", help="Folder to fill.")
@click.option(
    "--lr-size",
    callback=_size,
    default="128",
    show_default=True,
    metavar="N|HxW",
    help="Size in LR (NTL) pixels.",
)
@click.option(
    "--window",
    callback=_window,
    metavar="ROW,COL,HxW",
    help="Write only this part of the country, in LR pixels.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Which country; the same seed, the same pixels."
)
@click.option(
    "--misregistration",
    type=float,
    default=1.2,
    show_default=True,
    metavar="A",
    help="Longest displacement of the NTL against the ground, in LR pixels.",
)
@click.option(
    "--noise",
    type=float,
    default=0.06,
    show_default=True,
    metavar="SD",
    help="Standard deviation of the NTL's noise, nW/cm²/sr.",
)
@click.option(
    "--psf", type=float, default=1.2, show_default=True, metavar="FWHM", help="The NTL's blur, in LR pixels."
)
@click.option(
    "--saturation", type=float, metavar="R", help="Radiance at which 6-bit NTL ends, as DMSP-OLS does."
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
def synth(
    out: Path,
    lr_size: tuple[int, int],
    window: tuple[int, int, int, int] | None,
    seed: int,
    misregistration: float,
    noise: float,
    psf: float,
    saturation: float | None,
    overwrite: bool,
) -> None:
    """Make a synthetic country: ntl, ntl_hr, isp, offset, dmo and dem (.tif), on grids of their own.

    Lights, reflectance and relief follow from terrain, settlements and roads; ntl.tif is ntl_hr.tif seen by a
    coarse sensor, displaced against dmo.tif and dem.tif by offset.tif. It streams: any size fits in memory.
    """
    from deeplight.engine.progress import terminal_progress
    from deeplight.engine.tiles import Window
    from deeplight.train.synth.country import CountryConfig
    from deeplight.train.synth.write import described, write_country

    config = CountryConfig(
        seed=seed,
        lr_height=lr_size[0],
        lr_width=lr_size[1],
        psf_fwhm_lr=psf,
        misregistration_lr=misregistration,
        noise=noise,
        saturation=saturation,
    )
    progress = terminal_progress()
    part = None if window is None else Window(*window)
    paths = write_country(config, out, overwrite=overwrite, progress=progress, window=part)
    for line in described(config, part):
        progress.log(line)
    for path in paths:
        click.echo(path)


def main() -> None:
    """Entry point of `deeplight-data`."""
    run_cli(cli, go_on="nothing was written, run the same command to start again")


if __name__ == "__main__":
    main()
