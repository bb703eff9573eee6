"""Between a model folder and the network in it: imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo, receptive_field
from deeplight.engine.network.weights import build
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.manifest import WEIGHTS, Manifest

LEAST_TILE_LR = 4
"""The smallest tile that the network is traced and tested for."""


def load_network(artifact: Artifact) -> DeepLightSR:
    """The network of a model folder, in float32 and eval mode.

    Raises ArtifactError where it cannot be built, or sees farther than the manifest's halo.
    """
    manifest = artifact.manifest
    network = build(manifest.configuration, artifact.read_file(WEIGHTS), str(artifact.path))
    if halo(network.config) > manifest.halo_lr:
        raise ArtifactError(
            f"the model at {artifact.path} claims a halo of {manifest.halo_lr} LR pixels and its network needs "
            f"{halo(network.config)}: export the model again"
        )
    return network


def manifest_of(
    model: DeepLightSR,
    training: Mapping[str, Any],
    *,
    name: str | None = None,
    made_with: tuple[str, ...] = (),
) -> Manifest:
    """What a folder of this model says about itself, no file listed yet.

    training: the record of how its weights came about. name: by default deeplight-PRESET. made_with: packages whose
    versions are noted, beside this one and PyTorch.
    """
    return Manifest(
        name=name or f"deeplight-{model.config.preset}",
        configuration=model.config.to_dict(),
        receptive_field_lr=receptive_field(model.config),
        halo_lr=halo(model.config),
        training=dict(training) | {"parameters": sum(p.numel() for p in model.parameters())},
        producer={p: _version(p) for p in ("deeplight", "torch", *made_with)},
        min_lr=LEAST_TILE_LR,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
