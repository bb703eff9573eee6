"""deeplight-infer: rasters in, 8× finer nighttime lights out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.terminal import Command, Parsed, logging_to, parse_file, run_cli, told_in_flags
from deeplight.engine.output.acquired import parse_dates
from deeplight.engine.raster.bands import band_files, parse_band_file, parse_bands, parse_scale
from deeplight.engine.raster.dataset_names import common_pattern
from deeplight.engine.raster.placement import parse_bounds, parse_crs
from deeplight.engine.raster.psf import parse_psf
from deeplight.engine.run.options import (
    RunOptions,
    chosen_mode,
    parse_extra_bands,
    parse_number,
    parse_shard,
)
from deeplight.engine.run.tiling import AUTOMATIC, parse_tiles
from deeplight.engine.run.workers.request import parse_workers
from deeplight.engine.runtime.artifact import DEFAULT_MODEL
from deeplight.engine.runtime.backends import backend_choices, parse_device
from deeplight.engine.stack.options import StackOptions

FILE = Parsed("file", str)
OUTPUT = Parsed("path", parse_file)
SCALE = Parsed("f[,offset]", parse_scale)
NUMBER = Parsed("value", parse_number)
BAND = click.IntRange(1)
PSF = Parsed("f[,f]|auto|unknown", parse_psf)
CRS = Parsed("epsg:code", parse_crs)

_OR_DATES = {"--ntl": ", or its dates,", "--dmo": "", "--dem": ""}
"""What else than pieces a pattern may stand for."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


def placement_options(command: _Command) -> _Command:
    """The options for files that do not say where they lie: --ntl-crs, --ntl-bounds, and the same of DMO and DEM."""
    for layer in ("dem", "dmo", "ntl"):
        bounds = Parsed("w,s,e,n", parse_bounds)
        told = "West, south, east and north edge of a file without a place"
        command = click.option(f"--{layer}-bounds", type=bounds, help=told, hidden=True)(command)
        told = "Of a file without one (--ntl-bounds W,S,E,N: its edges; --dmo-…, --dem-…)"
        command = click.option(f"--{layer}-crs", type=CRS, help=told, hidden=layer != "ntl")(command)
    return command


