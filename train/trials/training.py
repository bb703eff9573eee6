"""Short training runs for comparisons: settings as tables in, a network out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.clips.samples import SampleSource
from deeplight.train.fit.checkpoint import check_start, load_checkpoint
from deeplight.train.fit.logs import Reporter
from deeplight.train.fit.loop import TrainingData, train
from deeplight.train.fit.settings import Settings, settings_from

Tables = Mapping[str, Mapping[str, Any]]


def train_once(
    tables: Tables,
    learn: SampleSource,
    check: SampleSource,
    run: Path,
    say: Callable[[str], None],
    start: Path | None = None,
    alignment: Path | None = None,
) -> DeepLightSR:
    """Train on `learn` with settings as in deeplight-train's TOML file, look at `check` at the end of each stage.

    start: a checkpoint whose weights are the first; its network must be that of the settings. alignment: one of which
    only the offset estimator is taken, the rest is random. Returns the averaged weights, in eval mode; the run's
    folder keeps them too.
    """
    settings = settings_from({name: dict(values) for name, values in tables.items()})
    card = {"kind": "trial", "start": start and start.name, "alignment": alignment and alignment.name}
    data = TrainingData(learn, check, card)
    first = None
    if alignment is not None:
        first = with_alignment(settings, alignment)
    elif start is not None:
        first = load_checkpoint(start)[0]
        check_start(start, first.config, settings.model)
    return train(settings, data, run, device="cpu", reporter=_Quiet(say), start=first)


def with_alignment(settings: Settings, checkpoint: Path) -> DeepLightSR:
    """The settings' network with random weights and a checkpoint's offset estimator.

    Raises InputError where the two estimators do not have the same widths.
    """
    other = load_checkpoint(checkpoint)[0].localise.state_dict()
    torch.manual_seed(settings.training.seed)
    model = DeepLightSR(settings.model)
    own = model.localise.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()}:
        raise InputError(
            f"{checkpoint} has another offset estimator than the settings' network: give one of its preset"
        )
    model.localise.load_state_dict(other)
    return model


class _Quiet(Reporter):
    """Only when a stage begins: a trial makes many runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def start(self, stage: str, done: int, total: int) -> None:
        """Say the name of the stage and its number of steps."""
        self._say(f"  {stage}: {total} steps")
