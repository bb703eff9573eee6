"""A model that is called: the pixels of a run, of parts too, in arrays."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

import deeplight as dl
from deeplight.api import model as model_module
from deeplight.engine.core import machine
from deeplight.engine.runtime.backends.base import Backend
from tests.engine.analytic import expected
from tests.scenes import SceneFiles


def test_the_pixels_are_those_of_the_model(scene: dl.Scene, model: dl.Model) -> None:
    result = model(scene)
    inputs = scene.rasters.read_inputs(scene.window)
    valid = np.repeat(np.repeat(inputs["ntl_valid"][0, 0] != 0, 8, 0), 8, 1)
    assert result.radiance.dtype == np.float32
    assert result.radiance.shape == result.isp.shape == (168, 216)
    assert result.offset.shape == (2, 168, 216)
    np.testing.assert_array_equal(np.isnan(result.radiance), ~valid)
    np.testing.assert_allclose(result.radiance[valid], expected(inputs)[valid], rtol=1e-5, atol=1e-5)


def test_a_part_has_the_pixels_of_the_whole(scene: dl.Scene, model: dl.Model) -> None:
    whole, part = model(scene, bands=["interval"]), model(scene[3:9, 7:], bands=["interval"])
    np.testing.assert_allclose(part.radiance, whole.radiance[24:72, 56:], rtol=1e-6)
    np.testing.assert_allclose(part.interval, whole.interval[:, 24:72, 56:], rtol=1e-6)
    assert part.grid == scene[3:9, 7:].grid.finer()


@pytest.mark.parametrize("conserve", [False, True])
def test_a_call_and_a_run_give_the_same(
    scene: dl.Scene, model: dl.Model, tmp_path: Path, conserve: bool
) -> None:
    bands = ("isp", "offset", "quality", "interval")
    run = dl.refine(scene, model, out=tmp_path / "o.tif", bands=bands, tiles=9, conserve_radiance=conserve)
    result = model(scene, bands=bands, conserve_radiance=conserve)
    with rasterio.open(run.path) as file:
        written = file.read()
        assert file.transform.almost_equals(result.grid.transform)
    made = [result.radiance[None], result.isp[None], result.offset, result.quality[None], result.interval]
    np.testing.assert_allclose(written, np.concatenate(made), rtol=1e-5, atol=1e-6)


def test_a_part_without_data(scene: dl.Scene, model: dl.Model) -> None:
    result = model(scene[:2, :3])
    assert np.isnan(result.radiance).all()
    assert result.offset.shape == (2, 16, 24)
    assert result._repr_png_().startswith(b"\x89PNG")


def test_calls_from_other_threads(scene: dl.Scene, model: dl.Model) -> None:
    results: list[dl.Result] = []
    threads = [threading.Thread(target=lambda: results.append(model(scene))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    np.testing.assert_array_equal(results[0].radiance, results[2].radiance)


def test_more_than_memory_holds_is_refused_with_what_to_do(
    scene: dl.Scene, model: dl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(dl.InputError) as error:
        model(scene)
    assert str(error.value).startswith(
        "the scene of 21×27 LR pixels in one piece needs about 0.6 GB and 0.0 GB can be"
    )
    assert str(error.value).endswith(
        ": call the model with a part, as scene[0:256, 0:256], or use deeplight.refine, which works in tiles"
    )


def test_bad_numbers_of_a_reduced_precision_are_tried_in_fp32(
    scene: dl.Scene, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = 1
    run = Backend.run

    def sometimes_bad(self: Backend, inputs: Any, outputs: Any = ("ntl_hr",)) -> Any:
        nonlocal bad
        bad -= 1
        results = run(self, inputs, outputs)
        return results if bad < 0 else {name: values * np.float32(np.nan) for name, values in results.items()}

    monkeypatch.setattr(Backend, "run", sometimes_bad)
    with dl.load_model(folder) as model:
        model.loading = replace(model.loading, precision="fp16")
        assert np.isfinite(model(scene).radiance).any()
        bad = 2
        with pytest.raises(dl.DeepLightError) as error:
            model(scene)
    assert "not finite" in str(error.value)
    assert str(error.value).endswith('or use another model or precision="fp32"')


def test_what_a_model_and_a_result_say_of_themselves(scene: dl.Scene, model: dl.Model) -> None:
    assert repr(model) == "Model analytic in fp32, onnxruntime on cpu"
    assert repr(model(scene)) == "Result of 168×216 pixels (radiance, isp, offset), nW/cm²/sr, EPSG:4326"


def test_pictures(scene: dl.Scene, model: dl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    result = model(scene)
    assert result._repr_png_().startswith(b"\x89PNG")
    assert type(result.show()).__name__ == "Figure"
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert isinstance(result.show(), Image.Image)


def test_the_picture_of_a_large_result_is_its_middle(files: SceneFiles, model: dl.Model) -> None:
    from deeplight.api import drawing

    with dl.open_scene(files.ntl) as scene, pytest.MonkeyPatch.context() as patch:
        small = drawing.as_image(model(scene[5:15, 8:18]))
        patch.setattr(drawing, "_MOST", 10)
        middle = drawing.as_image(model(scene))
    assert middle.size == small.size


def test_the_default_model_is_the_librarys() -> None:
    from deeplight.engine.runtime.artifact import DEFAULT_MODEL

    assert model_module.DEFAULT == DEFAULT_MODEL
