"""What the layers suggest is computed once for all dates, and no map shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SUGGESTED
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.run import cause
from deeplight.engine.run.suggested import SuggestedLights
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.run.work import Tile, TileWork
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from deeplight.engine.stack import run as stack_run
from tests.engine.stack.months import Months, name


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    """With the shipped model: that of other tests suggests nothing."""
    return replace(Months.write(tmp_path_factory.mktemp("months")), model="deeplight-tiny")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often it was computed, by the daytime bands of a tile; but for tiles from which a run took them away."""
    counted: Counter[bytes] = Counter()
    suggest = OnnxRuntimeBackend.suggest

    def counting(self: OnnxRuntimeBackend, inputs: Mapping[str, Floats]) -> Floats:
        if inputs["dmo_bands"].any():
            counted[inputs["dmo"].tobytes()] += 1
        return suggest(self, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "suggest", counting)
    return counted


def test_once_for_all_dates_with_the_bytes_of_single_runs(
    months: Months, tmp_path: Path, computed: Counter[bytes]
) -> None:
    files = [months.folder / f"ntl-{name(month)}.tif" for month in months.with_data[:2]]
    changes: dict[str, Any] = {"tiles": TileRequest(9), "bands": ("offset",)}
    months.run(tmp_path / "out", *files, **changes)
    assert len(computed) >= 4 and set(computed.values()) == {1}
    for file in files:
        single = months.single(tmp_path / "single.tif", file, mode=Mode.OVERWRITE, **changes)
        assert (tmp_path / "out" / file.name.removeprefix("ntl-")).read_bytes() == single
    assert set(computed.values()) == {1}, "single runs share nothing"


def test_lights_alone_and_a_shared_alignment_need_none_of_it(
    months: Months, tmp_path: Path, computed: Counter[bytes]
) -> None:
    files = [months.folder / f"ntl-{name(month)}.tif" for month in months.with_data[:2]]
    request = months.request(tmp_path / "stack", *files)
    stack_run.infer_dates(replace(request, offset="stack"))
    request = months.request(tmp_path / "alone", *files)
    scene = replace(request.run.scene, dmo=None, dem=None)
    stack_run.infer_dates(replace(request, run=replace(request.run, scene=scene)))
    assert not computed


def test_memory_has_a_limit() -> None:
    lights, calls = SuggestedLights(most=100), []

    def make(n: int) -> Floats:
        calls.append(n)
        return np.full((1, 1, 1, n), n, np.float32)

    for _ in range(2):
        for place, n in enumerate((20, 6, 5)):
            assert lights.of(place, lambda n=n: make(n)).size == n
    assert calls == [20, 6, 5, 6] and lights.size == 100


class Suggesting:
    """A backend that gives what it was given."""

    suggests = True

    def suggest(self, inputs: Mapping[str, Floats]) -> Floats:
        return inputs["dmo"]

    def run(self, inputs: Mapping[str, Floats], _: Any) -> Mapping[str, Floats]:
        return inputs


def test_a_tile_whose_layers_were_changed_has_lights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the run asks what daytime bands did: without them, the same place suggests something else."""
    monkeypatch.setattr("deeplight.engine.run.work.tile_window", lambda core, *_: core)
    monkeypatch.setattr("deeplight.engine.run.work.layers_present", lambda *_: None)
    one = np.ones((1, 1), np.float32)
    scene: Any = SimpleNamespace(
        grid=SimpleNamespace(shape=(8, 8)),
        auxiliary={"dmo": "a layer"},
        read_ntl=lambda _: (one, one.astype(np.uint8)),
        read_inputs=lambda *_: {key: one.copy() for key in ("dmo", "dmo_valid", "dmo_bands")},
    )
    products: Any = SimpleNamespace(
        model_outputs=(), make=lambda made, *_: (made.get(SUGGESTED.name, made["dmo"]), one)
    )
    backend: Any = Suggesting()
    work = TileWork(scene, backend, cast("Any", None), 0, products, suggested=SuggestedLights(1000))

    def lights(tile: Tile) -> float:
        pixels: Any = work.compute(tile).pixels
        return float(pixels[0, 0])

    core = Window(0, 0, 1, 1)
    assert lights(work.read(core)) == 1
    assert lights(cause._stripped(work.read(core))) == 0
    assert lights(work.read(core)) == 1
