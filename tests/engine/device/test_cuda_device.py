"""What PyTorch's GPU is asked for, seen through stand-ins of `torch.cuda`: nothing here touches a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deeplight.engine.core.spec import INPUTS, OUTPUTS
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
        "current_stream": lambda *_: None,
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
    stream = SimpleNamespace(stream=SimpleNamespace(wait_stream=lambda _: None))

    def capture() -> None:
        beside = graphs[-1] if graphs else None
        program = lambda: cuda.append(threading.current_thread().name)  # noqa: E731
        graphs.append(device.capture(stream, program, [], [], beside))

    for name in ("first date", "further date"):
        thread = threading.Thread(target=capture, name=name)
        thread.start()
        thread.join()
        begins = cuda.index("recording")
        assert begins >= 1 and set(cuda[:begins]) == {name}, "nothing was warmed up"
        assert cuda[begins:] == ["recording", name, "recorded"]
        cuda.clear()
    assert len(graphs) == 2


def test_single_tiles_beside_the_device_path_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in shapes of their own, after the last tile of a run too."""
    asked: list[str] = []

    class Network:
        def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            asked.append("compiled")
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
    assert asked == ["compiled", "uncompiled"]
