"""What PyTorch's GPU is asked for, seen through stand-ins of `torch.cuda`: nothing here touches a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from deeplight.engine.core.spec import INPUTS, OUTPUTS
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import paths
from deeplight.engine.run.options import RunOptions
from deeplight.engine.runtime.backends import torch_backend
from deeplight.engine.runtime.backends.torch_backend import TorchBackend
from deeplight.engine.runtime.cuda_device import CudaDevice


class Recording:
    """In place of torch.cuda.graph: notes when a recording begins."""

    seen: list[Any]

    def __init__(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"

    def __enter__(self) -> None:
        self.seen.append("recording")

    def __exit__(self, *_: object) -> None:
        self.seen.append("recorded")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens, in order."""
    seen: list[Any] = []
    monkeypatch.setattr(Recording, "seen", seen, raising=False)
    stand_ins = {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "Stream": lambda _: SimpleNamespace(wait_stream=lambda other: seen.append(f"follows {other}")),
        "default_stream": lambda _: "default",
        "synchronize": lambda *_: None,
        "CUDAGraph": lambda: SimpleNamespace(pool=lambda: "pool"),
        "graph": Recording,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return seen


def test_what_is_recorded_ran_before_in_the_same_thread(cuda: list[Any]) -> None:
    """Also beside a graph of another thread: handles of cuBLAS and cuDNN, which are made in the first call of a thread,
    cannot be made in a recording. A further date's program is captured by a thread of its own."""
    device, graphs = CudaDevice(torch.device("cuda")), list[Any]()
    stream = device.stream()

    def capture() -> None:
        beside = graphs[-1] if graphs else None
        program = lambda: cuda.append(threading.current_thread().name)  # noqa: E731
        graphs.append(device.capture(stream, program, [], [], beside))

    for name in ("first date", "further date"):
        thread = threading.Thread(target=capture, name=name)
        thread.start()
        thread.join()
        begins = cuda.index("recording")
        assert cuda.pop(0) == "follows default", "what the program works with may not be there yet"
        begins -= 1
        assert begins >= 1 and set(cuda[:begins]) == {name}, "nothing was warmed up"
        assert cuda[begins:] == ["recording", name, "recorded"]
        cuda.clear()
    assert len(graphs) == 2


@pytest.mark.parametrize("breaks", ["beginning", "end"])
def test_a_recording_that_breaks_off_leaves_the_current_stream_as_it_was(
    cuda: list[Any], monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """PyTorch makes the recording's stream the current one before it begins, and goes back only after it has ended."""
    current: list[Any] = ["default"]

    @contextmanager
    def stream(given: Any) -> Iterator[None]:
        before, current[0] = current[0], given
        try:
            yield
        finally:
            current[0] = before

    class Breaking(Recording):
        def __init__(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream
            if breaks == "beginning":
                raise RuntimeError("CUDA error: the recording cannot begin")

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", Breaking)
    device, during = CudaDevice(torch.device("cuda")), list[Any]()
    made = device.stream()
    with pytest.raises(RuntimeError, match="CUDA error"):
        device.capture(made, lambda: during.append(current[0]), [], [])
    assert during and all(found is made.stream for found in during)
    assert current == ["default"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_full_memory_is_known_by_what_is_said_of_it(error: RuntimeError, full: bool) -> None:
    device = CudaDevice(torch.device("cuda"))
    assert device.out_of_memory(error) is full
    try:
        try:
            raise error
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
    except RuntimeError as later:
        assert device.out_of_memory(later) is full


def test_memory_of_the_path_is_not_what_others_have_let_go_of(
    cuda: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch hands memory of a stream out again for the same stream alone: that of tiles beside the path, which is of
    the default stream, may still be worked on when a slot grows."""
    entered, empty = list[Any](), torch.empty

    @contextmanager
    def stream(given: Any) -> Iterator[None]:
        entered.append(given)
        yield
        entered.pop()

    asked: list[Any] = []

    def noted(*size: Any, device: Any = None, **how: Any) -> torch.Tensor:
        asked.append(entered[-1] if entered else "default")
        return empty(*size, **how)

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch, "empty", noted)
    device = CudaDevice(torch.device("cuda"))
    work = device.stream()
    for size in (3, 5):
        assert len(device.memory(size).bytes) == size
    assert asked[0] is asked[1] and asked[0] not in ("default", work.stream)


def test_single_tiles_beside_the_device_path_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in shapes of their own, after the last tile of a run too."""
    asked: list[str] = []

    class Network:
        def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            asked.append("compiled")
            return self._outputs()

        def alone(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            asked.append("compiled for lights alone")
            return self._outputs()

        def uncompiled(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            asked.append("uncompiled")
            return self._outputs()

        def _outputs(self) -> list[torch.Tensor]:
            return [torch.zeros(1) for _ in OUTPUTS]

    monkeypatch.setattr(torch_backend, "_Graphs", lambda compute, _: compute)
    backend = TorchBackend(Network(), torch.device("cuda"))
    inputs = {spec.name: torch.zeros(1, 1, 2, 2).numpy() for spec in INPUTS}
    backend._run(inputs, ["ntl_hr"])
    assert backend.resident() is not None
    backend._run(inputs, ["ntl_hr"])
    backend.split(1, 1, ["ntl_hr"], layers=False)
    backend._run(inputs, ["ntl_hr"])
    assert asked == ["compiled", "uncompiled", "uncompiled"]


def test_tiles_tried_in_fp32_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be of another shape, and the device waits for it."""
    seen: list[Any] = []
    monkeypatch.setattr(paths, "open_backend", lambda *_, **how: seen.append(how))
    request = RunOptions(SceneOptions("ntl.tif"), Path("o.tif"), "model", compiling=True, backend="torch")
    paths.open_in_fp32(request, cast(Any, None), 1)
    assert [(how["precision"], how["compiling"]) for how in seen] == [("fp32", False)]
