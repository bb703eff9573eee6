"""An engine of TensorRT on the device path: stand-ins for CUDA, engine and device; nothing here ran on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import device_tiles, device_work, paths, pipeline, tiling
from deeplight.engine.run.device_path import DevicePath
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import AUTOMATIC, TileRequest
from deeplight.engine.runtime.backends.base import Resident
from deeplight.engine.runtime.backends.engine_compute import EngineCompute
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import pixels
from tests.engine.device.standin import StandIn
from tests.export.fake_cuda import Engine, Runtime
from tests.export.rtx import by_onnx
from tests.export.test_tensorrt_backend import TILES, backend_module, runtime
from tests.scenes import write_scene

__all__ = ["backend_module", "runtime"]
TILE = (1, 6, 5)
STREAM = 55


def compute(backend: Any) -> EngineCompute:
    return EngineCompute(backend, torch.device("cpu"), lambda: STREAM)


def engine(runtime: Runtime) -> Engine:
    made = Engine(runtime, TILE, compute=by_onnx(onnx_bytes()))
    made.given_memory = True
    return made


def tensors(h: int, w: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(h * 100 + w)
    return [torch.from_numpy(rng.random(input_shape(s, 1, h, w), np.float32)) for s in INPUTS]


def test_tensors_of_any_layout_and_shape(backend_module: Any, runtime: Runtime) -> None:
    made = engine(runtime)
    with backend_module.TensorRtBackend(made) as backend:
        network = compute(backend)
        for h, w in ((6, 5), (7, 9), (6, 5)):
            given = tensors(h, w)
            by_name = {s.name: x.numpy() for s, x in zip(INPUTS, given, strict=True)}
            want = backend.run(by_name, [s.name for s in OUTPUTS])
            last = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in given]
            for spec, found in zip(OUTPUTS, network(last), strict=True):
                assert np.array_equal(found.numpy(), want[spec.name]), spec.name
        first = [x.data_ptr() for x in network(tensors(6, 5))]
        assert [x.data_ptr() for x in network(tensors(6, 5))] == first, (
            "what is captured must stay where it is"
        )
        assert made.streams >= {STREAM}
    assert not runtime.blocks


def test_what_the_library_refuses_is_an_error_of_the_device(backend_module: Any, runtime: Runtime) -> None:
    made = Engine(runtime, TILE, largest=64)
    with (
        backend_module.TensorRtBackend(made) as backend,
        pytest.raises(RuntimeError, match="1 tiles of 4×40 are outside the engine's profile"),
    ):
        compute(backend)(tensors(4, 40))


def test_tiles_that_were_tried_are_let_go_of(
    backend_module: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger tile that is not faster takes no memory during the run, and none is left after it."""
    monkeypatch.setattr(tiling, "_AUTO_CORES", (16,))
    monkeypatch.setattr(tiling, "LEAST_SHARE", 0.2)
    for name, value in (("PAYS", 0.0), ("TILES_A_SLOT", 0), ("LARGEST", 32)):
        monkeypatch.setattr(device_tiles, name, value)
    monkeypatch.setattr(device_work, "FASTER", 1e9)
    files = write_scene(tmp_path, 60, 70)
    model = str(write_model(tmp_path / "m", onnx_bytes(), halo_lr=4))
    backend = backend_module.TensorRtBackend(engine(runtime))
    network = backend._compute = compute(backend)
    found = Resident(StandIn(2), network, keep=network.keep)
    monkeypatch.setattr(backend, "resident", lambda: found)
    monkeypatch.setattr(paths, "open_model", lambda *_: backend)
    monkeypatch.setattr(backend, "close", lambda: None)
    held, launch = set[Any](), DevicePath.launch

    def launching(path: DevicePath, *given: Any, **more: Any) -> None:
        held.update(network._shapes)
        launch(path, *given, **more)

    monkeypatch.setattr(DevicePath, "launch", launching)
    scene = SceneOptions(ntl=str(files.ntl))
    report = pipeline.infer(RunOptions(scene, tmp_path / "o.tif", model, tiles=AUTOMATIC, threads=2))
    assert report is not None and report.device is not None
    assert set(report.device["tiles_tried"]) == {16, 32} and report.tiles["core"] == 16
    assert held == {(1, 24, 24)} and not network._shapes


