"""What is made of several dates together: a VRT, a STAC collection, a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.files import remove_leftovers
from deeplight.engine.output.acquired import acquired
from deeplight.engine.output.dates_vrt import write_dates_vrt
from deeplight.engine.output.stac import COLLECTION
from deeplight.engine.run.told import facts_of
from deeplight.engine.stack.options import REPORT, VRT

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.output.page.pieces import PageNight
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.report import RunReport
    from deeplight.engine.runtime.manifest import Manifest
    from deeplight.engine.stack.nights import Night
    from deeplight.engine.stack.options import StackOptions


class Outputs:
    """Takes finished dates one after the other, after `begin`; `write` at the end."""

    def __init__(self, options: StackOptions) -> None:
        self._options, self._dates = options, 0
        self._model: Manifest | None = None
        self._maps: list[tuple[Path, OutputSpec]] = []
        self._items: list[Path] = []
        self._pages: list[PageNight] = []
        self._unit = ""

    @property
    def folder(self) -> Path:
        """Where the maps are."""
        return self._options.folder

    def begin(self, dates: Sequence[tuple[Night, OutputSpec]], model: Manifest) -> None:
        """All dates that will come, before the first, and what makes them."""
        self._dates, self._model = len(dates), model

    def has(self, night: Night) -> bool:
        """Whether a date needs no run: never, since a finished map is looked at by its own."""
        return False

    def add(self, night: Night, scene: Scene, spec: OutputSpec, report: RunReport | None) -> None:
        """A date's map is finished. report: None where an earlier run did it."""
        options = self._options.of(night)
        assert self._model is not None, "begin comes first"
        self._maps.append((options.out, spec))
        self._unit = scene.unit
        if self._options.run.stac:
            from deeplight.engine.output.stac import write_item

            self._items.append(
                write_item(
                    options.out, spec, scene.ntl_raster, self._model, collection=self.folder.resolve().name
                )
            )
        if self._options.run.page is not None:
            from deeplight.engine.output.page.write import night_of

            when, facts = acquired("", spec.tags), facts_of(scene, spec, report)
            self._pages.append(night_of(scene, options.out, when, facts, self._dates))

    def write(self) -> None:
        """Write what shows all dates. Raises DeepLightError where the disk refuses."""
        spec, page = self._maps[0][1], self._options.run.page
        assert self._model is not None
        remove_leftovers(self.folder, (VRT, COLLECTION, REPORT))
        write_dates_vrt(self.folder / VRT, self._maps)
        if self._items:
            from deeplight.engine.output.collection import write_collection
            from deeplight.engine.output.model_item import write_model_item

            write_model_item(self.folder, self._model)
            write_collection(self.folder, spec, self._items)
        if page is not None:
            from deeplight.engine.output.page.write import write_page

            write_page(page, self.folder.resolve().name, self._unit, spec.grid, self._pages)
