"""The files that are made of a finished output: quicklook, page, STAC items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplight.engine.core.spec import SCALE
from deeplight.engine.output.acquired import acquired
from deeplight.engine.run.told import facts_of

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.run.report import RunReport
    from deeplight.engine.runtime.manifest import Manifest


def beside(
    options: RunOptions, scene: Scene, spec: OutputSpec, model: Manifest, report: RunReport | None
) -> None:
    """The quicklook, the page and the STAC items, of the output and the model, where they are asked for."""
    if options.quicklook is not None:
        from deeplight.engine.output.quicklook import write_quicklook

        write_quicklook(scene, options.out, options.quicklook)
    if options.page is not None:
        from deeplight.engine.output.page.write import night_of, write_page

        when = acquired("", spec.tags)
        night = night_of(scene, options.out, when, facts_of(scene, spec, report))
        title = (options.out if options.split is None else options.out.parent).resolve().name
        write_page(options.page, title, scene.unit, spec.grid, [night])
    if options.stac:
        from deeplight.engine.output.model_item import write_model_item
        from deeplight.engine.output.region_items import write_region_items
        from deeplight.engine.output.stac import write_item

        write_model_item(options.out.parent, model)
        if options.split is None:
            write_item(options.out, spec, scene.ntl_raster, model)
        else:
            write_region_items(options.out, spec, options.split * SCALE, scene.ntl_raster, model)
