"""Triton kernels as TensorRT's Quickly Deployable Plugins with ahead-of-time implementations (PTX in the plan).

Three operators have one: `fuse`, `upsample` (narrow ones) and `refine`. `align` and wide `upsample` are taken from
their ONNX bodies. Weights arrive packed as the kernels read them (`pack`).
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from deeplight.engine.core.errors import DeepLightError
from deeplight.export.operators import DOMAIN, SIGNATURES, VERSION
from deeplight.kernels.fuse import entry as fuse_entry
from deeplight.kernels.launch import Launch
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.table import Config
from deeplight.kernels.upsample import entry as upsample_entry

NAMES = ("fuse", "upsample", "refine")
SIDE = 64
"""Side of the placeholder images from which a launch's compile-time arguments are taken."""

TORCH_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
"""TensorRT's names of element types."""


@dataclass(frozen=True)
class Kernel:
    """A compiled plugin kernel. programs: of a launch with `pixels` results, as a function of B, H, W of the first
    input. threads: of a program. shared: bytes of shared memory."""

    name: str
    ptx: str
    threads: int
    shared: int
    block: int


def meta_image(channels: int, dtype: torch.dtype, scale: int = 1) -> Tensor:
    """Return a channels-last placeholder."""
    empty = torch.empty(1, channels, scale * SIDE, scale * SIDE, dtype=dtype, device="meta")
    return empty.contiguous(memory_format=torch.channels_last)


def fuse_launch(c: int, a: int, dtype: torch.dtype) -> Launch:
    """The launch of `fuse` for C and A channels."""
    main, aux, mask = (meta_image(n, dtype) for n in (c, a, 1))
    shapes = ((2, a), (2, c), (2,), (2 * c, a), (2 * c,))
    weights = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    return fuse_entry.plan(main, [aux, aux], [mask, mask], weights, main)


def upsample_launch(k: int, c: int, dtype: torch.dtype) -> Launch:
    """The launch of `upsample` from K to C channels."""
    weight = torch.empty(9, k, 4 * c, dtype=dtype, device="meta")
    bias = torch.empty(4 * c, dtype=dtype, device="meta")
    return upsample_entry.plan_conv(meta_image(k, dtype), weight, bias, None, meta_image(c, dtype, 2))


def refine_launch(c: int, dtype: torch.dtype) -> Launch:
    """The launch of `refine` for C channels."""
    vectors = [torch.empty(n, dtype=dtype, device="meta") for n in (c, c, 1, c, c, 1)]
    weight = torch.empty(9, c, c, dtype=dtype, device="meta")
    pixels = torch.empty(1, 1, SIDE, SIDE, device="meta")
    x = meta_image(c, dtype)
    # 48 KiB of shared memory at most, which a launch may have without asking for it
    config = Config(128, 4)
    return refine_entry.plan_narrow(x, pixels, weight, vectors, Radiance(), pixels, pixels, config)


