"""What a launch should compute: random arguments, the definition's results for them, and the error of a run.

Each configuration is checked in this way before it is timed, since a compiler may get one wrong and not another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import launch as launching
from deeplight.kernels.agree import reference as agree_reference
from deeplight.kernels.agree.reference import Sensor
from deeplight.kernels.align import reference as align_reference
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.finish import reference as finish_reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.float32 import exact_float32
from deeplight.kernels.fuse import reference as fuse_reference
from deeplight.kernels.interpolation import SCALE, interpolation_kernel, interpolation_line
from deeplight.kernels.launch import Launch
from deeplight.kernels.locate import reference as locate_reference
from deeplight.kernels.refine import reference as refine_reference
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.restore import reference as restore_reference
from deeplight.kernels.restore.reference import Base
from deeplight.kernels.settle import reference as settle_reference
from deeplight.kernels.settle.reference import Belief
from deeplight.kernels.suggest import reference as suggest_reference
from deeplight.kernels.upsample import reference as upsample_reference

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Allowed error relative to the largest value. float32: the rounding of sums of some hundred products, which on a GPU
are three TF32 products each. float16, bfloat16: one rounding of the mixed features and one of the result, of 2⁻¹¹ and
2⁻⁸ each, and their sum."""

TIMES = {
    "align": 16.0,
    "refine": 8.0,
    "refine_narrow": 8.0,
    "residuals": 4.0,
    "posterior": 16.0,
    "observe": 4.0,
    "believe": 4.0,
    "look": 4.0,
    "decide": 4.0,
}
"""Factors of TOLERANCE. align: its coordinates are float32 numbers of up to some thousand pixels. refine: the radiance
is an exponential, which multiplies errors by the gain and by the radiance. residuals: they are differences of squares,
multiplied by a gain of up to 3. posterior: the residual, with its error, is multiplied by a sharpness of some tens in
an exponent. observe: it raises a ratio to a power. believe, look: a difference of sums, beside a fifth of them. decide:
a ratio of such, times another."""

_FEATURES = {"refine": "x", "refine_narrow": "x", "finish": "radiance"}
"""The argument whose element type selects TOLERANCE, for kernels where that is not the result."""

Outputs = dict[str, Tensor]
"""Results by the name of the launch's argument."""


