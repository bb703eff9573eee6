"""`refine_dates`: the lights of several dates, a map a date, as deeplight-infer makes them."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.api import arguments
from deeplight.api.layers import LayerFiles
from deeplight.api.model import DEFAULT, Model
from deeplight.api.running import loading_of, refine, run_options
from deeplight.api.scene import open_scene, scene_options
from deeplight.api.telling import progress_of
from deeplight.api.wording import arrays_named
from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    from deeplight.api.layers import LayerLike


@dataclass(frozen=True)
class Dates:
    """Finished maps of several dates. folder: where they are, with lights.vrt, or the Zarr group. maps: date →
    Cloud-Optimized GeoTIFF; empty for a group. report: what deeplight-infer writes as run.json
    of the folder."""

    folder: Path
    maps: dict[str, Path]
    report: dict[str, Any]

    def __repr__(self) -> str:
        dates = sum(date["status"] == "complete" for date in self.report["dates"])
        return f"Dates: {dates} {'maps' if self.maps else 'dates'} in {self.folder}"


def refine_dates(
    ntl: LayerLike | Sequence[LayerLike] | Mapping[str, LayerLike],
    dmo: LayerLike | Mapping[str, LayerLike] | None = None,
    dem: LayerLike | None = None,
    *,
    out: str | Path,
    model: Model | str | Path = DEFAULT,
    dates: str | Sequence[str] | None = None,
    offset: str = "own",
    **options: Any,
) -> Dates:
    """Refine the lights of several dates 8× into a folder with a map a date; each has the bytes of its own `refine`.

    After an error or KeyboardInterrupt, finished maps and parts stay, and the same call with resume=True goes on.

    Args:
        ntl: Files on one grid, a pattern of them, a file with a date a band or a time axis, a DataArray with `time`, or
            {date: layer}; docs/stacks.md says what is read as a date.
        dmo: Daytime bands, as `open_scene` takes them; they hold for all dates.
        dem: Elevation, as `open_scene` takes it.
        out: The folder to write, or a Zarr group, "x.zarr".
        model: From `load_model`, or what that takes.
        dates: Of the lights, in their order, as "2019", "2020-03", "2021-06-30" or "2020-01-01/2020-03-31"; None: from
            their metadata and names.
        offset: How the layers lie against the lights: each date's "own", or one for all dates, estimated from the mean
            of the "stack"; maps then differ from those of `refine`.
        options: Those of `open_scene`, as dmo_scale, and of `refine`, as bands or resume; no quicklook.

    Returns:
        The maps by date, and the report.

    Raises:
        InputError: The request cannot be met; nothing was written.
        DeepLightError: The run failed; finished parts are kept.
    """
    unknown = next((name for name in options if name not in _ALLOWED), None)
    if unknown is not None:
        raise InputError(
            f"{unknown} is no parameter of deeplight.open_scene or deeplight.refine: correct its name"
        )
    if isinstance(ntl, Mapping):
        if dates is not None:
            raise InputError("ntl is a mapping, whose keys are dates, and dates are given too: leave one out")
        ntl, dates = list(ntl.values()), [str(date) for date in ntl]
    files = LayerFiles()
    try:
        with arrays_named(files.arrays):
            names = _names(ntl, files)
            layers = {**options, "dmo": dmo, "dem": dem, "ntl": names[0]}
            given = {**options, "out": out, "offset": arguments.choice("offset", offset, ("own", "stack"))}
            return _refined(names, files, layers, dates, given, model)
    finally:
        if files.folder is not None:
            shutil.rmtree(files.folder, ignore_errors=True)


_OF_SCENE, _OF_RUN = (
    {name: p.default for name, p in inspect.signature(call).parameters.items()}
    for call in (open_scene, refine)
)
_ALLOWED = (_OF_SCENE.keys() | _OF_RUN.keys()) - {"ntl", "dmo", "dem", "scene", "model", "out"}


def _names(ntl: LayerLike | Sequence[LayerLike], files: LayerFiles) -> list[str]:
    """Names that the library can open, at least one."""
    several = list(ntl) if isinstance(ntl, list | tuple) else [ntl]
    named = [
        files.name("ntl" if len(several) == 1 else f"ntl[{k}]", layer) for k, layer in enumerate(several)
    ]
    names = [name for name in named if name is not None]
    if not names or len(names) < len(named):
        raise InputError("ntl is empty or None and lights are needed: give files, a pattern or arrays")
    return names


def _refined(
    names: list[str],
    files: LayerFiles,
    layers: Mapping[str, Any],
    dates: str | Sequence[str] | None,
    given: Mapping[str, Any],
    model: Model | str | Path,
) -> Dates:
    """Do what `refine_dates` does, with its options in `given`. files: those that stand for arrays."""
    from deeplight.engine.stack.options import StackOptions, is_group, is_map
    from deeplight.engine.stack.report import StackReport
    from deeplight.engine.stack.run import infer_dates

    out = arguments.path("out", given["out"])
    if is_map(out):
        raise InputError(
            f"refine_dates writes a folder and out={str(out)!r} is the name of a file: give a folder, or use refine"
        )
    told = progress_of(given.get("progress"))
    scene = scene_options({**_OF_SCENE, **{k: v for k, v in layers.items() if k in _OF_SCENE}}, files)
    chosen = {**_OF_RUN, **{k: v for k, v in given.items() if k in _OF_RUN}}
    run = run_options(scene, loading_of(model), chosen)
    report = infer_dates(StackOptions(tuple(names), run, arguments.dates(dates), given["offset"]), told)
    assert isinstance(report, StackReport)
    told.log(report.headline())
    done = [] if is_group(out) else [date for date in report.dates if date.status == "complete"]
    maps = {date.date.replace("_", "/"): Path(date.output) for date in done}
    return Dates(out, maps, asdict(report))
