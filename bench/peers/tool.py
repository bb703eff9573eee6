"""One tool over one job, in a process of its own: python -m bench.peers.tool TOOL JOB OUT.tif RESULT.json.

Every tool reads JOB's ntl.tif, dmo.tif and dem.tif, takes the weights in JOB/run and writes OUT.tif. RESULT.json then
has the seconds and CPU seconds from the first read to the closed file (without imports and loading of weights), the
peak memory of the process, and versions. The environment needs PyTorch, rasterio, safetensors and the tool.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALE = 8
DMO_SCALE = 1e-4
HEADER = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "zstd_level": 1}
Spot = tuple[int, int, int, int]
"""Row, column, height, width in LR pixels."""


def load_model(job: Path) -> nn.Module:
    """The network in PyTorch with channels-last weights."""
    import torch

    from deeplight.train.fit.checkpoint import load_checkpoint

    model = load_checkpoint(job / "run")[0]
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


PSF = 1.2
"""FWHM of the blur in LR pixels, which every tool gives to the network."""


def read_layers(job: Path, spot: Spot | None = None) -> list[Tensor]:
    """NTL (1,1,h,w), reflectance (1,7,8h,8w) and metres (1,1,8h,8w) of a spot; of the whole scene for None."""
    import rasterio
    import torch
    from rasterio.windows import Window

    layers = []
    for name, factor, scale in (("ntl", 1, 1.0), ("dmo", SCALE, DMO_SCALE), ("dem", SCALE, 1.0)):
        with rasterio.open(job / f"{name}.tif") as file:
            row, col, height, width = (v * factor for v in spot) if spot else (0, 0, *file.shape)
            pixels = file.read(window=Window(col, row, width, height), out_dtype="float32")
        layers.append(torch.from_numpy(pixels)[None] * scale)
    return layers


def radiance(model: nn.Module, ntl: Tensor, dmo: Tensor, dem: Tensor) -> Tensor:
    """Return radiance (B,1,8h,8w); every pixel counts as valid."""
    import torch

    layout = torch.channels_last
    bands = torch.ones(len(ntl), dmo.shape[1])
    masks = [torch.ones_like(x[:, :1]) for x in (ntl, dmo, dem)]
    psf, limits = torch.full((len(ntl), 2), PSF), torch.full((len(ntl), 2), -1.0)
    ordered = (ntl, masks[0], dmo, masks[1], bands, dem, masks[2], psf, limits)
    with torch.no_grad():  # MONAI blends in place, which inference mode forbids
        result = model(*(x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in ordered))
    first: Tensor = result[0]
    return first


def stacked(job: Path) -> Tensor:
    """All layers as one image (1,9,H,W) on the HR grid, which tiling tools need. LR pixels are repeated."""
    import torch

    ntl, dmo, dem = read_layers(job)
    ntl = ntl.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    return torch.cat([ntl, dmo, dem], dim=1)


def of_stack(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as a function of such images, whose corners lie on the LR grid."""

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return radiance(model, x[:, :1, ::SCALE, ::SCALE], x[:, 1:8], x[:, 8:])

    return forward


def write_whole(job: Path, out: Path, pixels: Tensor) -> None:
    """Write an image (1,1,H,W) as a tiled GeoTIFF."""
    import rasterio

    with rasterio.open(out, "w", **_profile(job)) as file:
        file.write(pixels[0, 0].numpy(), 1)


def _profile(job: Path) -> dict[str, Any]:
    import rasterio

    with rasterio.open(job / "dem.tif") as like:
        return {**HEADER, "driver": "GTiff", "count": 1, "dtype": "float32", "crs": like.crs,
                "transform": like.transform, "height": like.height, "width": like.width}  # fmt: skip


def whole_image(model: nn.Module, job: Path, out: Path, core: int, halo: int) -> None:
    """PyTorch in one call over the whole scene."""
    write_whole(job, out, radiance(model, *read_layers(job)))


def rasterio_loop(model: nn.Module, job: Path, out: Path, core: int, halo: int) -> None:
    """Read each window with its halo, run it, and write its core."""
    import rasterio
    from rasterio.windows import Window

    profile = _profile(job)
    size = profile["height"] // SCALE, profile["width"] // SCALE
    with rasterio.open(out, "w", **profile) as file:
        for spot, inner in windows(size, core, halo):
            pixels = radiance(model, *read_layers(job, spot))
            top, left, height, width = (SCALE * v for v in inner)
            at = pixels[0, 0, top : top + height, left : left + width].numpy()
            place = Window(SCALE * spot[1] + left, SCALE * spot[0] + top, width, height)
            file.write(at, 1, window=place)


