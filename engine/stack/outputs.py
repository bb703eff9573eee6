"""Files about all dates together: a VRT, a STAC collection and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.files import remove_leftovers
from deeplight.engine.core.wording import counted
from deeplight.engine.output.dates_vrt import write_dates_vrt
from deeplight.engine.output.stac import COLLECTION
from deeplight.engine.output.vrt import VRT
from deeplight.engine.stack.options import REPORT
from deeplight.engine.stack.pages import DatesPage

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.report import RunReport
    from deeplight.engine.runtime.manifest import Manifest
    from deeplight.engine.stack.nights import Night
    from deeplight.engine.stack.options import StackOptions


class Outputs:
    """Receives finished dates one after the other. `begin` is called before the first and `write` after the last."""

    def __init__(self, options: StackOptions) -> None:
        self._options = options
        self._page: DatesPage | None = None
        self._model: Manifest | None = None
        self._maps: list[tuple[Path, OutputSpec]] = []
        self._items: list[Path] = []

    @property
    def folder(self) -> Path:
        """The folder of the maps."""
        return self._options.folder

    def begin(self, dates: Sequence[tuple[Night, OutputSpec]], model: Manifest) -> None:
        """Tell, before the first date, which dates will come, and the model that makes the maps."""
        self._model, page = model, self._options.run.page
        self._page = None if page is None else DatesPage(page, len(dates))

    def has(self, night: Night) -> bool:
        """Whether a date needs no run. Here each date gets its run, which itself finds a map that is finished."""
        return False

    def add(self, night: Night, scene: Scene, spec: OutputSpec, report: RunReport | None) -> None:
        """Tell that the map of a date is finished. report: None if an earlier run finished it."""
        options = self._options.of(night)
        assert self._model is not None, "begin comes first"
        self._maps.append((options.out, spec))
        if self._options.run.stac:
            from deeplight.engine.output.stac import write_item

            self._items.append(
                write_item(
                    options.out, spec, scene.ntl_raster, self._model, collection=self.folder.resolve().name
                )
            )
        if self._page is not None:
            self._page.add(scene, options.out, spec, report)

    def write(self) -> None:
        """Write the files about all dates. Raises DeepLightError if they cannot be written."""
        spec = self._maps[0][1]
        assert self._model is not None
        remove_leftovers(self.folder, (VRT, COLLECTION, REPORT))
        write_dates_vrt(self.folder / VRT, self._maps)
        if self._items:
            from deeplight.engine.output.collection import write_collection
            from deeplight.engine.output.model_item import write_model_item

            write_model_item(self.folder, self._model)
            write_collection(self.folder, spec, self._items, f"of {counted(len(self._items), 'dates')}")
        if self._page is not None:
            self._page.write(self.folder.resolve().name)
