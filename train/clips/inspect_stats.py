"""What a clip tree holds, in numbers: clips per split, and per layer what its pixels are; in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.units import shown
from deeplight.train.clips.samples import ClipError, Sample
from deeplight.train.clips.tree import ClipTree

PERCENTILES = (1, 50, 99)
_SIDE = 64
"""LR pixels a side that are read at once: 15 MB of DMO."""
_KEPT_PER_WINDOW = 2048
"""Values of a layer that one window gives to the percentiles, evenly spaced."""
_MOST_KEPT = 1 << 20


@dataclass
class LayerTally:
    """Running statistics of one layer. kept: an even sample of the valid values, for percentiles."""

    pixels: int = 0
    valid: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    negative: int = 0
    kept: list[Floats] = field(default_factory=list)
    _kept: int = 0

    def add(self, values: Floats, valid: Floats) -> None:
        """Add the values of a window, (1, h, w) or (h, w), where its mask is valid."""
        seen = values.ravel()[valid.ravel() != 0]
        self.pixels += values.size
        if not seen.size:
            return
        self.valid += seen.size
        self.total += float(seen.sum(dtype=np.float64))
        self.least, self.most = min(self.least, float(seen.min())), max(self.most, float(seen.max()))
        self.negative += int(np.count_nonzero(seen < 0))
        self.kept.append(seen[:: max(1, seen.size // _KEPT_PER_WINDOW)].copy())
        self._kept += self.kept[-1].size
        if self._kept > _MOST_KEPT:  # every second value is still an even sample
            self.kept = [np.concatenate(self.kept)[::2]]
            self._kept = self.kept[0].size

    def facts(self) -> dict[str, float | None]:
        """Return valid_share, min, mean, max, p01, p50, p99 and negative_share; None where nothing is valid."""
        share = self.valid / self.pixels if self.pixels else 0.0
        names = [f"p{p:02d}" for p in PERCENTILES]
        if not self.valid:
            return {"valid_share": share} | dict.fromkeys(("min", "mean", "max", *names, "negative_share"))
        points: NDArray[Any] = np.percentile(np.concatenate(self.kept), PERCENTILES)
        return {
            "valid_share": share,
            "min": self.least,
            "mean": self.total / self.valid,
            "max": self.most,
            **dict(zip(names, map(float, points), strict=True)),
            "negative_share": self.negative / self.valid,
        }


@dataclass(frozen=True)
class Inspection:
    """clips: by split. places: clips by place. layers: name → LayerTally.facts. sum_lights: of LR pixels, by unit.
    unreadable: messages that name the clips."""

    clips: dict[str, int]
    places: dict[str, int]
    layers: dict[str, dict[str, float | None]]
    sum_lights: dict[str, float]
    unreadable: list[str]

    def lines(self) -> Iterator[str]:
        """Return a table for the terminal, line by line."""
        yield "clips: " + ", ".join(f"{n} {name}" for name, n in self.clips.items())
        yield "places: " + ", ".join(f"{name} {n}" for name, n in self.places.items())
        for unit, total in self.sum_lights.items():
            yield f"sum of lights, LR pixels: {total:.6g} {shown(unit)}"
        columns = ("valid_share", "min", "p01", "p50", "mean", "p99", "max", "negative_share")
        yield f"{'layer':<14}" + "".join(f"{name.replace('_share', ''):>11}" for name in columns)
        for layer, facts in self.layers.items():
            yield f"{layer:<14}" + "".join(f"{_number(facts[name], name):>11}" for name in columns)
        yield f"unreadable: {len(self.unreadable)}"
        yield from (f"  {message}" for message in self.unreadable)


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name.endswith("_share") else f"{value:.4g}"


def inspect_tree(tree: ClipTree, progress: Progress) -> Inspection:
    """Read every pixel of every clip once. A clip that cannot be read is named and its numbers are left out."""
    tallies: dict[str, LayerTally] = {}
    lights: dict[str, float] = {}
    unreadable: list[str] = []
    rows = tree.rows
    with progress:
        progress.start(sum(row.height * row.width for row in rows) * SCALE**2)
        for index, row in enumerate(rows):
            try:
                own = _clip_tallies(tree, index)
            except ClipError as error:
                unreadable.append(str(error))
            else:
                lights[row.unit] = lights.get(row.unit, 0.0) + own["ntl"].total
                for name, tally in own.items():
                    _merge(tallies.setdefault(name, LayerTally()), tally)
            progress.advance(row.height * row.width * SCALE**2)
    facts = {name: tallies[name].facts() for name in layer_names() if name in tallies}
    return Inspection(
        dict(Counter(row.split for row in rows)),
        dict(Counter(row.place for row in rows)),
        facts,
        lights,
        unreadable,
    )


def layer_names() -> tuple[str, ...]:
    """Return the layers in the order in which they are told; each daytime band is one."""
    return ("ntl", "ntl_hr", *(f"dmo {slot}" for slot in DMO_SLOTS), "dem", "isp")


def _clip_tallies(tree: ClipTree, index: int) -> dict[str, LayerTally]:
    tallies: dict[str, LayerTally] = {}
    layers = tree.rows[index].layers.split()
    for window in split(Window(0, 0, *tree.size(index)), _SIDE):
        sample = tree.read(index, window)
        for name, values, valid in _parts(sample, layers):
            tallies.setdefault(name, LayerTally()).add(values, valid)
    return tallies


def _parts(sample: Sample, layers: list[str]) -> Iterator[tuple[str, Floats, Floats]]:
    """Name, values and mask of what is there."""
    for name in ("ntl", "ntl_hr", "dem", "isp"):
        if name in layers:
            yield name, getattr(sample, name), getattr(sample, f"{name}_valid")
    for band in np.flatnonzero(sample.dmo_bands):
        yield f"dmo {DMO_SLOTS[band]}", sample.dmo[band], sample.dmo_valid


def _merge(into: LayerTally, other: LayerTally) -> None:
    into.pixels += other.pixels
    into.valid += other.valid
    into.total += other.total
    into.least, into.most = min(into.least, other.least), max(into.most, other.most)
    into.negative += other.negative
    into.kept += other.kept
    if sum(part.size for part in into.kept) > _MOST_KEPT:
        into.kept = [np.concatenate(into.kept)[::2]]
