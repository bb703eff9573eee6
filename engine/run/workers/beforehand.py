"""What the process that leads a run looks at before it starts workers on its host, which takes them seconds."""

from __future__ import annotations

from dataclasses import replace

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.wording import counted
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.preparation import check_bands
from deeplight.engine.run.tiling import pack_side
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import BACKENDS, chosen

WORKERS_A_CPU = 4
"""Workers that wait for a device leave their CPU to others; more than so many would wait for each other."""


def check_count(workers: Workers, cpus: int) -> None:
    """Raise InputError where this host, with so many CPUs, is asked for more workers than it can serve."""
    most = WORKERS_A_CPU * cpus
    if workers.local and workers.count is not None and workers.count > most:
        raise InputError(
            f'`workers="{workers}"` asks for {workers.count} processes on {counted(cpus, "CPUs")}: give local:{most} '
            f"or fewer, {WORKERS_A_CPU} for each CPU"
        )


def count_packs(options: RunOptions) -> int:
    """Open the inputs and the model's description and close them again. Returns how many packs the scene has.

    Raises InputError where they cannot be used, in the sentence of a run without workers.
    """
    from deeplight.engine.raster.scene import Scene

    artifact = load_artifact(options.model, trust=options.trust)
    backend = chosen(options.backend, artifact, options.precision, options.device)
    artifact.file(options.precision, BACKENDS[backend].kind)
    check_bands(options.bands, artifact)
    with Scene.open(options.scene) as scene:
        height, width = scene.grid.shape
    assert options.tiles is not None
    side = pack_side(options.tiles.core or 1)
    return -(-height // side) * -(-width // side)


def narrowed(workers: Workers, packs: int, progress: Progress) -> Workers:
    """No more workers than there are packs."""
    if workers.count is None or workers.count <= packs:
        return workers
    progress.log(f"{workers}: the scene has {counted(packs, 'packs')}, and no worker takes less than one")
    return replace(workers, count=packs)
