"""One band of a raster: the only one, or the one that is chosen."""

from __future__ import annotations

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import of_role
from deeplight.engine.raster.remedies import one_band
from deeplight.engine.raster.source import Raster

_NAMED = 8
"""Bands that a message names."""


def chosen_band(raster: Raster, given: int | None, example: str = "") -> int:
    """The band of a raster that is to be read: the one given, or the only one.

    example: options that would choose; by default the first band. Raises InputError where there are several and none is
    given, or where it is not there.
    """
    which = of_role(raster.role, "band")
    names = _named(raster)
    if given is not None:
        if given not in raster.bands:
            raise InputError(f"{raster.what} has no band {given}; its bands are {names}: correct `{which}`")
        return given
    if raster.count != 1:
        raise InputError(
            f"{raster.what} has {raster.count} bands and must have one or be told which to read ({names}); choose, for "
            f"example with {example or f'`{which}={raster.bands[0]}`'}"
        )
    return int(raster.bands[0])


def check_single(raster: Raster, remedy: str = "") -> None:
    """Raises InputError for a raster of several bands where one is needed and no option chooses.

    remedy: what to do; by default a copy of the first band.
    """
    if raster.count != 1:
        raise InputError(
            f"{raster.what} has {raster.count} bands ({_named(raster)}) and must have one; "
            f"{remedy or f'pick it first: {one_band(raster.name, raster.bands[0])}'}"
        )


def _named(raster: Raster) -> str:
    names = ", ".join(f"{b} {raster.band_names[b - 1]}".strip() for b in raster.bands[:_NAMED])
    return names + (", …" if raster.count > _NAMED else "")