@click.command(
    cls=Command,
    context_settings={
        "max_content_width": 100,
        "help_option_names": ["-h", "--help"],
        "allow_extra_args": True,  # refused by _no_more, which knows what a shell makes of a pattern
    },
)
@click.option(
    "--ntl",
    type=FILE,
    required=True,
    multiple=True,
    help="Nighttime lights, nW/cm²/sr or DN; repeat for dates",
)
@click.option(
    "--dates", type=Parsed("date,…", parse_dates), help="Of the lights, in order: 2019,2020-03,2021-06-30"
)
@click.option("--dmo", type=FILE, help="Daytime bands (reflectance), any grid and CRS")
@click.option(
    "--dmo-band",
    "dmo_files",
    type=Parsed("slot=file", parse_band_file),
    multiple=True,
    metavar="SLOT=FILE",
    help="Or one in its own file; repeat",
)
@click.option("--dem", type=FILE, help="Elevation in metres, any grid and CRS")
@click.option("--out", type=OUTPUT, required=True, help="GeoTIFF (COG) to write; of dates a folder or .zarr")
@click.option("--model", default=DEFAULT_MODEL, metavar="NAME|DIR|RUN", help=f"Model [{DEFAULT_MODEL}]")
@click.option(
    "--tiles",
    type=Parsed("auto|core[+halo]", parse_tiles),
    is_flag=False,
    flag_value="auto",
    help="Side of the tiles in LR pixels [auto]",
)
@click.option("--whole", is_flag=True, help="In one piece, without tiles: for small scenes")
@click.option(
    "--backend",
    type=click.Choice(backend_choices()),
    default="auto",
    metavar="NAME",
    help="|".join(backend_choices()),
)
@click.option(
    "--device",
    type=Parsed("device", parse_device),
    default="auto",
    metavar="auto|cpu|cuda[:i]",
    help="Where it runs",
)
@click.option("--precision", default="fp32", metavar="NAME", help="One that the model offers [fp32]")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Of the runtime [all CPUs]")
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Tiles at once [auto tiles: 1 or 2]",
)
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(["auto", "off"]),
    default="auto",
    hidden=True,
    help="off: PyTorch on CUDA as it is",
)
@click.option("--ntl-band", type=BAND, metavar="N", help="Which band of NTL, where it has several")
@click.option("--ntl-scale", type=SCALE, help="nW/cm²/sr = raw · F + OFFSET, in place of the file's")
@click.option("--ntl-unit", metavar="TEXT", help="Unit of NTL after scaling, in place of the file's")
@click.option("--ntl-nodata", type=NUMBER, help="Raw value of NTL without data")
@click.option("--ntl-valid", type=FILE, help="Coverage count or mask on NTL's grid: > 0 is valid")
@click.option("--ntl-valid-band", type=BAND, hidden=True, help="Of a file with several bands")
@click.option("--psf", type=PSF, help="FWHM of NTL's blur in LR pixels [the product's]")
@click.option("--dmo-bands", type=Parsed("slot=band,…", parse_bands), help="As in blue=1,green=2,red=3")
@click.option("--dmo-scale", type=SCALE, help="Reflectance = raw · F + OFFSET")
@click.option("--dmo-nodata", type=NUMBER, help="Raw value of DMO without data")
@click.option("--dem-scale", type=SCALE, hidden=True, help="Metres = raw · F + OFFSET; 0.3048 for feet")
@click.option("--dem-nodata", type=NUMBER, hidden=True, help="Raw value of DEM without data")
@click.option("--dem-band", type=BAND, hidden=True, help="Of a file with several bands")
@placement_options
@click.option("--dtype", type=click.Choice(["float32", "uint16"]), default="float32", help="Of the output")
@click.option("--compression", type=click.Choice(["zstd", "deflate"]), default="zstd", help="Of the output")
@click.option(
    "--bands", type=Parsed("isp,offset,quality,interval", parse_extra_bands), help="Extra output bands"
)
@click.option(
    "--offset", type=click.Choice(["own", "stack"]), default="own", help="stack: one alignment for all dates"
)
@click.option("--conserve-radiance", is_flag=True, help="Make the output, blurred, equal NTL")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped")
@click.option("--overwrite", is_flag=True, help="Replace the output, drop parts of a stopped run")
@click.option("--shard", type=Parsed("i/n", parse_shard), help="Compute a part; --resume then assembles all")
@click.option(
    "--workers",
    type=Parsed("local:N|ray…", parse_workers),
    help="Processes here, or of Ray: ray[:HOST:PORT][,N]",
)
@click.option(
    "--split", type=click.IntRange(1), metavar="SIDE", help="Write regions of so many LR pixels, and a VRT"
)
@click.option("--report", type=OUTPUT, metavar="RUN.JSON", help="Write a run report")
@click.option("--events", type=OUTPUT, metavar="E.JSONL", help="Write what happens as JSON lines")
@click.option(
    "--verify-seams",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Compare N places at tile borders again",
)
@click.option(
    "--check", type=click.IntRange(0), default=0, metavar="N", help="First compare N tiles with fp32"
)
@click.option("--trust", is_flag=True, help="Let the model run native code (TensorRT plans)")
@click.option("--quicklook", type=OUTPUT, metavar="Q.PNG", help="Write LR | result | bicubic as a picture")
@click.option("--page", type=OUTPUT, metavar="P.HTML", help="Write a page with LR and result under a swipe")
@click.option("--stac", is_flag=True, help="Write STAC items of output and model beside it")
@click.option("--allow-remote", is_flag=True, help="Let inputs be URLs and /vsi names")
@click.version_option(None, "-V", "--version", package_name="deeplight", message="%(prog)s %(version)s")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Refine a nighttime-light raster 8× with a DeepLight model.

    A file may be a path, a local GDAL dataset name, or a pattern in quotes, as 'ntl-*.tif': of pieces of one raster, or
    of dates, each of which becomes a map.
    Exit status: 0 done, 1 failed, 2 bad usage or input, 129/130/143 interrupted (continue with --resume).
    """
    _no_more(context.args, [given["ntl"][-1], given["dmo"], given["dem"]])
    options = _options(given)
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.engine.stack.run import infer_dates

    progress = terminal_progress(told_in_flags())
    with logging_to(progress.log):
        report = infer_dates(options, progress)
    if report is not None:
        progress.log(report.headline())
    for path in options.written():
        click.echo(str(path))


def _options(given: dict[str, Any]) -> StackOptions:
    """The run that the command line asks for, over one date or several."""
    ntl, dates, offset = given["ntl"], given.pop("dates"), given.pop("offset")
    given["ntl"] = ntl[0]
    from deeplight.engine.raster.scene import SceneOptions

    if given["tiles"] is not None and given["whole"]:
        raise InputError("--tiles and --whole exclude each other: give one of them")
    given["tiles"] = None if given.pop("whole") else given["tiles"] or AUTOMATIC
    given["compiling"] = given["compiling"] == "auto"
    mode = chosen_mode(given.pop("resume"), given.pop("overwrite"))
    given["dmo_files"] = band_files(given["dmo_files"])
    scene = SceneOptions(**{f.name: given.pop(f.name) for f in fields(SceneOptions) if f.name in given})
    given["bands"] = given["bands"] or ()
    return StackOptions(ntl, RunOptions(scene=scene, mode=mode, **given), dates, offset)


def _no_more(more: list[str], layers: list[str | None]) -> None:
    """Refuse arguments that belong to no option: most often a pattern that the shell has expanded."""
    if not more:
        return
    for flag, first in zip(("--ntl", "--dmo", "--dem"), layers, strict=True):
        pattern = common_pattern([first, *more]) if first else None
        if pattern is not None:
            raise InputError(
                f"{flag} takes one name and {len(more) + 1} are given: for pieces of one raster{_OR_DATES[flag]} put "
                f"the pattern in quotes, so that the shell leaves it as it is: {flag} '{pattern}'"
            )
    raise InputError(f"{' '.join(more)} belongs to no option: give every value after its option")


def main() -> None:
    """Entry point of deeplight-infer."""
    run_cli(
        command,
        go_on="all finished parts are kept, run the same command with --resume (in place of --overwrite) to continue",
    )


if __name__ == "__main__":
    main()
