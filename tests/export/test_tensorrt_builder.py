"""What TensorRT's builder is asked for, and what becomes of a plan. Nothing here runs on a GPU.

TensorRT for RTX stands in for TensorRT: its parser, networks, profiles and builder have the same interface, and need
no GPU.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.compare import Difference
from deeplight.engine.runtime.plans import PlanKey
from deeplight.export import to_tensorrt
from deeplight.export.parity import check_measured
from deeplight.export.tensorrt_network import ParsedNetwork, dynamic_profile, exact_profile
from tests.engine.analytic import onnx_bytes, write_analytic
from tests.export.fake_tensorrt import PluginModule
from tests.export.restrictions import REFUSED, RELU

KEY = PlanKey("NVIDIA H200", "9.0", "11.4.0.106", "fp16", "ab" * 32, "ampere_plus", True, (2, 40, 56))


@pytest.fixture
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed (x86-64 Linux only)")


class Timings:
    """A timing cache."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timed"


class Noted:
    """A configuration of TensorRT for RTX, and what that library takes no notice of: timings and hardware levels."""

    def __init__(self, config: Any) -> None:
        self.__dict__.update(config=config, timings=None, hardware_compatibility_level=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def create_timing_cache(self, content: bytes) -> Timings:
        return Timings(content)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        self.__dict__["timings"] = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Timings:
        found: Timings = self.timings
        return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ParsedNetwork, Noted]]:
    """Every network that is built, with its configuration."""
    seen, configured, built = [], ParsedNetwork.configured, ParsedNetwork.built

    def noted(self: ParsedNetwork, config: Noted) -> bytes:
        seen.append((self, config))
        return built(self, config.config)

    monkeypatch.setattr(ParsedNetwork, "configured", lambda self, profiles: Noted(configured(self, profiles)))
    monkeypatch.setattr(ParsedNetwork, "built", noted)
    return seen


def test_the_builder_is_asked_for_a_strongly_typed_plan(
    trt: Any, asked: list[tuple[ParsedNetwork, Noted]], tmp_path: Path
) -> None:
    assert to_tensorrt.build(trt, onnx_bytes(), KEY, tmp_path, "off").startswith(b"vtrt")
    ((network, config),) = asked
    assert network.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    flags = ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "TF32")
    assert [config.get_flag(getattr(trt.BuilderFlag, f)) for f in flags] == [True, True, False]
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.num_optimization_profiles == 2


def test_one_profile_is_for_the_tile_and_one_for_any() -> None:
    exact, dynamic = exact_profile((2, 40, 56)), dynamic_profile((2, 40, 56))
    for spec in INPUTS:
        tile = input_shape(spec, 2, 40, 56)
        assert exact[spec.name] == (tile, tile, tile)
        low, best, high = dynamic[spec.name]
        assert low == input_shape(spec, 1, 4, 4) and best == tile and high[0] >= 8
    assert dynamic["ntl"][2][2:] == (512, 512)


def test_the_timing_cache_is_kept_beside_the_artifact_and_used_again(
    trt: Any, asked: list[tuple[ParsedNetwork, Noted]], tmp_path: Path
) -> None:
    for expected in (b"", b"+timed"):
        to_tensorrt.build(trt, onnx_bytes(), KEY, tmp_path, "off")
        assert asked[-1][1].get_timing_cache().content == expected
    assert [p.name for p in tmp_path.iterdir()] == [KEY.timing_cache_name()]


def test_what_the_parser_refuses_is_said(trt: Any, tmp_path: Path) -> None:
    with pytest.raises(
        DeepLightError, match=r"cannot parse the model: sum \(Add\): .*must have same input types"
    ):
        to_tensorrt.serialise(trt, REFUSED["Add of two types"][0], KEY, tmp_path, plugins=False)


@pytest.mark.usefixtures("asked")
def test_a_failed_build_says_what_the_builder_logged(trt: Any, tmp_path: Path) -> None:
    """A network whose input no profile describes."""
    with pytest.raises(DeepLightError, match=r"cannot build the plan: .*[Pp]rofile"):
        to_tensorrt.build(trt, RELU, KEY, tmp_path, "off")
    assert list(tmp_path.iterdir()) == []


def test_automatic_plugins_keep_the_faster_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trtp = PluginModule()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trtp)
    plans = iter([b"without", b"with"])
    monkeypatch.setattr(to_tensorrt, "serialise", lambda *_, plugins: next(plans))
    monkeypatch.setattr(to_tensorrt, "seconds", lambda trt, plan, key: {b"without": 2.0, b"with": 1.0}[plan])
    trt = types.SimpleNamespace(float32="FLOAT")
    assert to_tensorrt.build(trt, RELU, KEY, tmp_path, "auto") == b"with"
    assert set(trtp.registered) == {"deeplight::fuse", "deeplight::upsample", "deeplight::refine"}


def test_plugins_ask_for_ahead_of_time_implementations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(*arguments: Any) -> Any:
        given.extend(arguments)
        raise DeepLightError("far enough")

    monkeypatch.setattr(to_tensorrt, "ParsedNetwork", stop)
    with pytest.raises(DeepLightError, match="far enough"):
        to_tensorrt.serialise(None, RELU, KEY, tmp_path, plugins=True)
    assert given[2] == ["PREFER_AOT_PYTHON_PLUGINS"]


def row(backend: str, precision: str) -> Difference:
    return Difference("town", backend, precision, 0.0, 0.0, None, 0.0, 1e-5)


def test_a_plan_that_was_not_compared_on_the_gpu_is_not_written() -> None:
    rows = [row("onnxruntime", "fp32"), row("tensorrt cuda", "fp32"), row("tensorrt-rtx cuda", "fp16")]
    check_measured(rows, [], ["fp32"])
    why = ["tensorrt-rtx cuda fp16: no GPU", "tensorrt cuda fp16: analytic has no TensorRT plan"]
    with pytest.raises(
        DeepLightError,
        match=r"the TensorRT plan in fp16 could not be compared on this GPU, so nothing is written \(tensorrt cuda "
        r"fp16: analytic has no TensorRT plan\)$",
    ):
        check_measured(rows, why, ["fp32", "fp16"])


def module(version: str) -> types.ModuleType:
    made = types.ModuleType("tensorrt")
    made.__version__ = version  # type: ignore[attr-defined]
    return made


def test_without_tensorrt_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        InputError, match=r"needs TensorRT ≥ 10\.12 and a GPU .* -m pip install .*tensorrt>=10\.12"
    ):
        to_tensorrt.require_builder()
    sys.modules.pop("deeplight.engine.runtime.backends.tensorrt_backend", None)
    with pytest.raises(InputError, match=r"backend tensorrt needs a package that is not there .*tensorrt>="):
        open_backend("tensorrt", load_artifact(write_analytic(tmp_path / "m")))
    monkeypatch.setitem(sys.modules, "tensorrt", module("10.3.0"))
    with pytest.raises(InputError, match=r"TensorRT 10\.3\.0 is too old: install 10\.12"):
        to_tensorrt.require_builder()
    for version in ("10.12.0.36", "11.4.0.106"):
        monkeypatch.setitem(sys.modules, "tensorrt", module(version))
        assert to_tensorrt.require_builder().__version__ == version