@pytest.mark.parametrize("captured", [True, False])
def test_a_run_over_the_device_path(
    backend_module: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """The same pixels as on the host's path; an engine that cannot be captured is launched for each tile."""
    files = write_scene(tmp_path, 21, 27)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    model = str(write_model(tmp_path / "m", onnx_bytes(), halo_lr=4))
    devices = {"host": None, "device": StandIn(2)}
    made = engine(runtime)
    for name, device in devices.items():
        backend = backend_module.TensorRtBackend(made)
        backend._compute = compute(backend)
        found = None if device is None else Resident(device, backend._compute, captured=captured)
        monkeypatch.setattr(backend, "resident", lambda found=found: found)
        monkeypatch.setattr(paths, "open_model", lambda *_, backend=backend: backend)
        options: dict[str, Any] = {"tiles": TileRequest(8), "threads": 2, "dtype": "uint16"}
        report = pipeline.infer(RunOptions(scene, tmp_path / f"{name}.tif", model, **options))
        assert report is not None and (report.device is None) == (device is None)
    got, want = pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif")
    assert np.array_equal(np.isnan(got), np.isnan(want))
    # coordinates in float32 on the device: rarely over the middle between two steps
    assert np.nanmax(np.abs(got - want)) <= 1 and np.mean(got != want, where=~np.isnan(got)) < 1e-3
    assert devices["device"] is not None and (devices["device"].replays > 0) == captured


@pytest.mark.parametrize("on_device", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_tile_is_larger_than_the_profile(
    backend_module: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    """Automatic tiles are compared with none that the engine does not take; one that is asked for, and the whole scene,
    are refused before anything is written, and the sentence names what can be used."""
    monkeypatch.setattr(tiling, "_AUTO_CORES", (32,))
    monkeypatch.setattr(tiling, "_SMALL_SCENE", 0.0)
    monkeypatch.setattr(tiling, "LEAST_SHARE", 0.2)
    monkeypatch.setattr(device_tiles, "PAYS", 0.0)
    monkeypatch.setattr(device_tiles, "TILES_A_SLOT", 0)
    made = Engine(runtime, TILE, largest=8 * 26, compute=by_onnx(onnx_bytes()))
    made.given_memory = True
    files = write_scene(tmp_path, 60, 70)
    scene, model = SceneOptions(ntl=str(files.ntl)), str(write_model(tmp_path / "m", onnx_bytes(), halo_lr=4))

    def run(tiles: TileRequest | None) -> Any:
        backend = backend_module.TensorRtBackend(made)
        backend._compute = compute(backend)
        found = Resident(StandIn(2), backend._compute) if on_device else None
        monkeypatch.setattr(backend, "resident", lambda: found)
        monkeypatch.setattr(paths, "open_model", lambda *_: backend)
        return pipeline.infer(RunOptions(scene, tmp_path / "o.tif", model, tiles=tiles, threads=2))

    before = sorted(tmp_path.iterdir())
    for tiles, what in (
        (TileRequest(19), "tiles of 19 LR pixels and a halo of 4 would be 27×27"),
        (TileRequest(12, 9), "tiles of 12 LR pixels and a halo of 9 would be 30×30"),
        (None, "the whole scene would be 68×78"),
    ):
        most = 8 if tiles and tiles.halo else 18
        with pytest.raises(
            InputError, match=f"^{what} .* at most 26×26: use `tiles` of at most {most},"
        ) as error:
            run(tiles)
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="use a smaller halo"):
        run(TileRequest(12, 13))
    report = run(AUTOMATIC)
    assert report.tiles["core"] == 16
    if on_device:
        assert set(report.device["tiles_tried"]) == {16}
    (tmp_path / "o.tif").unlink()
    assert run(TileRequest(18)).tiles["core"] == 18


def test_without_pytorch_for_gpus_tiles_come_from_the_host(backend_module: Any, runtime: Runtime) -> None:
    import sys

    tiles: Any = sys.modules[TILES]
    with backend_module.TensorRtBackend(engine(runtime)) as backend:
        if torch.version.cuda is None:
            assert not tiles.has_device_path() and backend.resident() is None
            assert set(backend.versions()) == {"tensorrt"}


def test_what_the_engine_offers_the_device_path(
    backend_module: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from deeplight.engine.runtime import cuda_device

    monkeypatch.setattr(sys.modules[TILES], "has_device_path", lambda: True)
    monkeypatch.setattr(cuda_device, "CudaDevice", lambda place: StandIn(1))
    with backend_module.TensorRtBackend(engine(runtime)) as backend:
        found = backend.resident()
        assert found is not None and found.compute is backend._compute
        assert found.keep == backend._compute.keep and found.captured == backend.captures
        assert backend.resident().compute is found.compute, "contexts are made once"
