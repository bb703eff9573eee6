"""What `deeplight-eval` does: data and model opened, maps made where the engine is to make them, results written."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.wording import mention
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.units import RADIANCE_UNIT, shown
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.report import RunReport
from deeplight.engine.run.seams import borders
from deeplight.engine.run.tiling import TilePlan, TileRequest, pack_side
from deeplight.train.clips.samples import SampleSource
from deeplight.train.evaluation.blocks import ScoreSettings
from deeplight.train.evaluation.evaluate import RasterMethod, evaluate
from deeplight.train.evaluation.folder import MAP, MAP_NO_AUXILIARY, METRICS, PAGE, TABLE
from deeplight.train.evaluation.models import (
    NETWORK,
    NO_AUXILIARY,
    EvaluatedNetwork,
    Method,
    methods_of,
)
from deeplight.train.evaluation.page import page
from deeplight.train.evaluation.report import summary, to_json, to_markdown
from deeplight.train.evaluation.sources import (
    SYNTHETIC,
    HeldOutCountries,
    Province,
    ceiling_of,
    is_province,
    scene_options,
    unit_of,
)
from deeplight.train.evaluation.strata import Strata
from deeplight.train.evaluation.verdict import verdict
from deeplight.train.fit.run_folder import made_for

TEST = "test"
"""The split of clips that is scored unless another one is named."""


@dataclass(frozen=True)
class EvalOptions:
    """One evaluation. model, data: as deeplight-eval takes them, see its help.

    split: of clips, None: test. degradation: of Wald's protocol, as text. saturated: None takes the NTL product's or
    the degradation's own. tiles: core of the engine's tiles on a province, None: automatic. seed: of the bootstrap.
    """

    model: str
    data: str
    out: Path
    split: str | None = None
    protocol: str = "paired"
    degradation: str = ""
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    saturated: float | None = None
    tiles: int | None = None
    threads: int | None = None
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class _Task:
    """source, methods and tile borders for `evaluate`; unit and ceiling of the radiance; facts for the report."""

    source: SampleSource
    methods: dict[str, Method]
    model: dict[str, Any]
    unit: str = RADIANCE_UNIT
    ceiling: float = math.inf
    borders: Callable[[int], bool] | None = None


def run(options: EvalOptions, progress: Progress) -> dict[str, Any]:
    """Evaluate, and leave metrics.json, metrics.md and page.html in `options.out`. Returns what metrics.json holds.

    Raises InputError, before any work, where options do not belong together.
    """
    whole = is_province(options.data) and options.protocol == "paired"
    _check(options, whole)
    with made_for(options.out):
        values, pictures = _scored(options, whole, progress)
        progress.log(verdict(values))
        table = to_markdown(values)
        texts = {METRICS: to_json(values), TABLE: table, PAGE: pictures(table)}
        for name, text in texts.items():
            write_file(options.out / name, [text.encode()])
    return values


def _check(options: EvalOptions, whole: bool) -> None:
    """Refuse options that would say nothing here. whole: a province is scored as one place."""
    if options.degradation and options.protocol != "wald":
        raise InputError('`degradation` belongs to `protocol="wald"`: give that too, or leave it out')
    if options.split is not None and (whole or options.data == SYNTHETIC):
        raise InputError(
            f"{mention(split=options.split)} is for clips, and {options.data} is scored whole: leave `split` out, or "
            "cut clips with deeplight-data clip"
        )
    if options.tiles is not None and not whole:
        raise InputError(
            "`tiles` is for a province, which the engine maps, and for nothing else: leave it out"
        )


def _scored(
    options: EvalOptions, whole: bool, progress: Progress
) -> tuple[dict[str, Any], Callable[[str], str]]:
    """What metrics.json is to hold, and the page as a function of the table."""
    with ExitStack() as stack:
        task = (_province if whole else _places)(options, progress, stack)
        ceiling = task.ceiling if options.saturated is None else options.saturated
        settings = replace(options.settings, strata=Strata(options.settings.strata.lit, ceiling))
        result = evaluate(task.source, task.methods, settings, progress, task.borders)
        data = {
            "data": options.data,
            "split": None if whole or options.data == SYNTHETIC else options.split or TEST,
            "protocol": options.protocol,
            "degradation": options.degradation or None,
            "places": len(task.source),
            "fingerprint": task.source.fingerprint(),
        }
    values = summary(result, {"model": options.model, **task.model}, data, shown(task.unit), options.seed)
    return values, lambda table: page(result.showcase, result.clouds, table, shown(task.unit))


def _places(options: EvalOptions, progress: Progress, stack: ExitStack) -> _Task:
    """Clips, synthetic countries, or a province by Wald's protocol: the network runs tile by tile here."""
    network = EvaluatedNetwork(options.model, options.threads or available_cpus())
    source = open_places(options.data, options.split or TEST, options.protocol, options.degradation)
    return _Task(source, methods_of(network), network.describe(), unit_of(source), ceiling_of(source))


def open_places(data: str, split: str, protocol: str, degradation: str = "") -> SampleSource:
    """Open the places that `data` names. Raises InputError where there are none."""
    if data == SYNTHETIC:
        if protocol != "paired":
            raise InputError(
                f"{mention(protocol=protocol)}: synthetic countries have a truth of their own; give paired"
            )
        from deeplight.train.evaluation.scores import HELD_OUT_SEEDS

        return HeldOutCountries(HELD_OUT_SEEDS)
    from deeplight.train.clips.degrade import parse_degradation
    from deeplight.train.clips.tree import open_source

    return open_source(data, split, protocol, parse_degradation(degradation))


def _province(options: EvalOptions, progress: Progress, stack: ExitStack) -> _Task:
    """A folder of rasters, whose maps the engine makes, as a user makes them."""
    folder = Path(options.data)
    threads = options.threads or available_cpus()
    network = EvaluatedNetwork(options.model, threads)
    methods = methods_of(network)
    if network.trained_on == folder.resolve().name:
        progress.log(
            f"warning: the model was trained on a folder called {network.trained_on}: if it is this one, most of "
            "what is scored here was seen in training"
        )
    # opened first: what is wrong with the truth must show before hours of work
    province = stack.enter_context(Province(folder, auxiliary=False))
    unit, ceiling = province.scene.unit, province.scene.ceiling
    starts: set[int] = set()
    for method, name, auxiliary in ((NETWORK, MAP, True), (NO_AUXILIARY, MAP_NO_AUXILIARY, False)):
        progress.log(f"engine: {method}")
        run_options = RunOptions(
            scene=scene_options(folder, auxiliary),
            out=options.out / name,
            model=options.model,
            tiles=TileRequest(options.tiles),
            threads=threads,
            mode=Mode.OVERWRITE if options.overwrite else Mode.NEW,
        )
        report = infer(run_options, progress)
        if report is not None and auxiliary:
            starts = _tile_starts(report, max(province.size(0)))
        methods[method] = stack.enter_context(RasterMethod(options.out / name))
    return _Task(province, methods, network.describe(), unit, ceiling, starts.__contains__)


def _tile_starts(report: RunReport, length: int) -> set[int]:
    """LR rows and columns at which the engine's tiles began."""
    core = int(report.tiles["core"])
    return set(borders(length, TilePlan(core, int(report.tiles["halo"]), pack_side(core), 0)))
