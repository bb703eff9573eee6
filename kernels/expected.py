"""What a launch should compute: random arguments, the definition's results for them, and how far off a run is.

A configuration is checked with it before it is timed, since a compiler may get one wrong and not another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import launch as launching
from deeplight.kernels.align import reference as align_reference
from deeplight.kernels.align.reference import Mesh
from deeplight.kernels.finish import reference as finish_reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.float32 import exact_float32
from deeplight.kernels.fuse import reference as fuse_reference
from deeplight.kernels.launch import Launch
from deeplight.kernels.refine import reference as refine_reference
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.upsample import reference as upsample_reference

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative to the largest value: sums of some hundred float32 products (three TF32 products on a GPU); else one
rounding of the mixed features and one of the result, 2⁻¹¹ and 2⁻⁸ each, with what they add up to."""

TIMES = {"align": 16.0, "refine": 8.0}
"""What TOLERANCE is multiplied by. align: its coordinates of up to some thousand pixels are float32. refine: the
radiance is an exponential, which multiplies an error by gain and by the radiance."""

_FEATURES = {"refine": "x", "finish": "radiance"}
"""The argument whose element type decides TOLERANCE, where it is not the result."""

Outputs = dict[str, Tensor]
"""By the name of the launch's argument."""


def filled(ready: Launch, device: str, seed: int = 0) -> Launch:
    """The launch with random memory on a device in place of meta tensors, of the size that the network has there.

    Coordinates of the mesh are multiples of 1/16 pixel, so that every precision sees the same neighbours; some lie
    outside the raster.
    """
    generator = torch.Generator(device).manual_seed(seed)
    arguments = {
        name: _random(ready, name, value, generator) if isinstance(value, Tensor) else value
        for name, value in ready.arguments.items()
    }
    for name in results_of(ready):
        like = _tensor(ready, name)
        arguments[name] = torch.full_like(like, _unwritten(like), device=device)
    if ready.constants.get("HAS_SKIP") is False:
        arguments["skip"] = arguments["out"]  # not read; without memory of its own
    return dataclasses.replace(ready, arguments=arguments)


def results_of(ready: Launch) -> tuple[str, ...]:
    """The arguments that the kernel writes."""
    if ready.kernel == "refine":
        return ("radiance", "isp") if ready.constants["EMBED"] else ("radiance",)
    return ("pixels",) if ready.kernel == "finish" else ("out",)


def run(ready: Launch) -> Outputs:
    """Launch it on memory full of NaN or, of integers, of a value that is not expected, and return what it wrote."""
    outputs = {name: _tensor(ready, name) for name in results_of(ready)}
    for output in outputs.values():
        output.fill_(_unwritten(output))
    launching.run(ready)
    return outputs


def _unwritten(output: Tensor) -> float:
    """What memory holds before a launch: far from every random result."""
    return torch.nan if output.dtype.is_floating_point else 30000


def expected(ready: Launch) -> Outputs:
    """The definition's results for a filled launch without a crop, in float32."""
    with exact_float32(), torch.no_grad():
        return {name: result.float() for name, result in _DEFINITIONS[ready.kernel](ready).items()}


def worst(ready: Launch, got: Outputs, want: Outputs) -> float:
    """The largest difference in parts of what is allowed: at most 1 where the launch is right, NaN where one is NaN."""
    share = 0.0
    for name, right in want.items():
        features = _tensor(ready, _FEATURES.get(ready.kernel, name)).dtype
        allowed = TIMES.get(ready.kernel, 1.0) * TOLERANCE[features] * max(1.0, float(right.abs().max()))
        error = float((got[name].float() - right).abs().max()) / allowed
        share = error if math.isnan(error) else max(share, error)
        if math.isnan(share):
            break
    return share


def _tensor(ready: Launch, name: str) -> Tensor:
    value = ready.arguments[name]
    assert isinstance(value, Tensor)
    return value


