"""`refine`: a scene through a model into a Cloud-Optimized GeoTIFF, in tiles, as deeplight-infer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.api import arguments
from deeplight.api.model import DEFAULT, Loading, Model
from deeplight.api.scene import Scene
from deeplight.api.telling import Teller, progress_of
from deeplight.api.wording import arrays_named
from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import SceneOptions
    from deeplight.engine.run.options import RunOptions


@dataclass(frozen=True)
class Run:
    """A finished run. path: the Cloud-Optimized GeoTIFF, or the VRT over regions, not there yet after a shard. report:
    what deeplight-infer writes as run.json; None where resume=True found the output complete."""

    path: Path
    report: dict[str, Any] | None

    def __repr__(self) -> str:
        if self.report is None:
            return f"Run: {self.path} was complete already"
        return f"Run: {self.path}, {self.report['tiles']['computed']} tiles in {self.report['seconds']['total']:.1f} s"


def refine(
    scene: Scene,
    model: Model | str | Path = DEFAULT,
    *,
    out: str | Path,
    tiles: str | int | None = "auto",
    bands: str | Sequence[str] = (),
    conserve_radiance: bool = False,
    dtype: str = "float32",
    compression: str = "zstd",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Teller | None = None,
    streams: int | None = None,
    report: str | Path | None = None,
    events: str | Path | None = None,
    quicklook: str | Path | None = None,
    page: str | Path | None = None,
    stac: bool = False,
    verify_seams: int = 0,
    check: int = 0,
    shard: tuple[int, int] | None = None,
    workers: str | None = None,
    split: int | None = None,
) -> Run:
    """Refine a whole scene 8× and write it as a Cloud-Optimized GeoTIFF; the memory need not hold it.

    It installs no signal handlers, and may run in any thread. After KeyboardInterrupt, or any error on the way, the
    finished parts stay beside `out`, and the same call with resume=True goes on.

    Args:
        scene: From `open_scene`.
        model: From `load_model`, or what that takes.
        out: The GeoTIFF to write.
        tiles: Side of the tiles in LR pixels, "CORE+HALO", "auto", or None for the scene in one piece.
        bands: Of "isp", "offset", "quality" and "interval", those to write after radiance.
        conserve_radiance: Make the output agree with the lights as their sensor saw them.
        dtype: "float32", or "uint16" in steps of 0.1.
        compression: "zstd" or "deflate".
        resume, overwrite: Continue a run that was stopped; or replace the output, drop parts of a stopped run.
        progress: True for a line of text every few seconds; or a function of share (0 to 1) and text.
        streams: Tiles at once; None: one, or with tiles="auto" two where that is faster and the memory holds them.
        report, events, quicklook, page: Files (.json, .jsonl, .png, .html) to write beside the output.
        stac: Write STAC items, too.
        verify_seams: Compute so many places at tile borders again; fail if they differ.
        check: First compare so many tiles with fp32.
        shard: (I, N): compute share I of N, from 0, of the parts alone; after all, resume=True instead makes `out`.
        workers: `local:N` for N processes on this host, `ray[:HOST:PORT][,N]` for those of a Ray cluster, which compute
            the parts and open scene and model themselves; None: this process does. Needs Ray.
        split: Side of regions in LR pixels: `out` is a folder of a GeoTIFF each, with a VRT over all; None: one file.

    Returns:
        The path and the report.

    Raises:
        InputError: The request cannot be met; nothing was written.
        DeepLightError: The run failed; finished parts are kept.
    """
    given = {k: v for k, v in locals().items() if k not in ("scene", "model", "progress")}
    return _run(scene, model, progress, given)


def _run(
    scene: Scene, model: Model | str | Path, progress: bool | Teller | None, given: dict[str, Any]
) -> Run:
    """Do what `refine` does, with its options in `given`."""
    if not isinstance(scene, Scene):
        raise InputError(
            f"scene is {type(scene).__name__}: open one with deeplight.open_scene(ntl, dmo, dem)"
        )
    if scene.is_part:
        raise InputError(
            "refine writes whole scenes and this is a part: call the model with it, as model(part), or give the scene"
        )
    with arrays_named(scene.arrays):
        from deeplight.engine.output.vrt import VRT
        from deeplight.engine.run.pipeline import infer
        from deeplight.engine.stack.options import is_group

        if is_group(arguments.path("out", given["out"])):
            raise InputError(
                f"refine writes one map and out={str(given['out'])!r} is the name of a Zarr group: use refine_dates"
            )
        told = progress_of(progress)
        _ = scene.rasters  # refuses a scene that is closed: arrays of it are gone
        loading = loading_of(model)
        options = run_options(scene.options, loading, given)
        found = infer(options, told)
        if found is not None:
            told.log(found.headline())
        path = options.out if options.split is None else options.out / VRT
        return Run(path, None if found is None else asdict(found))


def loading_of(model: Model | str | Path) -> Loading:
    """How a model is loaded, open or not."""
    return model.loading if isinstance(model, Model) else Loading(str(arguments.path("model", model)))


def run_options(scene: SceneOptions, loading: Loading, given: Mapping[str, Any]) -> RunOptions:
    """The library's form of the arguments of `refine`."""
    from deeplight.engine.run.options import chosen_mode

    return loading.request(
        scene,
        arguments.path("out", given["out"]),
        tiles=arguments.tiles(given["tiles"]),
        bands=arguments.extra_bands(given["bands"]),
        conserve_radiance=bool(given["conserve_radiance"]),
        dtype=arguments.choice("dtype", given["dtype"], ("float32", "uint16")),
        compression=arguments.choice("compression", given["compression"], ("zstd", "deflate")),
        mode=chosen_mode(bool(given["resume"]), bool(given["overwrite"])),
        streams=arguments.count_or_none("streams", given["streams"]),
        shard=arguments.shard(given["shard"]),
        workers=arguments.workers(given["workers"]),
        split=arguments.count_or_none("split", given["split"]),
        stac=bool(given["stac"]),
        **{
            name: arguments.path_or_none(name, given[name])
            for name in ("report", "events", "quicklook", "page")
        },
        **{name: arguments.count(name, given[name]) for name in ("verify_seams", "check")},
    )
