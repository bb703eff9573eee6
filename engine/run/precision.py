"""Before a run, N tiles of the user's own scene in the chosen precision against float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from deeplight.engine.core.arrays import to_hr
from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import OFFSET
from deeplight.engine.core.windows import Window
from deeplight.engine.run.tiling import tile_window
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.compare import Difference, difference, failures, table

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.runtime.backends.base import Backend

_LOG = logging.getLogger(__name__)

SIDE = 48
"""Side in LR pixels of the tiles that are compared."""


def compare_scene(
    scene: Scene,
    artifact: Artifact,
    backend: Backend,
    precision: str,
    count: int,
    threads: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Difference]:
    """Compare `backend` with the model in fp32 on the CPU, on `count` tiles spread over the scene's data.

    Returns a row a tile. advance: called after each tile. Logs the table and raises DeepLightError where one is beyond
    tolerance.
    """
    halo = artifact.manifest.halo_lr
    rows = []
    with open_backend("auto", artifact, device="cpu", threads=threads) as reference:
        for core in places(scene, count):
            inputs = scene.read_inputs(tile_window(core, halo, artifact.manifest, scene.grid.shape))
            inputs.pop(OFFSET.name, None)  # each estimates its own: what follows from it is compared, too
            got, want = (b.run(inputs)["ntl_hr"][0, 0] for b in (backend, reference))
            valid = to_hr(inputs["ntl_valid"][0, 0] > 0)
            case = f"row {core.row}, column {core.col}"
            rows.append(difference(case, backend.name, precision, got[valid], want[valid]))
            advance()
    if not all(row.passed for row in rows):
        for line in table(rows).splitlines():
            _LOG.info(line)
        raise DeepLightError(
            f"{backend.name} in {precision} differs too much from float32 on this scene, so nothing is written: "
            f'{failures(rows)}; use `precision="fp32"`'
        )
    return rows


def places(scene: Scene, count: int) -> Iterator[Window]:
    """At most `count` windows with data, spread evenly over the scene; the same every time."""
    height, width = scene.grid.height, scene.grid.width
    side = (min(SIDE, height), min(SIDE, width))
    rows, columns = (range(0, n - s + 1, s) for n, s in zip((height, width), side, strict=True))
    windows = [Window(r, c, *side) for r in rows for c in columns]
    # a multiplicative step visits all of them in an order that is spread out from the start
    step = next(s for s in range(max(1, round(len(windows) * 0.618)), 10**9) if np.gcd(s, len(windows)) == 1)
    found = 0
    for i in range(len(windows)):
        window = windows[(i * step + len(windows) // 2) % len(windows)]
        if found < count and scene.read_ntl(window)[1].any():
            found += 1
            yield window
