"""One stage's loss as a module, so that Fabric can wrap it for reduced precision and several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.batch import Batch
from deeplight.train.fit.even import even_errors
from deeplight.train.fit.losses import MeanOverProcesses, objective
from deeplight.train.fit.pretrain import lights_loss, offset_loss
from deeplight.train.fit.stages import TrainingStage


class Supervised(nn.Module):
    """The network together with what a stage asks of it. Sets which parameters learn."""

    def __init__(
        self, model: DeepLightSR, stage: TrainingStage, across: MeanOverProcesses, *, estimated: bool = False
    ) -> None:
        """estimated: the batches bring the network's own estimate as their offset."""
        super().__init__()
        self.model, self._stage, self._across = model, stage, across
        self._given = stage.told or estimated
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learns(name, stage))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (scalar) and its parts (scalars, detached)."""
        alone = {"lights": lights_loss, "offset": offset_loss}.get(self._stage.task)
        if alone is not None:
            # differences of large sums decide the offset: never in a reduced precision, see `predict`
            with torch.autocast(batch.inputs[0].device.type, enabled=False):
                return alone(self.model, batch, self._across)
        inputs = (
            t.to(memory_format=torch.channels_last) if t.ndim == 4 else t  # as the weights are
            for t in batch.inputs
        )
        given = batch.offset if self._given else None
        prediction = self.model.predict(*inputs, known_offset=given, holds_sums=self._stage.holds_sums)
        loss, parts = objective(self.model, prediction, batch, self._stage.objective, self._across)
        if self._stage.objective.pattern > 0:
            pattern, border = even_errors(self.model, batch, self._across, holds_sums=self._stage.holds_sums)
            loss = loss + self._stage.objective.pattern * (pattern + border)
            parts |= {"pattern": pattern.detach(), "border": border.detach()}
        return loss, parts


def learns(name: str, stage: TrainingStage) -> bool:
    """Return whether the parameter of this name learns in the stage."""
    if stage.trained:
        return name.startswith(stage.trained)
    return stage.localise_rate > 0 or not name.startswith("localise.")


def optimiser(model: DeepLightSR, stage: TrainingStage, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over what learns; the offset's layers are a group with a `relative` rate of their own."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    offset = [p for n, p in named if n.startswith("localise.")]
    others = [p for n, p in named if not n.startswith("localise.")]
    groups = [{"params": others, "relative": 1.0}, {"params": offset, "relative": stage.localise_rate}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.rate, weight_decay=weight_decay)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average of the weights by one step: averaged ← decay·averaged + (1 − decay)·model."""
    for a, b in zip(averaged.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 1.0 - decay)
