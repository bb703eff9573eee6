"""Commands that messages advise. They leave the user's own files as they are, and need only what DeepLight installs."""

from __future__ import annotations

import shlex
import sys


def copy_as_geotiff(name: str, out: str) -> str:
    """A command that copies a raster with all that its header says (rio's commands drop scales, units and names),
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
    name = f"./{name}" if name.startswith("-") else name  # which would be an option
    return f"'{name}'" if "'" not in name else shlex.quote(name)


def copied(name: str, out: str, *options: str) -> str:
    """A command that copies a raster, or a pattern's pieces, with all that its header says; commands of rio lose scales
    and units, and open no pattern."""
    return " ".join(("deeplight-data copy", quoted(name), out, *options))


def one_band(name: str, band: int) -> str:
    """A command that writes one band of a raster to a file of its own."""
    return copied(name, "one_band.tif", f"--band {band}")
