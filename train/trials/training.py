"""Short training runs for comparisons: settings as tables in, a network out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deeplight.engine.errors import InputError
from deeplight.train.checkpoint import load_checkpoint
from deeplight.train.logs import Reporter
from deeplight.train.loop import TrainingData, train
from deeplight.train.model import DeepLightSR
from deeplight.train.samples import SampleSource
from deeplight.train.settings import settings_from

Tables = Mapping[str, Mapping[str, Any]]


def train_once(
    tables: Tables,
    learn: SampleSource,
    check: SampleSource,
    run: Path,
    say: Callable[[str], None],
    start: Path | None = None,
) -> DeepLightSR:
    """Train on `learn` with settings as in deeplight-train's TOML file, look at `check` at the end of each stage.

    start: a checkpoint whose weights are the first; its network must be that of the settings. Returns the averaged
    weights, in eval mode; the run's folder keeps them too.
    """
    settings = settings_from({name: dict(values) for name, values in tables.items()})
    data = TrainingData(learn, check, {"kind": "trial", "start": str(start) if start else None})
    first = load_checkpoint(start)[0] if start else None
    if first is not None and first.config != settings.model:
        then, now = first.config.to_dict(), settings.model.to_dict()
        told = "; ".join(f"{name} {then[name]}, not {now[name]}" for name in now if then[name] != now[name])
        raise InputError(f"{start} is of another network ({told}); start from one like the settings'")
    return train(settings, data, run, device="cpu", reporter=_Quiet(say), start=first)


class _Quiet(Reporter):
    """Only when a stage begins: a trial makes many runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def start(self, stage: str, done: int, total: int) -> None:
        """See Reporter."""
        self._say(f"  {stage}: {total} steps")
