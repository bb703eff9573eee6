"""A stand-in for `tensorrt.plugin`, which the wheel of TensorRT for RTX lacks: it checks the signatures of plugin
functions as the original does, with names as in TensorRT 11.4, and refuses any other. It computes nothing.
"""

from __future__ import annotations

import inspect
import types
import typing
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
