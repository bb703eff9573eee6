"""The part of a run over an open scene with an open model that comes before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from deeplight.engine.core.progress import Progress
from deeplight.engine.core.spec import SCALE
from deeplight.engine.output.parts import Record, check_space
from deeplight.engine.run import paths
from deeplight.engine.run.engine import Engine
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.precision import compare_scene
from deeplight.engine.run.preparation import output_spec, plan_run, valid_share
from deeplight.engine.run.split import check_side
from deeplight.engine.run.tiling import TilePlan
from deeplight.engine.run.work import TileWork
from deeplight.engine.runtime.artifact import Artifact

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.runtime.backends.base import Backend


@dataclass(frozen=True)
class PlannedRun:
    """The plan of a run over a scene. A context manager.

    record: what its packs depend on. plan: how the scene is cut. spec: the output. work: what computes the pixels.
    """

    record: Record
    plan: TilePlan
    spec: OutputSpec
    work: TileWork

    @property
    def side(self) -> int:
        """The side of a pack in HR pixels."""
        return self.plan.pack * SCALE

    def check_space(self, options: RunOptions) -> None:
        """Raise InputError where packs and output do not fit on the disk."""
        from deeplight.engine.output.packs import pack_count, required_bytes

        typical = int(required_bytes(self.spec, self.side)[1] * valid_share(self.work.scene))
        check_space(options.out, typical, pack_count(self.spec, self.side), options.mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.work.close()


def plan_scene(options: RunOptions, scene: Scene, engine: Engine) -> PlannedRun:
    """Plan a run over a scene. Raises InputError where it cannot be done, DeepLightError where `check` finds that the
    precision does not suffice."""
    artifact, backend, threads = engine.artifact, engine.backend, engine.threads
    record, plan = plan_run(options, scene, artifact, backend, threads, engine.core)
    spec = output_spec(options, scene, artifact, backend)
    if options.check:
        compare_first(options, scene, artifact, backend, threads, engine.progress)
    shared = engine.dates, engine.suggested
    work = paths.tile_work(options, scene, artifact, backend, plan, threads, *shared)
    try:
        plan = work.fit(plan)
        check_side(options, plan.pack)
    except BaseException:
        work.close()
        raise
    engine.core = plan.core
    return PlannedRun(replace(record, core=plan.core), plan, spec, work)


def compare_first(
    options: RunOptions, scene: Scene, artifact: Artifact, backend: Backend, threads: int, progress: Progress
) -> None:
    """Compare some tiles with float32 before the run. Raises DeepLightError where they differ too much."""
    with progress:
        progress.start(options.check, "tiles", "comparing with fp32")
        count = options.check
        rows = compare_scene(scene, artifact, backend, options.precision, count, threads, progress.advance)
    for row in rows:
        progress.log(f"checked {row.case}: relative L2 {row.relative_l2:.1e} of at most {row.tolerance}")
