"""The registry of inference runtimes. A runtime is imported only when it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from platform import machine
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.wording import mention

if TYPE_CHECKING:
    from deeplight.engine.runtime.artifact import Artifact
    from deeplight.engine.runtime.backends.base import Backend

AUTO = "auto"


@dataclass(frozen=True)
class BackendEntry:
    """Where a backend lives and what it needs.

    module:attribute is its class; package: that or an extra, see install_command; imports: the library's own module;
    devices: the first is the default; kind: what it runs of an artifact, see Artifact.offered; "onnx" also where that
    is the source of a plan. least: LR pixels of a scene in fp32 from which on "auto" takes it; for 0 its place in
    BACKENDS alone decides. machines: that "auto" takes it on; none: all. oldest: version that "auto" takes; for other
    purposes people may have older ones. beside: modules that it imports, too.
    """

    module: str
    attribute: str
    package: str
    imports: str
    devices: tuple[str, ...]
    kind: str = "onnx"
    least: int = 0
    machines: tuple[str, ...] = ()
    oldest: tuple[int, int] = (0, 0)
    beside: tuple[str, ...] = ()


BACKENDS: Mapping[str, BackendEntry] = {
    "openvino": BackendEntry(
        "deeplight.engine.runtime.backends.openvino_backend",
        "OpenVinoBackend",
        "openvino",
        "openvino",
        ("cpu",),
        "openvino",
        least=1_000_000,  # below it what it gains goes into compiling, and into tiles that the edge leaves half empty
        machines=("x86_64", "AMD64"),
        oldest=(2026, 4),
        beside=("onnx",),
    ),
    "onnxruntime": BackendEntry(
        "deeplight.engine.runtime.backends.onnxruntime_backend",
        "OnnxRuntimeBackend",
        "onnxruntime",
        "onnxruntime",
        ("cpu",),
    ),
    "torch": BackendEntry(
        "deeplight.engine.runtime.backends.torch_backend",
        "TorchBackend",
        "gpu",
        "torch",
        ("cpu", "cuda"),
        "weights",
    ),
    "tensorrt-rtx": BackendEntry(
        "deeplight.engine.runtime.backends.tensorrt_rtx_backend",
        "TensorRtRtxBackend",
        "tensorrt-rtx",
        "tensorrt_rtx",
        ("cuda",),
        "engines",
    ),
    "tensorrt": BackendEntry(
        "deeplight.engine.runtime.backends.tensorrt_backend",
        "TensorRtBackend",
        "tensorrt",
        "tensorrt",
        ("cuda",),
    ),
}
"""Backends in the order in which `auto` tries them. Add a backend here and in a module of its own."""


def backend_choices() -> tuple[str, ...]:
    """Accepted backend names."""
    return (AUTO, *BACKENDS)


def device_choices() -> tuple[str, ...]:
    """Accepted device names over all backends; a GPU may be followed by its number, as in cuda:1."""
    return (AUTO, *dict.fromkeys(d for entry in BACKENDS.values() for d in entry.devices))


def parse_device(text: str) -> str:
    """The device's name, "cuda:0" being "cuda". Raises ValueError for what is no device or numbered GPU."""
    kind, colon, index = text.partition(":")
    numbered = kind == "cuda" and re.fullmatch(r"\d{1,3}", index, re.ASCII) is not None
    if kind not in device_choices() or (colon and not numbered):
        raise ValueError(f"device {text!r} is not one of {', '.join(device_choices())}, cuda:0, cuda:1, …")
    return f"{kind}:{int(index)}" if numbered and int(index) else kind


def cuda_index(device: str, count: int, runtime: str) -> int:
    """Number of the GPU that `device`, "cuda" or "cuda:1", means; without one, the first.

    count: GPUs that `runtime` finds. Raises InputError where there is no such GPU.
    """
    index = int(device.partition(":")[2] or 0)
    if count < 1:
        raise InputError(f"{runtime} finds no CUDA device: use {mention(device='cpu')} or another `backend`")
    if index >= count:
        names = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"{runtime} finds no device cuda:{index}: choose {names}")
    return index


