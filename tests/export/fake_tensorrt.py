"""A small stand-in for `tensorrt` and `tensorrt.plugin` where the real packages (gigabytes, a GPU) cannot be had.

It has the names that our code uses, as they are in the bindings of TensorRT 11.4, refuses any other, checks the
signatures of plugin functions as `tensorrt.plugin` does, and records what was asked for. It computes nothing.
"""

from __future__ import annotations

import inspect
import types
import typing
from enum import IntEnum
from typing import Any


class Expression:
    """A symbolic dimension: keeps the formula as text, with `value` for the placeholder sizes."""

    def __init__(self, text: str, value: int) -> None:
        self.text, self.value = text, value

    def _join(self, sign: str, other: Any, value: int) -> Expression:
        return Expression(
            f"({self.text}{sign}{other.text if isinstance(other, Expression) else other})", value
        )

    def __mul__(self, other: Any) -> Expression:
        return self._join("*", other, self.value * number(other))

    def __floordiv__(self, other: Any) -> Expression:
        return self._join("//", other, self.value // number(other))


def number(value: Any) -> int:
    return value.value if isinstance(value, Expression) else int(value)


class DataType:
    def __init__(self, name: str) -> None:
        self.name = name


class TensorDesc:
    """shape_expr: settable symbolic sizes; dtype: settable."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.shape_expr = [Expression(f"{name}{i}", n) for i, n in enumerate(shape)]

    def like(self) -> TensorDesc:
        made = TensorDesc(self.name, self.shape, self.dtype)
        made.shape_expr = list(self.shape_expr)
        return made


class KernelLaunchParams:
    _ALLOWED = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._ALLOWED:
            raise AttributeError(f"KernelLaunchParams object has no attribute {name!r}")
        self.__dict__[name] = value


class SymExprs(list[Any]):
    pass


class SymIntExprs(SymExprs):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class AutoTuneCombination:
    def __init__(self) -> None:
        self.places: dict[int, tuple[str, str]] = {}

    def pos(self, positions: list[int], io_types: str, layouts: str = "LINEAR") -> None:
        for p in positions:
            if p in self.places:
                raise ValueError(f"Type(s) for position {p} already specified")
            self.places[p] = (io_types, layouts)


class PluginModule(types.ModuleType):
    """`tensorrt.plugin`."""

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.registered: dict[str, dict[str, Any]] = {}
        self.TensorDesc, self.KernelLaunchParams = TensorDesc, KernelLaunchParams
        self.AutoTuneCombination, self.SymExprs, self.SymIntExprs = AutoTuneCombination, SymExprs, SymIntExprs
        self.SymInt32 = lambda value: value

    @staticmethod
    def cdiv(a: Any, b: int) -> Expression:
        return Expression(f"cdiv({a.text},{b})", -(-number(a) // b))

    def register(self, plugin: str) -> Any:
        def decorate(function: Any) -> Any:
            signature = inspect.signature(function)
            tensors, attributes = [], {}
            for name, p in signature.parameters.items():
                assert p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty, name
                if p.annotation is TensorDesc:
                    assert not attributes, "tensors come before attributes"
                    tensors.append(name)
                else:
                    assert p.annotation in (int, float, bool, str, bytes), name
                    attributes[name] = p.annotation
            result = signature.return_annotation
            outputs = len(typing.get_args(result)) if typing.get_origin(result) is tuple else 1
            assert result is TensorDesc or set(typing.get_args(result)) == {TensorDesc}
            entry = {"register": function, "tensors": tensors, "attributes": attributes, "outputs": outputs}
            self.registered[plugin] = entry
            return function

        return decorate

    def _later(self, plugin: str, kind: str, tail: list[str], result: Any) -> Any:
        def decorate(function: Any) -> Any:
            entry, signature = self.registered[plugin], inspect.signature(function)
            assert list(signature.parameters) == [*entry["tensors"], *entry["attributes"], *tail]
            assert typing.get_origin(signature.parameters["outputs"].annotation) is tuple
            for name, kind_of in entry["attributes"].items():
                assert signature.parameters[name].annotation is kind_of
            assert result(signature.return_annotation)
            entry[kind] = function
            return function

        return decorate

    def autotune(self, plugin: str) -> Any:
        def is_list(r: Any) -> bool:
            return typing.get_origin(r) is list and typing.get_args(r) == (AutoTuneCombination,)

        return self._later(plugin, "autotune", ["outputs"], is_list)

    def aot_impl(self, plugin: str) -> Any:
        def is_kernel(r: Any) -> bool:
            args = typing.get_args(r)
            return len(args) == 4 and args[2] is KernelLaunchParams and issubclass(args[3], SymExprs)

        return self._later(plugin, "aot_impl", ["outputs", "tactic"], is_kernel)


class Flag(IntEnum):
    STRONGLY_TYPED = 1
    PREFER_AOT_PYTHON_PLUGINS = 3


class BuilderFlag(IntEnum):
    """No FP16, no INT8: TensorRT 11 has none."""

    TF32 = 5
    VERSION_COMPATIBLE = 10
    EXCLUDE_LEAN_RUNTIME = 11


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class ExecutionContextAllocationStrategy(IntEnum):
    USER_MANAGED = 2


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timed"


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)), name
        self.shapes[name] = (low, best, high)


class _Config:
    __slots__ = ("cache", "flags", "hardware_compatibility_level", "profiles")

    def __init__(self) -> None:
        self.flags: list[Any] = [BuilderFlag.TF32]
        self.profiles: list[_Profile] = []

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, BuilderFlag)
        self.flags.append(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> _Cache:
        return _Cache(content)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> _Cache:
        return self.cache


class _Error:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_7"

    def node_operator(self) -> str:
        return "DeformConv"


class TensorRt(types.ModuleType):
    """`tensorrt`. errors: what the parser shall find. fail: what the builder shall log instead of building."""

    def __init__(self, version: str = "11.4.0.106", errors: tuple[str, ...] = (), fail: str = "") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.configs: list[_Config] = []
        self.network_flags: list[int] = []
        self.parsed: list[bytes] = []
        self.NetworkDefinitionCreationFlag, self.BuilderFlag = Flag, BuilderFlag
        self.HardwareCompatibilityLevel, self.ILogger = HardwareCompatibilityLevel, ILogger
        self.float32 = DataType("FLOAT")
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        module = self

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> object:
                module.network_flags.append(flags)
                return object()

            def create_builder_config(self) -> _Config:
                module.configs.append(_Config())
                return module.configs[-1]

            def create_optimization_profile(self) -> _Profile:
                return _Profile()

            def build_serialized_network(self, network: object, config: _Config) -> bytes | None:
                if fail:
                    self.logger.log(ILogger.Severity.ERROR, fail)
                    return None
                return b"plan of " + str(len(module.parsed[-1])).encode()

        class OnnxParser:
            def __init__(self, network: object, logger: Any) -> None:
                self.num_errors = len(errors)

            def parse(self, model: bytes) -> bool:
                module.parsed.append(model)
                return not errors

            def get_error(self, i: int) -> _Error:
                return _Error(errors[i])

        self.Builder, self.OnnxParser = Builder, OnnxParser
