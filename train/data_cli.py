"""`deeplight-data`: makes and cuts training data."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deeplight.engine.cli import BAND, placement_options
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.terminal import Group, Parsed, Real, logging_to, parse_folder, run_cli
from deeplight.engine.raster.bands import band_files, parse_band_file, parse_bands, parse_scale
from deeplight.engine.run.options import parse_number

if TYPE_CHECKING:
    from deeplight.train.clips.cut import ClipRequest


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
    cls=Group,
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
    "misregistration_lr",
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
    "--psf",
    "psf_fwhm_lr",
    type=float,
    default=1.2,
    show_default=True,
    metavar="FWHM",
    help="The NTL's blur, in LR pixels.",
)
@click.option(
    "--saturation", type=float, metavar="R", help="Radiance at which 6-bit NTL ends, as DMSP-OLS does."
)
@click.option(
    "--style",
    default="towns",
    show_default=True,
    metavar="NAME",
    help="How it is settled: towns, grid, river, ribbon, megacity, coast, archipelago.",
)
@click.option("--own-materials", is_flag=True, help="Soils, roofs, seasons and waters drawn from the seed.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
def synth(
    out: Path,
    lr_size: tuple[int, int],
    window: tuple[int, int, int, int] | None,
    overwrite: bool,
    **country: Any,
) -> None:
    """Make a synthetic country: ntl, ntl_hr, isp, offset, dmo and dem (.tif), on grids of their own.

    Lights, reflectance and relief follow from terrain, settlements and roads; ntl.tif is ntl_hr.tif seen by a
    coarse sensor, displaced against dmo.tif and dem.tif by offset.tif. It streams: any size fits in memory.
    """
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.engine.core.windows import Window
    from deeplight.train.synth.country import CountryConfig
    from deeplight.train.synth.write import described, write_country

    config = CountryConfig(lr_height=lr_size[0], lr_width=lr_size[1], **country)
    progress, part = terminal_progress(), None if window is None else Window(*window)
    paths = write_country(config, out, overwrite=overwrite, progress=progress, window=part)
    for line in described(config, part):
        progress.log(line)
    for path in paths:
        click.echo(path)


_FILE = Parsed("file", str)
_SCALE_TYPE = Parsed("f[,offset]", parse_scale)
_NUMBER = Parsed("value", parse_number)
_BAND = click.IntRange(1)


def _sides(text: str) -> tuple[int, int]:
    """`N` or `N,LEAST` → (largest, smallest) side of a clip. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,4})(?:,(\d{1,4}))?", text.strip())
    if found is None:
        raise ValueError(f"'{text}' is no size; give N or N,LEAST in LR pixels, such as 256 or 64,24")
    return int(found[1]), int(found[2] or found[1])


def _lit(text: str) -> tuple[float, float]:
    """`SHARE` or `SHARE,ABOVE` → both. Raises ValueError."""
    try:
        share, above = map(float, (text if "," in text else f"{text},0.5").split(","))
    except ValueError:
        share = above = math.nan
    if not 0 <= share <= 1 or not math.isfinite(above):
        raise ValueError(
            f"'{text}' is not SHARE or SHARE,ABOVE, such as 0.01,0.5: a share of pixels and a radiance"
        )
    return share, above


@cli.command()
@click.option("--out", required=True, type=Parsed("dir", parse_folder), metavar="TREE", help="Clip tree.")
@click.option(
    "--place", required=True, metavar="NAME", help="What the rasters show; one of the index's columns."
)
@click.option("--date", default="", metavar="TEXT", help="When, such as 2021-06.")
@click.option("--ntl", type=_FILE, default="", help="LR lights; without them, see --degrade.")
@click.option("--ntl-hr", type=_FILE, help="HR lights, the truth.")
@click.option("--dmo", type=_FILE, help="Daytime bands in one file.")
@click.option("--dmo-band", "dmo_files", type=Parsed("slot=file", parse_band_file), multiple=True,
              metavar="SLOT=FILE", help="Or each in its own; repeat.")  # fmt: skip
