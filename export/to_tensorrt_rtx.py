"""Artifact → engines of TensorRT for RTX, without a GPU: kernels are compiled where an engine is opened first."""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.wording import mention
from deeplight.engine.runtime.artifact import Draft
from deeplight.engine.runtime.engines import TARGETS, engine_name
from deeplight.engine.runtime.manifest import EngineInfo
from deeplight.engine.runtime.plans import remember
from deeplight.export.tensorrt_network import ParsedNetwork, dynamic_profile, prepared
from deeplight.export.turing import without_products

OLDEST = (1, 7)
BEST_TILE = (1, 96, 96)
"""Batch and LR sides that the dynamic profile is best for: the engine's usual tile. Kernels fit the tile that comes."""

_LOG = logging.getLogger(__name__)


def require_builder() -> Any:
    """Return the module tensorrt_rtx. Raises InputError, which says what to install, where it is missing or too old."""
    try:
        trt = importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError) as e:
        raise InputError(
            f"{mention(formats='tensorrt-rtx')} needs TensorRT for RTX, but no GPU ({e}): "
            f"{install_command('tensorrt-rtx')}"
        ) from None
    if tuple(int(n) for n in str(trt.__version__).split(".")[:2]) < OLDEST:
        # before 1.7 an engine for Turing could be built that computes nothing but zeros
        raise InputError(f"TensorRT for RTX {trt.__version__} is too old: {install_command('tensorrt-rtx')}")
    return trt


def put_engines(draft: Draft, files: dict[str, str], precisions: Sequence[str]) -> dict[str, EngineInfo]:
    """Build the engines of every precision asked for into a model folder in the making, and note that this machine
    built them. files: precision → ONNX file of the draft. Returns file name → what it is, for the manifest.

    Raises DeepLightError with what the parser or the builder says.
    """
    trt = require_builder()
    engines = {}
    for precision in (p for p in precisions if p in files):
        source = (draft.folder / files[precision]).read_bytes()
        graph = prepared(source, plugins=False)
        for target, capabilities in TARGETS.items():
            name = engine_name(target, precision)
            start = time.monotonic()
            engine = build(trt, graph, capabilities)
            _LOG.info(
                "built %s, which runs on GPUs of compute capability %s: %.1f MB in %.0f s",
                name,
                ", ".join(capabilities),
                len(engine) / 1e6,
                time.monotonic() - start,
            )
            draft.put(name, engine)
            remember(engine)
            engines[name] = EngineInfo(
                precision, capabilities, str(trt.__version__), hashlib.sha256(source).hexdigest()
            )
    return engines


def build(trt: Any, graph: bytes, capabilities: Sequence[str]) -> bytes:
    """One engine for GPUs of these compute capabilities, of a graph from `prepared`, with a single profile for tiles of
    any size: the library compiles kernels for the sizes that come. Raises DeepLightError as ParsedNetwork does.
    """
    network = ParsedNetwork(trt, without_products(graph) if "7.5" in capabilities else graph)
    config = network.configured([dynamic_profile(BEST_TILE)])
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
        if not config.set_compute_capability(known, i):
            raise DeepLightError(f"TensorRT for RTX {trt.__version__} builds nothing for {capability}")
    return network.built(config)
