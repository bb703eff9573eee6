"""Commands that messages advise. They leave the user's own files as they are, and need only what DeepLight installs."""

from __future__ import annotations

import shlex
import sys


def copy_as_geotiff(name: str, out: str) -> str:
    """A command that copies a raster with all that its header says (rio convert would drop scales, units and names),
    in tiles."""
    options = "driver='GTiff', tiled=True, compress='deflate'"
    code = f"from rasterio.shutil import copy; copy({name!r}, {out!r}, {options})"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def scaled_copy(name: str, out: str, factor: float, offset: float) -> str:
    """A command that copies a raster and gives all bands of the copy this scale and offset."""
    code = (
        f"import rasterio; from rasterio.shutil import copy; copy({name!r}, {out!r}, driver='GTiff'); "
        f"d = rasterio.open({out!r}, 'r+'); d.scales = [{factor!r}] * d.count; d.offsets = [{offset!r}] * d.count; "
        "d.close()"
    )
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def quoted(name: str) -> str:
    """A name for the shell, always in quotes."""
    return f"'{name}'" if "'" not in name else shlex.quote(name)


def one_band(name: str) -> str:
    """A command that writes the first band of a raster to a file of its own."""
    return f"rio stack --bidx 1 {shlex.quote(name)} one_band.tif"


def calculated(formula: str, name: str, out: str, *, nodata: bool) -> str:
    """A command that writes what a formula of rio calc makes of a raster, its nodata kept.

    nodata: whether the raster declares one; rio calc fails where it is to keep one that is not there.
    """
    masked = "" if nodata else "--not-masked "
    return f"rio calc {masked}{quoted(formula)} {shlex.quote(name)} {out}"