def filled(ready: Launch, device: str, seed: int = 0) -> Launch:
    """Return the launch with random tensors on a device in place of its meta tensors.

    Values are as large as they are at that place in the network. Coordinates of the mesh are multiples of 1/16 pixel,
    so that every precision sees the same neighbours; some lie outside the raster.
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
        arguments["skip"] = arguments["out"]  # it is not read, so it needs no memory of its own
    return dataclasses.replace(ready, arguments=arguments)


def results_of(ready: Launch) -> tuple[str, ...]:
    """Return the names of the arguments that the kernel writes."""
    finished = ("pixels", "halves") if ready.constants.get("STEPS") else ("pixels",)
    results = {
        "refine": ("radiance",),
        "refine_narrow": ("radiance", "isp"),
        "finish": finished,
        "believe": ("root",),
        "look": ("seen", "gained", "reached", "raised"),
        "decide": ("spread", "change"),
    }
    return results.get(ready.kernel, ("out",))


def run(ready: Launch) -> Outputs:
    """Run the launch and return what it wrote. Its results are filled with NaN before (integers: an unlikely value)."""
    outputs = {name: _tensor(ready, name) for name in results_of(ready)}
    for output in outputs.values():
        output.fill_(_unwritten(output))
    launching.run(ready)
    return outputs


def _unwritten(output: Tensor) -> float:
    """The value that fills results before a launch; no result for random arguments is near it."""
    return torch.nan if output.dtype.is_floating_point else 30000


def expected(ready: Launch) -> Outputs:
    """Return the results of the definition, in float32, for a filled launch without a crop."""
    with exact_float32(), torch.no_grad():
        return {name: result.float() for name, result in _DEFINITIONS[ready.kernel](ready).items()}


def worst(ready: Launch, got: Outputs, want: Outputs) -> float:
    """Return the largest difference divided by the allowed one: at most 1 where the launch is right, NaN where a result
    is NaN and should not be."""
    share = 0.0
    for name, right in want.items():
        features = _tensor(ready, _FEATURES.get(ready.kernel, name)).dtype
        largest = float(right.nan_to_num(0.0).abs().max())
        allowed = TIMES.get(ready.kernel, 1.0) * TOLERANCE[features] * max(1.0, largest)
        found = got[name].float()
        nodata = right.isnan() & found.isnan()
        error = float((found - right).masked_fill(nodata, 0.0).abs().max()) / allowed
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
    elif name.startswith("mask") or name in ("valid", "known", "saturated"):
        values = (torch.rand(shape, **where) > 0.3).float()
    elif name == "raw" and not like.dtype.is_floating_point:
        values = torch.randint(0, 30000, shape, **where)
    elif name == "gain":
        raw = _tensor(ready, "raw")
        values = (torch.rand(shape, **where) + 0.5) * (1.0 if raw.dtype.is_floating_point else 1e-4)
    elif name in ("level", "trust", "root", "spread"):
        # the base's radiance, or the base in the normalised domain; shares
        values = torch.rand(shape, **where) * (100 if name == "level" and ready.constants["WHOLE"] else 1)
    elif name in ("carried", "change", "second"):
        values = torch.rand(shape, **where) - 0.5
    elif name in ("radiance", "refined", "start", "y"):
        values = 1000 * torch.rand(shape, **where)
    elif name in ("gained", "raised"):
        # of a refined image that is brighter here and darker there than the base
        values = 1000 * torch.rand(shape, **where) - 450
    elif name in ("seen", "reached"):
        values = 500 + 500 * torch.rand(shape, **where)
    elif name in ("residual", "variance"):
        values = 0.2 * torch.rand(shape, **where)
    elif name in ("noise", "power", "psf"):
        values = 1.0 + torch.rand(shape, **where)
    elif name in ("window", "rows", "columns"):
        values = torch.rand(shape, **where)
        values = values / values.sum()
    else:
        # scaled so that sums over the inputs of a weight stay of order 1; images are not scaled
        inputs = 1 if like.ndim == 4 else 9 * shape[1] if like.ndim == 3 else shape[-1]
        values = torch.randn(shape, **where) * max(1, inputs) ** -0.5
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return values.to(like.dtype).contiguous(memory_format=layout)


def _mesh(shape: tuple[int, ...]) -> Tensor:
    """Nodes (1, 2, N, M) that lie 30 source pixels apart, slightly rotated."""
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
    weight = _tensor(ready, "weight").float()  # (9, K, 4C) in phase order
    k, c4 = weight.shape[1:]
    plain = _shuffle_order(weight.reshape(3, 3, k, c4).permute(3, 2, 0, 1), 0)
    bias = _shuffle_order(_tensor(ready, "bias").float(), 0)
    return {"out": upsample_reference.upsample(_tensor(ready, "x").float(), plain.contiguous(), bias)}


def _shuffle_order(x: Tensor, axis: int) -> Tensor:
    """Channels from phase order, s·C + c, back to the order of PixelShuffle, c·4 + s."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], 4, shape[axis] // 4, *shape[axis + 1 :])
    return parts.transpose(axis, axis + 1).reshape(shape)


