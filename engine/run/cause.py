"""Did the daytime bands move the light? After a run that moved too much, some places computed with them and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.windows import Window
from deeplight.engine.output.facts import Facts
from deeplight.engine.output.lights import LIT, excess
from deeplight.engine.output.pack_format import Encoded
from deeplight.engine.run.precision import places
from deeplight.engine.run.work import Tile, TileWork

PLACES = 6
"""Places that are computed twice; of 48² LR pixels, so that a processor takes seconds."""
_TRIED = 60


def moved_by_daytime(work: TileWork, advance: Callable[[], None] = lambda: None) -> str:
    """What is said where most of the change goes away without daytime bands; "" where it does not.

    advance: called after each place.
    """
    given = without = Facts()
    found = 0
    try:
        for core in islice(_lit(work), PLACES):
            given += _facts(work, work.read(core))
            without += _facts(work, _stripped(work.read(core)))
            found += 1
            advance()
    except DeepLightError:  # the run's own result stands; only the cause stays unknown
        return ""
    if excess(given) <= 1 or excess(without) > excess(given) / 2:
        return ""
    lost = given.lights_out < given.lights_in_clamped
    where = "light where they show no settlement, as of boats, gas flares or camps, is lost; " if lost else ""
    return (
        f", because of the daytime bands ({where}without them {found} places of the scene, computed again, change by "
        f"{_change(without)} in place of {_change(given)})"
    )


def _lit(work: TileWork) -> Iterator[Window]:
    """Places with lights and daytime bands, spread over the scene."""
    for core in places(work.scene, _TRIED):
        lr, valid = work.scene.read_ntl(core)
        if (lr[valid != 0] >= LIT).any():
            yield core


def _stripped(tile: Tile) -> Tile:
    """As if the scene had no daytime bands. What dates share is not of such a tile."""
    for name in ("dmo", "dmo_valid", "dmo_bands"):
        if tile.inputs is not None:
            tile.inputs[name][:] = 0
    return replace(tile, place=None)


def _facts(work: TileWork, tile: Tile) -> Facts:
    done = work.compute(tile)
    pixels = work.finish(done)
    if pixels is None or done.layers is None or done.seen is None:
        return Facts()
    assert not isinstance(pixels, Encoded)
    corner = (done.core.row, done.core.col)
    return Facts.of(done.lr, done.valid, pixels[0], done.seen, done.layers, 0, corner)


def _change(facts: Facts) -> str:
    """Of the sum of lights, and of how many of the lit blocks."""
    came = facts.lights_in_clamped
    total = facts.lights_out / came - 1 if came > 0 else 0.0
    return f"{total:+.0%}, {facts.moved_blocks} of {facts.lit_blocks} blocks"