def _random(ready: Launch, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Memory with the strides of `like`, on the generator's device."""
    shape = tuple(like.shape)
    where: Any = {"generator": generator, "device": generator.device}
    if name in ("whole", "fraction") and ready.constants["MESH"]:
        values = (_mesh(shape) if name == "whole" else torch.full(shape, 1 / 16)).to(generator.device)
    elif name.startswith("mask") or name == "valid":
        values = (torch.rand(shape, **where) > 0.3).float()
    elif name == "raw" and not like.dtype.is_floating_point:
        values = torch.randint(0, 30000, shape, **where)
    elif name == "gain":
        raw = _tensor(ready, "raw")
        values = (torch.rand(shape, **where) + 0.5) * (1.0 if raw.dtype.is_floating_point else 1e-4)
    elif name == "level":
        values = torch.rand(shape, **where)
    elif name == "radiance":
        values = 1000 * torch.rand(shape, **where)
    else:
        # a sum over the inputs of a weight stays of order 1; images are as they are
        inputs = 1 if like.ndim == 4 else 9 * shape[1] if like.ndim == 3 else shape[-1]
        values = torch.randn(shape, **where) * max(1, inputs) ** -0.5
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return values.to(like.dtype).contiguous(memory_format=layout)


def _mesh(shape: tuple[int, ...]) -> Tensor:
    """(1, 2, N, M): 30 source pixels a node, turned a little."""
    i, j = torch.arange(shape[2])[:, None], torch.arange(shape[3])[None, :]
    return torch.stack([30 * i + 2 * j - 3, 30 * j - 2 * i + 1])[None].to(torch.int32)


def _fuse(ready: Launch) -> Outputs:
    names = ("query_aux", "query_main", "query_bias", "film_weight", "film_bias")
    aux, masks = ([_tensor(ready, f"{kind}{m}").float() for m in range(2)] for kind in ("aux", "mask"))
    weights = [_tensor(ready, name).float() for name in names]
    return {"out": fuse_reference.fuse(_tensor(ready, "main").float(), aux, masks, *weights)}


def _epilogue(ready: Launch) -> Outputs:
    y, bias = _tensor(ready, "y").float(), _tensor(ready, "bias").float()
    shifted = torch.relu(y + bias[None, :, None, None])
    return {"out": torch.nn.functional.pixel_shuffle(_shuffle_order(shifted, 1), 2)}


def _conv(ready: Launch) -> Outputs:
    weight = _tensor(ready, "weight").float()  # (9, K, 4C), phase order
    k, c4 = weight.shape[1:]
    plain = _shuffle_order(weight.reshape(3, 3, k, c4).permute(3, 2, 0, 1), 0)
    bias = _shuffle_order(_tensor(ready, "bias").float(), 0)
    return {"out": upsample_reference.upsample(_tensor(ready, "x").float(), plain.contiguous(), bias)}


def _shuffle_order(x: Tensor, axis: int) -> Tensor:
    """From phase order, s·C + c, back to PixelShuffle's, c·4 + s."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], 4, shape[axis] // 4, *shape[axis + 1 :])
    return parts.transpose(axis, axis + 1).reshape(shape)


def _align(ready: Launch) -> Outputs:
    a, c = ready.arguments, ready.constants
    mesh = None
    if c["MESH"]:
        where = [int(a[name]) for name in ("mesh_row", "mesh_col", "step")]
        mesh = Mesh(_tensor(ready, "whole"), _tensor(ready, "fraction"), *where)
    raw = _tensor(ready, "raw")
    result = align_reference.align(
        raw if raw.dtype.is_floating_point else raw.to(torch.int32).float(),
        _tensor(ready, "gain"),
        _tensor(ready, "bias"),
        _tensor(ready, "mask") if c["MASKED"] else None,
        _tensor(ready, "offset") if c["OFFSET"] else None,
        mesh,
        (int(a["height"]), int(a["width"])),
        (float(a["low"]), float(a["high"])),
        torch.float32,
    )
    return {"out": result}


def _refine(ready: Launch) -> Outputs:
    x = _tensor(ready, "x").float()
    c = x.shape[1]
    weight = _tensor(ready, "weight").float().reshape(3, 3, c, c).permute(3, 2, 0, 1).contiguous()
    names = ("isp_weight", "isp_bias", "embed", "bias", "residual_weight", "residual_bias")
    query, query_bias, embed, bias, head, head_bias = (_tensor(ready, name).float() for name in names)
    if not ready.constants["EMBED"]:
        embed = torch.zeros_like(embed)  # x is embedded already
    one = (1, c, 1, 1)
    radiance, isp = refine_reference.refine(
        x, _tensor(ready, "level"), query.reshape(one), query_bias, embed, [weight], [bias], head.reshape(one),
        head_bias, Radiance(),
    )  # fmt: skip
    return {"radiance": radiance, "isp": isp} if ready.constants["EMBED"] else {"radiance": radiance}


def _finish(ready: Launch) -> Outputs:
    a = ready.arguments
    dtype = "uint16" if ready.constants["INTEGER"] else "float32"
    pixels = Pixels(int(a["crop"]), dtype, 1.0 / float(a["per_unit"]), float(a["offset"]), float(a["nodata"]))
    return {"pixels": finish_reference.finish(_tensor(ready, "radiance"), _tensor(ready, "valid"), pixels)}


_DEFINITIONS: dict[str, Callable[[Launch], Outputs]] = {
    "fuse": _fuse,
    "upsample_epilogue": _epilogue,
    "upsample_conv": _conv,
    "align": _align,
    "refine": _refine,
    "finish": _finish,
}