def _align(ready: Launch) -> Outputs:
    a, c = ready.arguments, ready.constants
    mesh = None
    if c["MESH"]:
        where = [int(a[name]) for name in ("mesh_row", "mesh_col", "step")]
        mesh = TileMesh(_tensor(ready, "whole"), _tensor(ready, "fraction"), *where)
    raw = _tensor(ready, "raw")
    result = align_reference.align(
        raw.float() if raw.dtype.is_floating_point else raw.to(torch.int32).float(),
        None if c["PLAIN"] else _tensor(ready, "gain"),
        None if c["PLAIN"] else _tensor(ready, "bias"),
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
    whole = ready.kernel == "refine_narrow"
    nothing = torch.zeros(c, device=x.device)
    names = ("isp_weight", "isp_bias", "embed")
    # a launch without the ISP head gets x with the embedding added already
    query, query_bias, embed = (
        [_tensor(ready, name).float() for name in names] if whole else [nothing, nothing[:1], nothing]
    )
    names = ("bias", "residual_weight", "residual_bias")
    bias, head, head_bias = (_tensor(ready, name).float() for name in names)
    weight = _tensor(ready, "weight").float().reshape(3, 3, c, c).permute(3, 2, 0, 1).contiguous()
    one = (1, c, 1, 1)
    level, line = _tensor(ready, "level"), interpolation_line(SCALE, "linear").to(x.device)
    base = Base(level, _tensor(ready, "carried"), _tensor(ready, "trust"))
    if ready.constants["WHOLE"]:
        cubic = interpolation_kernel(2, "cubic").to(x.device)
        level = restore_reference.level(base, cubic, Radiance())
    radiance, isp = refine_reference.refine(
        x, level, query.reshape(one), query_bias, embed, [weight], [bias], head.reshape(one),
        head_bias, Radiance(),
    )  # fmt: skip
    if ready.constants["WHOLE"]:
        radiance = restore_reference.blended(radiance, base, line)
    return {"radiance": radiance, "isp": isp} if whole else {"radiance": radiance}


def _finish(ready: Launch) -> Outputs:
    a, c = ready.arguments, ready.constants
    dtype = "uint16" if c["STEPS"] else "float32"
    nodata = c["NODATA"] if c["STEPS"] else a["nodata"]
    pixels = Pixels(dtype, float(c["SCALE"]), float(c["OFFSET"]), float(nodata))
    radiance, valid = _tensor(ready, "radiance"), _tensor(ready, "valid")
    found = {name: torch.empty_like(_tensor(ready, name)) for name in results_of(ready)}
    corner = (int(a["row"]), int(a["col"]))
    finish_reference.finish(radiance, valid, found["pixels"], found.get("halves"), corner, pixels)
    return found


def _residuals(ready: Launch) -> Outputs:
    names = ("ntl", "lattice", "mean", "variance", "window")
    ntl, lattice, mean, variance, window = (_tensor(ready, name) for name in names)
    n, (h, w) = int(ready.constants["N"]), ntl.shape[-2:]
    shifts = [
        lattice[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] for i, j in itertools.product(range(n), repeat=2)
    ]
    moved, moved_mean = torch.stack(shifts, dim=2).unbind(1)
    return {"out": locate_reference.residuals(ntl, moved, mean, variance, moved_mean, window)}


def _posterior(ready: Launch) -> Outputs:
    def layer(name: str) -> locate_reference.Layer:
        weight = _tensor(ready, name if name.endswith("head") else f"{name}_weight")
        return weight[:, :, None, None], _tensor(ready, f"{name}_bias")

    certainty, correct = (
        [layer(n) for n in names] for names in (("sure", "sure_head"), ("first", "second", "head"))
    )
    strength = _tensor(ready, "strength")
    weights = locate_reference.Weights(strength[0], strength[1], certainty, correct)
    residual, mean, variance, shift_xy = (
        _tensor(ready, name) for name in ("residual", "mean", "variance", "shift_xy")
    )
    d_max = float(ready.arguments["d_max"])
    return {"out": locate_reference.posterior(residual, mean, variance, shift_xy, weights, d_max)}


def _suggest(ready: Launch) -> Outputs:
    def layers(group: str) -> list[locate_reference.Layer]:
        names = (("weight1", "bias1"), ("weight2", "bias2"), ("head", "head_bias"))
        pairs = (
            (_tensor(ready, f"{group}_{weight}"), _tensor(ready, f"{group}_{bias}")) for weight, bias in names
        )
        return [(weight[:, :, None, None], bias) for weight, bias in pairs]

    lights, _ = suggest_reference.suggest(_tensor(ready, "aux"), layers("share"), layers("light"))
    return {"out": lights}


def _observe(ready: Launch) -> Outputs:
    sensor, made = _sensor(ready), int(ready.constants["MADE"])
    radiance = _start(sensor.y, [_tensor(ready, "change")][:made])
    return {"out": agree_reference.change(radiance, sensor, _tensor(ready, "power"))}


def _sensor(ready: Launch) -> Sensor:
    maps = {name: _tensor(ready, name) for name in ("y", "known", "saturated", "rows", "columns")}
    return Sensor(**maps, noise=_tensor(ready, "noise").reshape(-1, 1, 1, 1))


def _start(y: Tensor, changes: list[Tensor]) -> Tensor:
    cubic, linear = (interpolation_line(SCALE, kind).to(y.device) for kind in ("cubic", "linear"))
    x = agree_reference.enlarged(y, cubic).clamp(min=0.0)
    for change in changes:
        x = x * (1.0 + agree_reference.enlarged(change, linear))
    return x


def _believe(ready: Launch) -> Outputs:
    sensor, psf = _sensor(ready), _tensor(ready, "psf")
    belief = Belief(float(ready.arguments["gap"]), float(ready.arguments["noises"]), 0.0)
    near = settle_reference.near(sensor)
    of_near = agree_reference.seen(_tensor(ready, "refined"), near.rows, near.columns)
    return {"root": settle_reference.believed(of_near, sensor, psf, belief).sqrt()}


def _look(ready: Launch) -> Outputs:
    rows, columns = _tensor(ready, "rows"), _tensor(ready, "columns")
    images = _tensor(ready, "refined"), _tensor(ready, "start")
    line = interpolation_line(SCALE, "linear").to(rows.device)
    of_refined, of_start = (agree_reference.seen(x, rows, columns) for x in images)
    reached_refined, reached_start = (settle_reference.reached(x, line) for x in images)
    return {
        "seen": of_start,
        "gained": of_refined - of_start,
        "reached": reached_start,
        "raised": reached_refined - reached_start,
    }


def _decide(ready: Launch) -> Outputs:
    sensor, last = _sensor(ready), float(ready.arguments["last"])
    names = ("root", "seen", "gained", "reached", "raised")
    root, seen, gained, reached, raised = (_tensor(ready, name) for name in names)
    spread = settle_reference.spread(root, sensor)
    share = spread * spread
    change = settle_reference.last_change(seen + gained * share, reached + raised * share, sensor, last)
    return {"spread": spread, "change": change}


def _settle(ready: Launch) -> Outputs:
    refined, start = _tensor(ready, "refined"), _tensor(ready, "start")
    line = interpolation_line(SCALE, "linear").to(refined.device)
    root, change = (agree_reference.enlarged(_tensor(ready, name), line) for name in ("spread", "change"))
    return {"out": (start + (refined - start) * root**2) * (1.0 + change)}


_DEFINITIONS: dict[str, Callable[[Launch], Outputs]] = {
    "fuse": _fuse,
    "upsample_epilogue": _epilogue,
    "upsample_conv": _conv,
    "align": _align,
    "refine": _refine,
    "refine_narrow": _refine,
    "finish": _finish,
    "residuals": _residuals,
    "posterior": _posterior,
    "suggest": _suggest,
    "observe": _observe,
    "start": lambda ready: {
        "out": _start(_tensor(ready, "y"), [_tensor(ready, name) for name in ("change", "second")])
    },
    "believe": _believe,
    "look": _look,
    "decide": _decide,
    "settle": _settle,
}
