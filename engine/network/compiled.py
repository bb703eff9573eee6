"""torch.compile around the kernels: Inductor fuses PyTorch's pointwise glue between them, a program per tile shape."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from deeplight.engine.core.cache_folder import cache_folder

_LOG = logging.getLogger(__name__)

COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)
"""What Dynamo and Inductor raise where they make no program; a program that was made raises other errors."""

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that name a cache of programs, and its part of our folder."""

SHAPES = 256
"""Programs that one network may have. Dynamo's own limit, 8, is meant to find code that is compiled too often."""


class Compiled:
    """A network on CUDA whose glue is compiled when a tile shape is first met; as it is for a shape where that fails.

    fallbacks: the shapes that run uncompiled, as text, and why, in one line each; a run that has any gives other bits
    than one that has none.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        """network: in eval mode, on its device. backend: of torch.compile, another one for tests.

        Inductor keeps its programs in the user's cache folder, so that the next process does not compile them again.
        """
        self.fallbacks: dict[str, str] = {}
        self._network = network
        if backend == "inductor":
            use_cache_folder()
        self._compiled = torch.compile(
            network, fullgraph=True, dynamic=False, backend=backend, options=_options(backend)
        )

    @property
    def failed(self) -> str | None:
        """Why the first of the shapes in `fallbacks` runs uncompiled; None while there is none."""
        return next(iter(self.fallbacks.values()), None)

    def __call__(self, *inputs: Tensor | tuple[Tensor, ...]) -> Any:
        """What the network gives for these tensors, some of which may come in tuples. The first call of a shape takes
        seconds to a minute.

        Raises what the network itself raises, run uncompiled; and what is no fault of the compiler, such as too little
        memory, as it is: the same call may succeed later, so it must not decide how the rest of a run is computed.
        """
        tensors = [t for x in inputs for t in (x if isinstance(x, tuple) else (x,))]
        shape = ", ".join("×".join(map(str, t.shape)) for t in tensors)
        if shape in self.fallbacks:
            return self._network(*inputs)
        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                return self._compiled(*inputs)
        except COMPILE_ERRORS as error:
            if transient := _out_of_memory(error):
                raise transient from None
            # an error of the network itself comes again here, and is no reason to stop compiling
            result = self._network(*inputs)
            self._fall_back(shape, _first_line(error))
            return result

    def _fall_back(self, shape: str, reason: str) -> None:
        if not self.fallbacks:
            _LOG.warning(
                "torch.compile failed, so tiles of this shape run uncompiled and slower: %s; "
                "`compiling=False` does not try",
                reason,
            )
        self.fallbacks[shape] = reason


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """The lack of memory among an error and its causes; compilers wrap what they meet."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None


def compiled(network: nn.Module, device: torch.device) -> nn.Module | Compiled:
    """The network as it runs fastest on a device: compiled on CUDA, itself elsewhere.

    Inductor's code for CPUs is no faster for this network and needs a C++ compiler, so it is not used there.
    """
    return Compiled(network) if device.type == "cuda" else network


def channels_last(x: Tensor) -> Tensor:
    """The channels of a pixel beside each other; without a copy also where others lie between two pixels, as in what
    `kernels.align` writes: values and validity together."""
    if x.ndim != 4 or x.stride(1) == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def use_cache_folder() -> None:
    """Let Inductor and Triton keep programs in $XDG_CACHE_HOME/deeplight (~/.cache/deeplight), for this user alone.

    TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR come first where they are set. What is in the folder is run as code, so
    one that others may write to is not used: a temporary folder serves this process, and one warning says why.
    (Inductor's own choice would be a folder in /tmp with a name that anyone can take first.)
    """
    if all(name in os.environ for name in CACHES):
        return
    try:
        found = {name: str(cache_folder(part)) for name, part in CACHES.items()}
    except (OSError, RuntimeError) as error:  # RuntimeError: no home is known
        _LOG.warning("compiled programs are not kept for the next run: %s", error)
        found = {name: str(_temporary() / part) for name, part in CACHES.items()}
    for name, place in found.items():
        os.environ.setdefault(name, place)


@cache
def _temporary() -> Path:
    """A folder of this process, which goes when it ends."""
    folder = tempfile.mkdtemp(prefix="deeplight-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _options(backend: str) -> dict[str, Any] | None:
    """deterministic: no choice between kernels by timing where the sums' order differs; bits then depend on no day."""
    if backend != "inductor":
        return None
    import torch._inductor

    return {"deterministic": True} if "deterministic" in torch._inductor.list_options() else None


def _first_line(error: Exception) -> str:
    # BackendCompilerFailed keeps what the backend raised apart
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
