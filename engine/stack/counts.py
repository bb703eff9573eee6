"""Counts of observations, or masks: one for all dates of the lights, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.acquired import Span
from deeplight.engine.stack.nights import Night, find_nights, read_pieces

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import SceneOptions


def with_counts(nights: Sequence[Night], options: SceneOptions, dates: Sequence[Span] | None) -> list[Night]:
    """Return the dates with their counts: each has its own where `ntl_valid` has several; a single one is used for all.

    dates: the dates that the user gave for the lights; they are those of the counts too, in the same order. Raises
    InputError where a date has no count, and for what `find_nights` refuses.
    """
    if options.ntl_valid is None or len(nights) == 1:
        return list(nights)
    names = [options.ntl_valid]
    of_counts = replace(options, ntl=options.ntl_valid, ntl_band=options.ntl_valid_band)
    pieces = read_pieces(names, of_counts, len(dates or ()), role="NTL-valid")
    told = dates if dates is not None and len(dates) == len(pieces) else None
    found = find_nights(pieces, names, of_counts, told)
    if len(found) == 1:
        return list(nights)
    by_date = {count.when: count.scene for count in found}
    missing = next((night for night in nights if night.when not in by_date), None)
    if missing is not None:
        raise InputError(
            f"`ntl_valid` has {len(found)} dates and {missing.name} is not among them: give a count for each date of "
            "the lights, or one for all"
        )
    return [
        replace(night, scene=replace(night.scene, ntl_valid=own.ntl, ntl_valid_band=own.ntl_band))
        for night in nights
        for own in [by_date[night.when]]
    ]
