"""From which value on the lights of clips are saturated."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from deeplight.engine.raster.lights import BLACK_MARBLE_CEILING, DMSP_CEILING
from deeplight.train.clips.index import RECORD, ClipRow


def ceiling_of_clips(clips: Iterable[tuple[Path, ClipRow]]) -> float:
    """Return the least value from which one of the clips is saturated; infinite where none is. clips: (tree, row) each.

    Lights that `clip --degrade` made end at its saturation, which tree.json holds; others where the product of their
    unit ends.
    """
    kinds = {(tree, row.place, row.date, row.unit) for tree, row in clips}
    read = cache(_degradations)
    return min(
        (_ceiling(read(tree), place, date, unit) for tree, place, date, unit in kinds), default=math.inf
    )


def _ceiling(made: Mapping[str, Any], place: str, date: str, unit: str) -> float:
    degradation = made.get(f"{place}_{date}" if date else place)
    if isinstance(degradation, dict):
        saturation = degradation.get("saturation")
        return float(saturation) if isinstance(saturation, int | float) else math.inf
        return float(saturation) if isinstance(saturation, int | float) else math.inf
    return DMSP_CEILING if unit == "DN" else BLACK_MARBLE_CEILING


def _degradations(tree: Path) -> dict[str, Any]:
    """What tree.json says of the degradation of each place; nothing where it cannot be read."""
    try:
        places = json.loads((tree / RECORD).read_text(encoding="utf-8"))["places"]
        return {name: told["options"]["degradation"] for name, told in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
