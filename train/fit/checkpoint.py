"""What training leaves and starts from: a model folder (`engine.runtime.artifact`), its weights kept in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.weights import to_safetensors
from deeplight.engine.runtime.artifact import load_artifact, put_weights
from deeplight.engine.runtime.models import load_network, manifest_of

MOST_VALIDATIONS = 1000
"""Of a run's history that are kept beside its weights; the state of the run has all. 6,000 made a manifest that is
larger than readers accept."""


def thinned(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return at most MOST_VALIDATIONS of the validations, evenly spaced, with the last one."""
    stride = max(1, -(-len(history) // MOST_VALIDATIONS))
    return list(history[::-1][::stride][::-1])


def save_checkpoint(run: Path, model: DeepLightSR, training: Mapping[str, Any]) -> None:
    """Put the weights and a manifest with their record (step, settings, data, history …) into the folder `run`.

    Whenever the process is killed, a reader finds weights and record that belong together.
    """
    put_weights(run, manifest_of(model, training), to_safetensors(model))


def load_checkpoint(model: str | Path) -> tuple[DeepLightSR, dict[str, Any]]:
    """Load the network (in eval mode) and the record of its training from a built-in model, a run or an exported
    folder.

    The folder of a run gives its last weights; RUN/best gives its best. Raises ArtifactError, naming what is missing.
    """
    artifact = load_artifact(model)
    return load_network(artifact), dict(artifact.manifest.training)


def check_start(path: Path, first: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse to train `wanted` from the weights of the checkpoint `path`, where its network `first` is another."""
    then, now = first.to_dict(), wanted.to_dict()
    told = "; ".join(f"{name} {then[name]}, not {now[name]}" for name in now if then[name] != now[name])
    if told:
        raise InputError(f"{path} is of another network ({told}); start from one like the settings'")
