"""The page of several dates, for which each date is added when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.output.acquired import acquired
from deeplight.engine.run.told import facts_of

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.output.page.pieces import PageNight
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.report import RunReport


class DatesPage:
    """Collects what the page shows of each date. out: the file of the page. dates: how many dates share it."""

    def __init__(self, out: Path, dates: int) -> None:
        self._out, self._dates = out, dates
        self._nights: list[PageNight] = []

    def add(self, scene: Scene, result: Path, spec: OutputSpec, report: RunReport | None) -> None:
        """Add the finished map `result` of a date. report: None if an earlier run finished it."""
        from deeplight.engine.output.page.write import night_of

        when, facts = acquired("", spec.tags), facts_of(scene, spec, report)
        self._nights.append(night_of(scene, result, when, facts, self._dates))
        self._unit, self._grid = scene.unit, spec.grid

    def write(self, title: str) -> None:
        """Write the page. Raises DeepLightError if it cannot be written."""
        from deeplight.engine.output.page.write import write_page

        write_page(self._out, title, self._unit, self._grid, self._nights)