def open_backend(
    name: str,
    artifact: Artifact,
    *,
    precision: str = "fp32",
    device: str = AUTO,
    threads: int = 1,
    compiling: bool = True,
    pixels: int = 0,
) -> Backend:
    """Open an artifact on the backend `name`, or on the one that the rule of `chosen` takes for "auto".

    compiling: see Backend.open. pixels: see `chosen`.

    Raises InputError where the name, device or runtime is not there, ArtifactError where the model is not.
    """
    if name not in backend_choices():
        raise InputError(f"unknown backend {name!r}: choose one of {', '.join(backend_choices())}")
    try:
        device = parse_device(device)
    except ValueError as e:
        raise InputError(str(e)) from None
    taken = chosen(name, artifact, precision, device, pixels)
    entry = BACKENDS[taken]
    artifact.file(precision, entry.kind)
    try:
        cls: type[Backend] = getattr(import_module(entry.module), entry.attribute)
    except ImportError as e:
        raise InputError(_missing(taken, artifact, precision, e)) from None
    place = entry.devices[0] if device == AUTO else device
    backend = cls.open(artifact, precision, place, threads, compiling=compiling)
    backend.compiling = compiling
    return backend


def chosen(name: str, artifact: Artifact, precision: str, device: str, pixels: int = 0) -> str:
    """The backend that `name` means; for "auto" by a rule, never by a race, so that equal commands give equal bits.

    The first in the order of BACKENDS that offers the device, has something to run in the precision and is installed;
    where none is installed, the first of the others, which then says how to install it. So on CUDA PyTorch comes first,
    whose kernels were run and compared there. pixels: LR pixels of the scene, 0 where there is none yet; see
    BackendEntry.least. Raises InputError where no backend offers the device.
    """
    candidates = list(BACKENDS) if name == AUTO else [name]
    kind = device.partition(":")[0]
    fitting = [c for c in candidates if kind in (AUTO, *BACKENDS[c].devices)]
    if name == AUTO:
        fitting = [c for c in fitting if _worth(c, artifact, precision, pixels)]
    if not fitting:
        offered = ", ".join(d for c in candidates for d in BACKENDS[c].devices)
        raise InputError(f"device {device!r} is not offered by backend {name}: choose one of auto, {offered}")
    if name != AUTO:
        return name
    ready = [c for c in fitting if precision in artifact.offered(BACKENDS[c].kind)]
    if device != AUTO and not ready:
        raise InputError(
            f"{artifact.manifest.name} has nothing for device {device} in precision {precision}: "
            f"use {mention(device='cpu')}"
        )
    there = [c for c in ready if device == AUTO or installed(c, kind)]
    return (there or ready or fitting)[0]


def _worth(name: str, artifact: Artifact, precision: str, pixels: int) -> bool:
    """Whether "auto" may take a backend on this machine for a scene of so many LR pixels."""
    entry = BACKENDS[name]
    if entry.machines and machine() not in entry.machines:
        return False
    if not entry.least:
        return True
    there = installed(name, "cpu") and _version(entry.imports) >= entry.oldest
    large = precision != "fp32" or pixels >= entry.least
    return there and large and precision in artifact.offered(entry.kind)


def _version(package: str) -> tuple[int, ...]:
    """As in (2026, 4); none where the package does not say."""
    try:
        return tuple(int(n) for n in re.findall(r"\d+", version(package))[:2])
    except PackageNotFoundError:
        return ()


def installed(name: str, device: str) -> bool:
    """Whether the libraries of a backend are there; for CUDA, PyTorch's build for CPUs is not."""
    package, beside = BACKENDS[name].imports, BACKENDS[name].beside
    try:
        only_cpu = package == "torch" and device != "cpu" and version(package).endswith("+cpu")
    except PackageNotFoundError:
        return False
    return not only_cpu and all(find_spec(module) is not None for module in (package, *beside))


def _missing(name: str, artifact: Artifact, precision: str, error: ImportError) -> str:
    """What to do where the package of a backend is not there."""
    wanted = install_command(BACKENDS[name].package)
    sentence = f"backend {name} needs a package that is not there ({error}): {wanted}"
    if BACKENDS[name].kind == "weights":
        return (
            f"{sentence}, or, where that is installed, make an ONNX file of it: deeplight-export {artifact.path} "
            f"--out DIR --precision {precision}"
        )
    return sentence
