"""deeplight-zonal: sums, means and lit area of maps by region and date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deeplight.engine.core.spec import Quality
from deeplight.engine.core.terminal import (
    Command,
    Parsed,
    Real,
    logging_to,
    parse_file,
    run_cli,
    told_in_flags,
)
from deeplight.engine.output.acquired import parse_dates
from deeplight.engine.raster.bands import parse_scale
from deeplight.engine.run.options import parse_number
from deeplight.engine.zonal.options import LIT, TABLES, ZonalOptions, check_output, parse_flags

OUTPUT = Parsed("path", parse_file)


@click.command(
    cls=Command, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]}
)
@click.argument("maps", nargs=-1, metavar="MAP…")
@click.option("--map", "more", multiple=True, hidden=True, help="One more map")
@click.option("--regions", type=OUTPUT, required=True, help="Vector file with polygons, in any CRS")
@click.option("--by", metavar="COLUMN", help="With the regions' names  [the features' numbers]")
@click.option("--layer", metavar="NAME", help="Of the vector file, where it has several")
@click.option(
    "--dates", type=Parsed("date,…", parse_dates), help="Of the maps, in order: 2019,2020-03,2021-06-30"
)
@click.option("--threshold", type=Real(), default=LIT, metavar="VALUE", help="A pixel is lit from it on  [1]")
@click.option(
    "--without",
    type=Parsed("flag,…|any", parse_flags),
    help="Leave out pixels with these quality flags",
)
@click.option("--out", type=OUTPUT, help="Table to write, .csv or .parquet  [CSV to the terminal]")
@click.option("--plot", type=OUTPUT, metavar="Q.PNG", help="Draw the means of the regions over time")
@click.option("--map-unit", metavar="TEXT", help="nW/cm²/sr or DN, where maps do not say it")
@click.option(
    "--map-band", type=click.IntRange(1), metavar="N", help="With the lights, where maps have several"
)
@click.option(
    "--map-scale",
    type=Parsed("f[,offset]", parse_scale),
    help="Radiance = raw · F + OFFSET",
)
@click.option("--map-nodata", type=Parsed("value", parse_number), help="Raw value of maps without data")
@click.option("--allow-remote", is_flag=True, help="Let maps be URLs and /vsi names")
@click.option("--overwrite", is_flag=True, help="Replace the table and the plot")
@click.version_option(None, "-V", "--version", package_name="deeplight", message="%(prog)s %(version)s")
def command(**given: Any) -> None:
    """Add up maps of nighttime lights by region and date.

    MAP is what deeplight-infer wrote (a map or a Zarr group), or any raster of lights; several are several dates.

    Example: deeplight-zonal lights-2019.tif lights-2020.tif --regions districts.gpkg --by name --out table.csv
    """
    from deeplight.engine.core.progress import terminal_progress
    from deeplight.engine.zonal.plot import draw, require_matplotlib
    from deeplight.engine.zonal.table import table_text, write_table, zonal_table

    out, plot, overwrite = (given.pop(name) for name in ("out", "plot", "overwrite"))
    check_output(out, TABLES, "`out`", overwrite)
    check_output(plot, (".png",), "`plot`", overwrite)
    if plot is not None:
        require_matplotlib()
    given["maps"] = [*given["maps"], *given.pop("more")]
    given["regions"] = Path(given["regions"])
    given["without"] = given["without"] or Quality(0)
    progress = terminal_progress(told_in_flags())
    with logging_to(progress.log):
        table = zonal_table(ZonalOptions(**given), progress)
    if out is not None:
        write_table(table, out)
    if plot is not None:
        draw(table, plot)
    if out is None:
        click.echo(table_text(table), nl=False)
    for path in (out, plot):
        if path is not None:
            click.echo(str(path), err=out is None)


def main() -> None:
    """Entry point of deeplight-zonal."""
    run_cli(command)


if __name__ == "__main__":
    main()