@click.option("--dem", type=_FILE, help="Elevation in metres.")
@click.option("--isp", type=_FILE, help="Impervious fraction.")
@click.option("--qa", type=_FILE, help="Landsat QA_PIXEL: its cloud bits hide daytime pixels.")
@click.option("--cloud-mask", type=_FILE, help="Or a mask, not 0 = cloud.")
@click.option("--ntl-band", type=_BAND, metavar="N", help="Which band of the LR lights, of several.")
@click.option("--ntl-scale", type=_SCALE_TYPE, help="nW/cm²/sr = raw · F + OFFSET, in place of the file's.")
@click.option("--ntl-nodata", type=_NUMBER, help="Raw value without data.")
@click.option("--ntl-valid", type=_FILE, help="Coverage count or mask on the LR lights' grid: > 0 is valid.")
@click.option("--ntl-valid-band", type=_BAND, metavar="N", help="Which band of it, of several.")
@click.option("--ntl-hr-scale", type=_SCALE_TYPE, help="The same of the HR lights.")
@click.option("--ntl-hr-nodata", type=_NUMBER, help="Of the HR lights.")
@click.option("--dmo-bands", type=Parsed("slot=n,…", parse_bands), help="As in blue=1,green=2,red=3.")
@click.option("--dmo-scale", type=_SCALE_TYPE, help="Reflectance = raw · F + OFFSET, as 0.0000275,-0.2.")
@click.option("--dmo-nodata", type=_NUMBER, help="Of the daytime bands.")
@click.option(
    "--dem-scale", type=_SCALE_TYPE, hidden=True, help="Metres = raw · F + OFFSET; 0.3048 for feet."
)
@click.option("--dem-nodata", type=_NUMBER, hidden=True, help="Of the elevation.")
@click.option("--dem-band", type=BAND, hidden=True, help="Of a file with several bands.")
@placement_options
@click.option("--isp-scale", type=_SCALE_TYPE, help="0.01 for percent.")
@click.option("--isp-nodata", type=_NUMBER, help="Of the impervious fraction.")
@click.option("--unit", "--ntl-unit", "unit", default="", help="Of the lights, in place of the file's.")
@click.option(
    "--degrade",
    type=Parsed("key=n,…", str),
    help="Make LR lights of the HR ones: psf=1,noise=0.1 or default.",
)
@click.option(
    "--clip",
    "sides",
    type=Parsed("n[,least]", _sides),
    default="256",
    help="Side in LR pixels; LEAST at edges [256].",
)
@click.option("--block", type=click.IntRange(1), help="Least side of a split's blocks [2 clips + buffer].")
@click.option("--buffer", type=click.IntRange(0), default=16, help="LR pixels between splits [16].")
@click.option(
    "--shares", type=Parsed("train,val,test", str), default="0.8,0.1,0.1", help="Of blocks [0.8,0.1,0.1]."
)
@click.option(
    "--hold-out",
    multiple=True,
    metavar="NAME[=W,S,E,N]",
    help="A region, or a place, as its own split; repeat.",
)
@click.option("--seed", type=int, default=0, help="Of the blocks' order [0].")
@click.option("--min-valid", type=Real(0, 1), default=0.9, help="Least share of valid lights [0.9].")
@click.option("--max-cloud", type=Real(0, 1), default=0.3, help="Most cloud [0.3].")
@click.option(
    "--min-lit",
    type=Parsed("share[,above]", _lit),
    default="0.01,0.5",
    help="Least share of LR pixels brighter than ABOVE [0.01,0.5].",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Cut a place again that the tree holds.")
def clip(**given: Any) -> None:
    """Cut training clips from a place's rasters, of any grid and CRS; docs/data.md tells more."""
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.train.clips.cut import cut_place

    request = _clip_request(given)
    progress = terminal_progress()
    with logging_to(progress.log):
        report = cut_place(request, progress)
    for line in report.lines():
        progress.log(line)
    click.echo(request.out)


def _clip_request(given: dict[str, Any]) -> ClipRequest:
    """What the command line asks for."""
    from deeplight.engine.output.parts import Mode
    from deeplight.engine.raster.scene import SceneOptions
    from deeplight.train.clips.cut import ClipRequest, Rules
    from deeplight.train.clips.degrade import parse_degradation
    from deeplight.train.clips.place import PlaceOptions
    from deeplight.train.clips.plan import ClipPlanOptions, parse_name, parse_region, parse_shares

    if given["resume"] and given["overwrite"]:
        raise InputError("--resume and --overwrite exclude each other: give one of them")
    scene_keys = [f.name for f in fields(SceneOptions) if f.name in given and f.name != "dmo_files"]
    place_keys = ("ntl_hr", "ntl_hr_scale", "ntl_hr_nodata", "isp", "isp_scale", "isp_nodata", "qa",
                  "cloud_mask")  # fmt: skip
    (side, least), buffer = given["sides"], given["buffer"]
    return ClipRequest(
        out=given["out"],
        place=parse_name(given["place"]),
        date=parse_name(given["date"]) if given["date"] else "",
        files=PlaceOptions(
            SceneOptions(
                **{key: given[key] for key in scene_keys},
                dmo_files=band_files(given["dmo_files"]),
                ntl_unit=given["unit"] or None,
            ),
            **{key: given[key] for key in place_keys},
        ),
        plan=ClipPlanOptions(
            clip=side,
            clip_min=least,
            block=given["block"] or 2 * side + buffer,
            buffer=buffer,
            shares=parse_shares(given["shares"]),
            seed=given["seed"],
            regions=tuple(parse_region(text) for text in given["hold_out"]),
        ),
        rules=Rules(given["min_valid"], given["max_cloud"], *given["min_lit"]),
        degradation=None if given["degrade"] is None else parse_degradation(given["degrade"]),
        unit=given["unit"],
        mode=Mode.RESUME if given["resume"] else Mode.OVERWRITE if given["overwrite"] else Mode.NEW,
    )


@cli.command()
@click.argument("tree", type=Parsed("tree", str))
@click.option("--split", default="all", show_default=True, help="Only this split.")
@click.option("--sheet", type=Parsed("q.png", Path), help="Write pictures of up to 24 clips.")
@click.option("--json", "report", type=Parsed("report.json", Path), help="Write the numbers.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
def inspect(tree: str, split: str, sheet: Path | None, report: Path | None, overwrite: bool) -> None:
    """Print what clip trees hold (several: separated by commas), after the check that no split leaks.

    Exit status 1 where a clip cannot be read.
    """
    import json
    from dataclasses import asdict

    from deeplight.engine.core.files import write_file
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.train.clips.data_folders import data_folders
    from deeplight.train.clips.inspect_sheet import write_sheet
    from deeplight.train.clips.inspect_stats import inspect_tree
    from deeplight.train.clips.tree import ClipTree

    for path, suffix in ((sheet, ".png"), (report, ".json")):
        _check_new(path, (suffix,), overwrite)
    clips = ClipTree.open([str(folder) for folder in data_folders(tree)], split)
    found = inspect_tree(clips, terminal_progress())
    for line in found.lines():
        click.echo(line)
    if report is not None:
        write_file(report, [(json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n").encode()])
        click.echo(report)
    if sheet is not None:
        write_sheet(clips, sheet)
        click.echo(sheet)
    if found.unreadable:
        raise DeepLightError(
            f"{len(found.unreadable)} of {len(clips)} clips cannot be read; they are named above"
        )


@cli.command()
@click.argument("files", nargs=-1, required=True, type=Parsed("file", Path))
@click.option("--out", required=True, type=Parsed("out.tif", Path), help="GeoTIFF to write.")
@click.option("--layer", help="Radiance layer [the first that is known].")
@click.option(
    "--max-quality",
    type=click.IntRange(0, 254),
    metavar="N",
    help="Drop pixels whose quality flag is above N (0: best).",
)
@click.option("--overwrite", is_flag=True, help="Replace the output.")
def blackmarble(
    files: tuple[Path, ...], out: Path, layer: str | None, max_quality: int | None, overwrite: bool
) -> None:
    """Turn Black Marble HDF5 tiles (VNP46A1 to A4) of one date into a GeoTIFF in nW/cm²/sr.

    The place comes from h and v in each file's name, scale and fill from its attributes.
    """
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.train.clips.blackmarble import convert

    _check_new(out, (".tif", ".tiff"), overwrite)
    convert(files, out, terminal_progress(), layer, max_quality)
    click.echo(out)


@cli.command()
@click.argument("file", type=_FILE)
@click.argument("out", type=Parsed("out.tif", Path))
@click.option("--band", type=_BAND, metavar="N", help="Only this one.")
@click.option("--nodata", type=_NUMBER, help="Another raw value that is missing.")
@click.option("--undo", type=click.Choice(["log10", "ln", "db"]), help="Undo this logarithm.")
@click.option("--like", type=_FILE, help="Put it on this raster's grid.")
@click.option(
    "--cut", type=click.IntRange(1, 64), default=1, help="With its pixels cut so many times a side [1]."
)
@click.option("--mean", is_flag=True, help="Of the pixels below, not the nearest.")
@click.option("--overwrite", is_flag=True, help="Replace the output.")
def copy(file: str, out: Path, overwrite: bool, **change: Any) -> None:
    """Copy a raster, or a pattern of its pieces, to a tiled GeoTIFF with its scales, units and names."""
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.train.clips.copying import Change, copy_raster

    _check_new(out, (".tif", ".tiff"), overwrite)
    copy_raster(file, out, Change(**change), terminal_progress())
    click.echo(out)


def _check_new(path: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Refuse an output of another kind, in a folder that is not there, or that exists."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}: choose another name")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist: create it, or choose another")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: use --overwrite to replace it, or choose another name")


def main() -> None:
    """Entry point of `deeplight-data`."""
    go_on = "nothing was written, run the same command to start again"
    if sys.argv[1:2] == ["clip"]:
        go_on = "finished clips are kept, run the same command with --resume to go on"
    run_cli(cli, go_on=go_on)


if __name__ == "__main__":
    main()