def windows(size: tuple[int, int], core: int, halo: int) -> Iterator[tuple[Spot, Spot]]:
    """Windows in the raster that hold a core and its halo, and the core's place in each."""
    height, width = size
    for row in range(0, height, core):
        for col in range(0, width, core):
            top, left = max(0, row - halo), max(0, col - halo)
            bottom, right = min(height, row + core + halo), min(width, col + core + halo)
            inner = row - top, col - left, min(core, height - row), min(core, width - col)
            yield (top, left, bottom - top, right - left), inner


def monai(model: nn.Module, job: Path, out: Path, core: int, halo: int) -> None:
    """MONAI's sliding_window_inference: overlapping windows, blended."""
    from monai.inferers import sliding_window_inference

    side = core + 2 * halo
    result = sliding_window_inference(
        stacked(job), SCALE * side, 1, of_stack(model), overlap=2 * halo / side, mode="constant"
    )
    write_whole(job, out, result)


def terratorch(model: nn.Module, job: Path, out: Path, core: int, halo: int) -> None:
    """terratorch's tiled_inference: a border is cut off each chip."""
    from terratorch.tasks.tiled_inference import tiled_inference

    result = tiled_inference(
        of_stack(model), stacked(job), 1, crop=SCALE * (core + 2 * halo), stride=SCALE * core, delta=SCALE * halo,
        average_patches=False, blend_overlaps=False, batch_size=1,
    )  # fmt: skip
    write_whole(job, out, result)


def options_of(tool: str) -> dict[str, str]:
    """The options in the name of one of our rows, with their dashes."""
    words = tool.removeprefix(OURS).split()
    return dict(zip(words[::2], words[1::2], strict=True))


def runtime_of(given: dict[str, str]) -> tuple[str, str]:
    """Backend and precision that options name, or their defaults."""
    return given.get("--backend", "auto"), given.get("--precision", "fp32")


def deeplight(job: Path, out: Path, given: dict[str, str], threads: int) -> None:
    """The engine, as deeplight-infer runs it with these options."""
    from bench.cases import layers_in
    from deeplight.engine.output.parts import Mode
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.run.pipeline import infer
    from deeplight.engine.run.tiling import parse_tiles

    model = str(job / "artifact")
    cut = parse_tiles(given["--tiles"])
    streams = int(given["--streams"]) if "--streams" in given else None
    backend, precision = runtime_of(given)
    layers = replace(layers_in(job), psf=(PSF, PSF))
    ours = RunOptions(layers, out, model, cut, backend=backend, precision=precision, mode=Mode.OVERWRITE)
    infer(replace(ours, threads=threads, streams=streams))


TOOLS: dict[str, Callable[[Any, Path, Path, int, int], None]] = {
    "whole-image PyTorch": whole_image,
    "rasterio loop": rasterio_loop,
    "MONAI": monai,
    "terratorch": terratorch,
}
NEEDS = {"MONAI": ("monai",), "terratorch": ("terratorch", "torchvision")}
"""Packages that a tool needs beside PyTorch, rasterio and safetensors."""
OURS = "deeplight-infer"


def prepared(tool: str, job: Path) -> Callable[[Path, int, int], None]:
    """Import the tool and load its weights. Returns a function of OUT, core and halo."""
    if tool == "MONAI":
        import monai.inferers  # noqa: F401
    if tool == "terratorch":
        import torch

        # PyPI's torchvision is a CUDA build, whose operators do not load beside a CPU build of PyTorch, and without
        # these two names it cannot be imported; tiled_inference calls neither.
        if not torch.cuda.is_available():
            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor"
                )
        import terratorch.tasks.tiled_inference  # noqa: F401
    model = load_model(job)
    return lambda out, core, halo: TOOLS[tool](model, job, out, core, halo)


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def versions(tool: str) -> dict[str, str]:
    """Return the versions of the packages that computed."""
    found = {}
    for name in (
        ("deeplight", "onnxruntime", "openvino") if tool.startswith(OURS) else ("torch", *NEEDS.get(tool, ()))
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Entry point."""
    tool, job, out, result = sys.argv[1], *map(Path, sys.argv[2:5])
    facts = json.loads((job / "job.json").read_text())
    core, halo, threads = facts["core"], facts["halo"], facts["threads"]
    if tool.startswith(OURS):
        import onnxruntime  # noqa: F401
        import rasterio  # noqa: F401

        given = options_of(tool)
        if given.get("--backend") == "openvino":
            import openvino  # noqa: F401
        work: Callable[[], None] = lambda: deeplight(job, out, given, threads)  # noqa: E731
    else:
        import torch

        torch.set_num_threads(threads)
        run = prepared(tool, job)
        work = lambda: run(out, core, halo)  # noqa: E731
    start, cpu = time.perf_counter(), time.process_time()
    work()
    took = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    took["peak_memory_bytes"] = peak_memory()
    result.write_text(json.dumps({"tool": tool, **took, "versions": versions(tool)}))


if __name__ == "__main__":
    main()