def compile_kernel(launch: Launch, arch: int, floats: Mapping[str, float] | None = None) -> Kernel:
    """The plugin's kernel for compute capability arch / 10. floats: scalars that become constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deeplight.export import plugin_kernels

    operator = launch.kernel.split("_")[0]
    function = getattr(plugin_kernels, f"{operator}_plugin")
    values = {**launch.compile_time, **{k.upper(): v for k, v in (floats or {}).items()}}
    given = launch.signature
    signature = {n: "constexpr" if n in values else given[n] for n in function.arg_names}
    constants = {(i,): values[n] for i, n in enumerate(signature) if n in values}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (n, kind) in enumerate(signature.items())
        if kind.startswith("*") and not n.startswith("mask")
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": launch.config.warps, "num_stages": launch.config.stages},
    )
    count = sum(kind != "constexpr" for kind in signature.values())
    ptx = strip_scratch(compiled.asm["ptx"], count)
    threads = 32 * launch.config.warps
    return Kernel(compiled.metadata.name, ptx, threads, compiled.metadata.shared, launch.config.block)


def strip_scratch(ptx: str, count: int) -> str:
    """The PTX with `count` parameters: Triton ≥ 3.4 appends pointers to scratch memory, which TensorRT does not pass.

    Raises DeepLightError where the kernel uses one, or has fewer parameters.
    """
    head = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", ptx)
    if head is None:
        raise DeepLightError("the compiled kernel has no entry")
    parameters = [p.strip() for p in head.group(2).split(",") if p.strip()]
    if len(parameters) < count:
        raise DeepLightError(f"the compiled kernel has {len(parameters)} parameters, not {count}")
    for extra in parameters[count:]:
        name = extra.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", ptx[head.end() :]):
            raise DeepLightError(f"the compiled kernel uses its scratch parameter {name}")
    return ptx[: head.start(2)] + "\n\t" + ",\n\t".join(parameters[:count]) + "\n" + ptx[head.end(2) :]


def fits(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], half: bool) -> bool:
    """Return whether the node's kernel takes these widths: multiples of 8 in two-byte types (HWC8), narrow convolutions
    and refinements."""
    if node.op_type == "fuse":
        (_, a), (_, c) = shapes[node.input[5]], shapes[node.input[6]]
        widths = [a, c]
    elif node.op_type == "upsample":
        c4, k = shapes[node.input[1]][:2]
        widths = [k, c4 // 4]
        if not upsample_entry.prefers_gemm(k, c4):
            return False
    elif node.op_type == "refine":
        widths = [shapes[node.input[2]][1]]
        if widths[0] > refine_entry.NARROW:
            return False
    else:
        return False
    return not half or all(n % 8 == 0 for n in widths)


def pack(proto: onnx.ModelProto) -> list[str]:
    """Prepare the graph for plugins, in place: weights in the kernels' layout, other operators out of their way.

    A node that no kernel fits, or of another version of the operators, loses its plugin namespace and is taken from its
    body. Returns the nodes that become plugins.
    """
    tensors = {t.name: t for t in proto.graph.initializer}
    shapes = {name: tuple(t.dims) for name, t in tensors.items()}
    present = VERSION in (entry.version for entry in proto.opset_import if entry.domain == DOMAIN)
    chosen = []
    for node in proto.graph.node:
        if node.domain != "deeplight":
            continue
        half = any(tensors[n].data_type == onnx.TensorProto.FLOAT16 for n in node.input if n in tensors)
        if not present or not fits(node, shapes, half):
            kept = [a for a in node.attribute if a.name != "plugin_namespace"]
            del node.attribute[:]
            node.attribute.extend(kept)
            continue
        chosen.append(node.name or node.output[0])
        for position, packed in _PACKING.get(node.op_type, {}).items():
            source = tensors[node.input[position]]
            value = packed(torch.from_numpy(numpy_helper.to_array(source).copy())).numpy()
            node.input[position] = f"{source.name}_packed"
            proto.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(value), node.input[position])
            )
    return chosen


_PACKING: Mapping[str, Mapping[int, Callable[[Tensor], Tensor]]] = {
    "upsample": {1: upsample_entry.gemm_weight, 2: upsample_entry.phase_order},
    "refine": {5: refine_entry.gemm_weight},
}


def register(trt: Any, trtp: Any, arch: int) -> None:
    """Register the three plugins. trt, trtp: the modules tensorrt and tensorrt.plugin. arch: 90 for 9.0."""
    _Plugins(trt, trtp, arch).register()


class _Plugins:
    """The register, autotune and aot_impl functions of every plugin.

    TensorRT reads the annotations of these functions, so they are written out and annotated with its own classes.
    """

    def __init__(self, trt: Any, trtp: Any, arch: int) -> None:
        self.trt, self.trtp, self.arch = trt, trtp, arch

    def register(self) -> None:
        """Register all three plugins."""
        self._fuse()
        self._upsample()
        self._refine()

    def dtype(self, tensor: Any) -> torch.dtype:
        """Return PyTorch's name of a tensor's element type."""
        return TORCH_TYPES[tensor.dtype.name]

    def layout(self, tensors: list[Any], images: set[int], floats: set[int]) -> list[Any]:
        """One combination: `images` channels-last, the rest linear; `floats` are always FP32. All types otherwise
        are that of the first tensor, since the network is strongly typed."""
        kind = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}[self.dtype(tensors[0])]
        channels_last = "HWC" if kind == "FP32" else "HWC8"
        combination = self.trtp.AutoTuneCombination()
        for i in range(len(tensors)):
            place = channels_last if i in images else "LINEAR"
            combination.pos([i], "FP32" if i in floats else kind, place)
        return [combination]

    def launched(self, kernel: Kernel, programs: Any, scalars: list[Any]) -> tuple[Any, Any, Any, Any]:
        """Return what aot_impl has to return: name, PTX, launch parameters, int32 scalars."""
        parameters = self.trtp.KernelLaunchParams()
        parameters.grid_x = programs
        parameters.block_x = kernel.threads
        parameters.shared_mem = kernel.shared
        extra = self.trtp.SymIntExprs(len(scalars))
        for i, value in enumerate(scalars):
            extra[i] = self.trtp.SymInt32(value)
        return kernel.name, kernel.ptx, parameters, extra

    def _fuse(self) -> None:
        desc, cdiv = self.trtp.TensorDesc, self.trtp.cdiv

        def describe(*given: Any) -> Any:
            return given[0].like()

        def tune(*given: Any) -> Any:
            *tensors, outputs = given
            return self.layout([*tensors, *outputs], {0, 1, 2, len(tensors)}, set())

        def implement(*given: Any) -> Any:
            main, aux = given[0], given[1]
            launch = fuse_launch(main.shape[1], aux.shape[1], self.dtype(main))
            kernel = compile_kernel(launch, self.arch)
            e = main.shape_expr
            pixels = e[0] * e[2] * e[3]
            return self.launched(kernel, cdiv(pixels, kernel.block), [pixels, 1, 1])

        self._attach("fuse", (desc,), describe, tune, implement)

    def _upsample(self) -> None:
        desc, cdiv = self.trtp.TensorDesc, self.trtp.cdiv

        def describe(x: Any, weight: Any, bias: Any) -> Any:
            out = x.like()
            e = x.shape_expr
            out.shape_expr[1] = bias.shape_expr[0] // 4
            out.shape_expr[2], out.shape_expr[3] = e[2] * 2, e[3] * 2
            return out

        def tune(x: Any, weight: Any, bias: Any, outputs: Any) -> Any:
            return self.layout([x, weight, bias, *outputs], {0, 3}, set())

        def implement(x: Any, weight: Any, bias: Any, outputs: Any, tactic: int) -> Any:
            launch = upsample_launch(x.shape[1], bias.shape[0] // 4, self.dtype(x))
            kernel = compile_kernel(launch, self.arch)
            e, parts = x.shape_expr, -(-bias.shape[0] // int(launch.constants["BLOCK_N"]))
            programs = e[0] * e[2] * cdiv(e[3], kernel.block) * parts
            return self.launched(kernel, programs, [e[2], e[3]])

        self._attach("upsample", (desc,), describe, tune, implement)

    def _refine(self) -> None:
        desc, cdiv, float32 = self.trtp.TensorDesc, self.trtp.cdiv, self.trt.float32
        names, _, attributes = SIGNATURES["refine"]

        def describe(*given: Any) -> Any:
            outs = tuple(given[0].like() for _ in range(2))
            for out in outs:
                out.shape_expr[1] = 1
                out.dtype = float32
            return outs

        def tune(*given: Any) -> Any:
            *tensors, outputs = given[: len(names)] + given[-1:]
            return self.layout([*tensors, *outputs], {0}, {1, len(tensors), len(tensors) + 1})

        def implement(*given: Any) -> Any:
            x, values = given[0], given[len(names) : len(names) + len(attributes)]
            launch = refine_launch(x.shape[1], self.dtype(x))
            kernel = compile_kernel(launch, self.arch, dict(zip(attributes, values, strict=True)))
            e = x.shape_expr
            strips, columns = cdiv(e[2], refine_entry.ROWS), cdiv(e[3], kernel.block - refine_entry.RIM)
            return self.launched(kernel, e[0] * strips * columns, [e[2], e[3]])

        self._attach("refine", (desc, desc), describe, tune, implement)

    def _attach(
        self,
        name: str,
        outputs: tuple[Any, ...],
        describe: Callable[..., Any],
        tune: Callable[..., Any],
        implement: Callable[..., Any],
    ) -> None:
        """Hand the three functions over under explicit signatures, from which TensorRT takes names and types."""
        desc, trtp = self.trtp.TensorDesc, self.trtp
        tensors, _, attributes = SIGNATURES[name]
        inputs = {**dict.fromkeys(tensors, desc), **dict.fromkeys(attributes, float)}
        described = types.GenericAlias(tuple, outputs)
        result: Any = outputs[0] if len(outputs) == 1 else described
        trtp.register(f"deeplight::{name}")(signed(describe, inputs, result))
        tuned = {**inputs, "outputs": described}
        combinations = types.GenericAlias(list, (trtp.AutoTuneCombination,))
        trtp.autotune(f"deeplight::{name}")(signed(tune, tuned, combinations))
        text = str | bytes
        kernel = types.GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs))
        implemented = {**tuned, "tactic": int}
        trtp.aot_impl(f"deeplight::{name}")(signed(implement, implemented, kernel))


def signed(function: Callable[..., Any], parameters: Mapping[str, Any], result: Any) -> Callable[..., Any]:
    """`function`, called by position, under a signature of annotated names."""
    from inspect import Parameter, Signature

    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        return function(*bound.args)

    kind = Parameter.POSITIONAL_OR_KEYWORD
    signature = Signature(
        [Parameter(n, kind, annotation=t) for n, t in parameters.items()], return_annotation=result
    )
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call
