"""Before any pixel is computed: what is refused, how the scene is cut, what the output will be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import remove_leftovers, sidecars
from deeplight.engine.core.machine import available_memory
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention
from deeplight.engine.output.parts import (
    MAPS,
    Mode,
    Record,
    anew,
    check_folder,
    check_output,
    check_writable,
    stored_record,
)
from deeplight.engine.output.region_items import check_collection
from deeplight.engine.output.regions import check_folder_of_regions, check_replaceable, files_of
from deeplight.engine.output.stac import COLLECTION, item_path, require_pystac
from deeplight.engine.raster.auxiliary import check_auxiliary_options
from deeplight.engine.raster.dataset_names import matching
from deeplight.engine.raster.lights import check_light_options
from deeplight.engine.run.conserve import REACH
from deeplight.engine.run.largest import admits, check_largest
from deeplight.engine.run.options import EXTRA_BANDS, UINT16_NODATA, UINT16_SCALE, RunOptions, band_count
from deeplight.engine.run.products import model_outputs
from deeplight.engine.run.tiling import (
    AUTO_STREAMS,
    AUTOMATIC,
    TilePlan,
    TileRequest,
    plan_tiles,
    reader_count,
)
from deeplight.engine.runtime.artifact import Artifact

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.runtime.backends.base import Backend

_LOG = logging.getLogger(__name__)
_SAMPLES, _SAMPLE = 8, 32
"""Windows along each axis, and their side in LR pixels, from which the share of valid pixels is estimated."""


def check_request(options: RunOptions) -> bool:
    """What can be refused before any file is opened. Returns True where a resumed run finds a finished output."""
    others = [band for band in options.bands if band != "interval"]
    if options.dtype == "uint16" and others:
        raise InputError(
            f'`dtype="uint16"` holds radiance in steps of {UINT16_SCALE} only: '
            f"leave out {mention(bands=tuple(others))}, or use {mention(dtype='float32')}"
        )
    if options.dtype == "uint16" and options.conserve_radiance:
        raise InputError(
            f'`dtype="uint16"` rounds radiance to steps of {UINT16_SCALE}, which `conserve_radiance=True` does not '
            "allow: "
            "leave one of them out"
        )
    check_light_options(options.scene)
    check_auxiliary_options(options.scene)
    if options.verify_seams and options.tiles is None:
        raise InputError(
            "`verify_seams` compares across tile borders and there are none: leave out `tiles=None`"
        )
    if options.stac:
        require_pystac()
        check_folder(_item(options))
    given = options.scene.files().values()
    inputs = [Path(file).resolve() for name in given for file in (matching(name) or [name])]
    for path, suffixes in (
        (options.report, (".json",)),
        (options.quicklook, (".png",)),
        (options.page, (".html",)),
        (options.events, (".jsonl",)),
    ):
        if path is not None:
            check_writable(path, suffixes)
    for written in (options.out, options.report, options.quicklook, options.page, options.events):
        if written is not None and written.resolve() in inputs:
            raise InputError(f"{written} is also an input: choose another name for the output")
    complete = _check_map(options) if options.split is None else _check_regions(options)
    beside = sidecars(options.out)
    if beside and options.mode is Mode.NEW:
        raise InputError(
            f"{beside[0]} would be taken for a part of {options.out}: use `overwrite=True` to remove it, or "
            "choose another name"
        )
    for path in beside_output(options):
        if options.mode is Mode.NEW and (path.exists() or path.is_symlink()):
            raise InputError(f"{path} exists: use `overwrite=True` to replace it, or choose another name")
    return complete


def _check_map(options: RunOptions) -> bool:
    """Whether the output is complete already. Raises InputError where it cannot be written."""
    if options.out.is_dir():
        raise InputError(
            f"{options.out} is a folder: give the name of a file, or `split` and the side of the regions in it"
        )
    return check_output(options.out, options.mode, options.shard is not None, MAPS)


def _check_regions(options: RunOptions) -> bool:
    """As `_check_map`, of an output in regions."""
    check_replaceable(options.out)
    shard = options.shard is not None
    complete = check_output(options.out, options.mode, shard, (".vrt",))
    if complete:
        files_of(options.out)
    else:
        check_folder_of_regions(options.out, options.mode, shard=shard)
    if options.stac and options.mode is not Mode.NEW:
        check_collection(_item(options))
    return complete


def beside_output(options: RunOptions) -> list[Path]:
    """The files that a run writes once, beside the output."""
    item = _item(options) if options.stac else None
    return [path for path in (options.report, options.quicklook, options.page, item) if path is not None]


def _item(options: RunOptions) -> Path:
    """The file of the STAC item, or of the collection of regions."""
    return item_path(options.out) if options.split is None else options.out.with_name(COLLECTION)


def remove_beside_leftovers(options: RunOptions) -> None:
    """Remove temporary files that killed runs left of the files beside the output. Only while no other run of this
    output is at work."""
    for path in beside_output(options):
        remove_leftovers(path.parent, (path.name,))


def plan_run(
    options: RunOptions,
    scene: Scene,
    artifact: Artifact,
    backend: Backend,
    threads: int,
    core: int | None = None,
) -> tuple[Record, TilePlan]:
    """How the scene is cut, and what a resumed run must find unchanged.

    A resumed run keeps the automatic tile size that made its packs: the free memory may have changed since. core: what
    automatic tiles are otherwise, as for another date; None: what fits.
    """
    from deeplight.engine.run.inputs import Compared, described, versions_unknown
    from deeplight.engine.run.provenance import fingerprint

    check_bands(options.bands, artifact)
    request = options.tiles
    earlier = stored_record(options.out) if options.mode is Mode.RESUME else None
    shared = options.part if earlier is None else earlier.shared
    files = described(options, Compared.HOSTS if shared else Compared.ONE_HOST)
    unknown = versions_unknown(files)
    if unknown and options.part:
        raise InputError(
            f"{options.out} cannot be computed by several processes: {unknown}; give a local copy"
        )
    if unknown and earlier is not None:
        raise InputError(
            f"{options.out} cannot be resumed: {unknown}; use `overwrite=True` to start again, or give a local copy"
        )
    if unknown:
        _LOG.warning(
            "this run cannot be resumed after it is stopped: %s; give a local copy to have that", unknown
        )
    core = core if earlier is None else earlier.core
    if core is not None and request == AUTOMATIC:
        request = TileRequest(core)  # with the halo that the options need, which must not have changed
    grid, largest, manifest = scene.grid, backend.largest_tile, artifact.manifest
    plan = plan_tiles(
        request,
        manifest,
        grid.height,
        grid.width,
        bands=band_count(options.bands),
        memory=available_memory() // options.beside,
        readers=reader_count(threads),
        streams=_streams(options, backend, threads),
        reach=REACH if options.conserve_radiance else 0,
        beside=options.beside,
        few_shapes=backend.few_shapes,
        model_memory=backend.memory,
        takes=lambda side, halo: admits(largest, side, halo, manifest, grid.shape),
    )
    check_largest(largest, plan, manifest, grid.shape)
    fields = fingerprint(options, scene, artifact, backend, threads, files)
    return Record(fields, plan.core, plan.halo, shared), plan


def check_bands(bands: tuple[str, ...], artifact: Artifact) -> None:
    """Raises InputError where the model has no output for one of these extra bands."""
    missing = set(model_outputs(bands)) - {t.name for t in artifact.manifest.outputs}
    if missing:
        raise InputError(
            f"{artifact.manifest.name} has no output {', '.join(sorted(missing))}: leave out `bands`"
        )


def _streams(options: RunOptions, backend: Backend, threads: int) -> int | None:
    """Tiles to compute at once; None: what memory allows."""
    if options.streams is None:
        several = backend.splits and threads >= AUTO_STREAMS * backend.threads_a_stream
        return None if options.tiles == AUTOMATIC and several else 1
    if options.streams < 1:
        raise InputError(f"`streams={options.streams}` computes nothing: give 1 or more")
    if options.streams > 1 and not backend.splits:
        raise InputError(
            f"backend {backend.name} computes one tile at a time: leave out `streams={options.streams}`"
        )
    if options.streams > 1 and options.tiles is None:
        raise InputError(
            f"`streams={options.streams}` computes several tiles at once and there are none: leave out `tiles=None`"
        )
    if options.streams > threads:
        raise InputError(
            f"`streams={options.streams}` needs a thread for each tile and there are {threads}: give at most that many"
        )
    return options.streams


def output_spec(options: RunOptions, scene: Scene, artifact: Artifact, backend: Backend) -> OutputSpec:
    """Grid, bands, encoding and tags of the output."""
    from deeplight.engine.output.packs import BandSpec, OutputSpec
    from deeplight.engine.run.provenance import output_tags

    bands = [BandSpec("ntl", scene.unit)]
    bands += [
        BandSpec(name, scene.unit if unit is None else unit, flags=extra == "quality")
        for extra in options.bands
        for name, unit in EXTRA_BANDS[extra]
    ]
    whole = options.dtype == "float32"
    return OutputSpec(
        grid=scene.hr_grid,
        bands=tuple(bands),
        dtype=options.dtype,
        scale=1.0 if whole else UINT16_SCALE,
        nodata=float("nan") if whole else UINT16_NODATA,
        tags=output_tags(options, scene, artifact, backend),
        compression=options.compression,
    )


def valid_share(scene: Scene) -> float:
    """Estimated share of the scene that has data, from windows spread evenly over it; at least 0.01."""
    height, width = scene.grid.height, scene.grid.width
    seen = [
        scene.read_ntl(Window(top, left, min(_SAMPLE, height), min(_SAMPLE, width)))[1].mean()
        for top in _spread(height)
        for left in _spread(width)
    ]
    return max(0.01, float(sum(seen)) / len(seen))


def _spread(length: int) -> list[int]:
    """Where the windows of `valid_share` begin along an axis: from end to end, and no more than cover it."""
    count = min(_SAMPLES, -(-length // _SAMPLE))
    return [round(i * (length - _SAMPLE) / (count - 1)) for i in range(count)] if count > 1 else [0]


def check_raster(out: Path) -> None:
    """Refuse a file at the output's name that is no raster. Raises InputError."""
    with _finished(out):
        pass


def _finished(out: Path) -> DatasetReader:
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        return rasterio.open(out)
    except RasterioIOError:
        raise InputError(
            f"{out} is there and is no raster that can be read: move it away, or use `overwrite=True` to replace it"
        ) from None


def check_complete(out: Path, spec: OutputSpec, *, shard: bool = False) -> None:
    """Refuse to call a finished output that another model or other options made this run's result."""
    from deeplight.engine.run.provenance import differing_tag

    with _finished(out) as dataset:
        difference = differing_tag(dataset.tags(), spec.tags)
        if difference is None and (dataset.height, dataset.width) != (spec.grid.height, spec.grid.width):
            difference = f"it has {dataset.height}×{dataset.width} pixels"
    if difference is not None:
        raise InputError(f"{out} is complete but of another run ({difference}): {anew(out, shard=shard)}")
