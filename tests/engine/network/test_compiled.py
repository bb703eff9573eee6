"""The compiled network: a program per shape, the user's cache folder, and what happens where compiling fails."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplight.engine.network import compiled as module
from deeplight.engine.network.compiled import Compiled, compiled, use_cache_folder
from tests.sources import tracked


class Glue(nn.Module):
    """Pointwise work around a convolution, in place of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] == 13:
            raise ValueError("thirteen columns")
        z = torch.relu(self.layer(x * y))
        return z, z.sum(dim=1)


def given(height: int, width: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(height)
    return torch.rand(1, 2, height, width, generator=g), torch.rand(1, 2, height, width, generator=g)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A backend "counted", which notes every program and runs its graph; "broken" cannot make one."""
    made: list[int] = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        made.append(len(graph.graph.nodes))
        return graph.forward

    def broken(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        made.append(0)
        raise RuntimeError("no C++ compiler\nsecond line")

    for backend in (counted, broken):
        torch._dynamo.register_backend(backend, backend.__name__)
    yield made
    for backend in (counted, broken):
        torch._dynamo.backends.registry._COMPILER_FNS.pop(backend.__name__)


def warnings_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("deeplight")]


def test_more_shapes_than_dynamos_limit_have_a_program_each(programs: list[int]) -> None:
    network = Glue().eval()
    fast = Compiled(network, "counted")
    with torch.inference_mode():
        for height in range(4, 16):
            for _ in range(2):
                assert all(map(torch.equal, fast(*given(height, 9)), network(*given(height, 9))))
    assert len(programs) == 12 > torch._dynamo.config.recompile_limit and fast.failed is None


def test_where_it_fails_there_is_one_warning_and_the_network_runs(
    programs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    network = Glue().eval()
    fast = Compiled(network, "broken")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for height in (4, 5, 4):
            assert all(map(torch.equal, fast(*given(height, 9)), network(*given(height, 9))))
    assert len(programs) == 2, "a shape that failed is not tried again"
    (said,) = warnings_of_ours(caplog)
    assert "tiles of this shape run uncompiled and slower" in said and "no C++ compiler" in said
    assert "second line" not in said and "`compiling=False`" in said
    assert fast.failed is not None and "no C++ compiler" in fast.failed
    assert list(fast.fallbacks) == [f"1×2×{height}×9, 1×2×{height}×9" for height in (4, 5)]


def test_a_shape_that_fails_takes_no_other_shape_with_it(
    programs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Glue().eval()
    fast = Compiled(network, "counted")
    counted = fast._compiled

    def no_six_rows(*inputs: Tensor) -> Any:
        if inputs[0].shape[-2] == 6:
            raise torch._dynamo.exc.BackendCompilerFailed(counted, RuntimeError("ptxas failed"), None)
        return counted(*inputs)

    monkeypatch.setattr(fast, "_compiled", no_six_rows)
    with torch.inference_mode():
        for height in (4, 6, 7, 4):
            assert all(map(torch.equal, fast(*given(height, 9)), network(*given(height, 9))))
    assert len(programs) == 2 and list(fast.fallbacks) == ["1×2×6×9, 1×2×6×9"]


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no memory")


@pytest.mark.parametrize(
    ("error", "compiling"),
    [
        *((error, compiling) for error in NO_MEMORY for compiling in (False, True)),
        (RuntimeError("CUDA error: launch failed"), False),
    ],
)
def test_what_is_no_fault_of_the_compiler_is_the_callers(
    error: Exception, compiling: bool, programs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile that finds no memory must not change how all others are computed."""
    fast = Compiled(Glue().eval(), "counted")
    counted, wrapped = fast._compiled, torch._dynamo.exc.BackendCompilerFailed
    with torch.inference_mode():
        with monkeypatch.context() as patch:

            def fails(*inputs: Tensor) -> Any:
                raise wrapped(counted, error, None) if compiling else error

            patch.setattr(fast, "_compiled", fails)
            with pytest.raises(type(error), match=str(error)):
                fast(*given(4, 9))
        fast(*given(4, 9))
    assert len(programs) == 1 and not fast.fallbacks


def test_more_shapes_than_programs_run_uncompiled(
    programs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHAPES", 2)
    network = Glue().eval()
    fast = Compiled(network, "counted")
    with torch.inference_mode():
        for height in (4, 5, 6, 4):
            assert all(map(torch.equal, fast(*given(height, 9)), network(*given(height, 9))))
    assert len(programs) == 2 and list(fast.fallbacks) == ["1×2×6×9, 1×2×6×9"]


def test_the_networks_own_error_is_the_callers(programs: list[int], caplog: pytest.LogCaptureFixture) -> None:
    fast = Compiled(Glue().eval(), "counted")
    with torch.inference_mode():
        with pytest.raises(ValueError, match="thirteen columns"):
            fast(*given(4, 13))
        fast(*given(4, 9))
    assert len(programs) == 1 and fast.failed is None and not warnings_of_ours(caplog)


def test_a_cpu_runs_the_network_itself() -> None:
    network = Glue().eval()
    assert compiled(network, torch.device("cpu")) is network


def test_cuda_takes_inductor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.update(options) or network)
    assert isinstance(compiled(Glue(), torch.device("cuda")), Compiled)
    assert asked["backend"] == "inductor" and asked["fullgraph"] and asked["dynamic"] is False
    assert asked["options"] == {"deterministic": True}


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither variable is set, and what the test sets goes."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    yield
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ.pop(name, None)


@pytest.mark.usefixtures("no_cache")
def test_programs_are_kept_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use_cache_folder()
    folder = tmp_path / "cache" / "deeplight"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/else/where")
    use_cache_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/else/where"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "deeplight" / "triton")


def no_home(cache: Path) -> None:
    (cache / "deeplight").write_text("a file")


def anyone_writes(cache: Path) -> None:
    (cache / "deeplight").mkdir()
    (cache / "deeplight").chmod(0o777)


def the_group_writes_below(cache: Path) -> None:
    (cache / "deeplight" / "triton").mkdir(parents=True)
    (cache / "deeplight").chmod(0o755)
    (cache / "deeplight" / "triton").chmod(0o775)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (no_home, "File exists"),
        (anyone_writes, "others may write to .*deeplight: chmod go-w"),
        (the_group_writes_below, "others may write to .*triton: chmod go-w"),
    ],
)
def test_a_folder_that_is_not_the_users_alone_is_not_used(
    prepare: Callable[[Path], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepare(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        use_cache_folder()
    (warning,) = warnings_of_ours(caplog)
    assert re.search(f"are not kept for the next run: .*{said}", warning)
    for name in module.CACHES:
        place = Path(os.environ[name])
        assert tmp_path not in place.parents and place.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("no_cache")
def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    use_cache_folder()
    (warning,) = warnings_of_ours(caplog)
    assert "belongs to another user" in warning
    assert not os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))


def test_inductor_of_this_release_knows_the_option() -> None:
    assert module._options("inductor") == {"deterministic": True}
    assert module._options("aot_eager") is None


def test_nobody_lets_cudnn_search_by_timing() -> None:
    """cudnn.benchmark takes whichever algorithm is fastest today, and so other bits tomorrow."""
    sources = tracked("kernels", "engine", "train", "export")
    assert len(sources) > 100
    assert not [path for path in sources if "cudnn.benchmark" in path.read_text()]
    assert not torch.backends.cudnn.benchmark
