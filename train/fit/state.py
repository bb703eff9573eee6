"""What a run needs to go on bit for bit: one safetensors file, its JSON in the header. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.wording import mention
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.runtime.manifest import MANIFEST_NAME
from deeplight.train.fit.settings import of_another_version

_KEY = "deeplight"


@dataclass
class Position:
    """How far a run is. stage: under way, "" before the first. done: steps made of each stage. ended: how each stage
    that is over ended, `steps` or `early`. best: of the monitored quality. waited: validations since. history: of
    validations. unreadable: places met that cannot be read, with the reason.
    """

    stage: str = ""
    done: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps all stages made."""
        return sum(self.done.values())

    @property
    def network_steps(self) -> int:
        """How many steps were made in stages that train more than the offset's layers."""
        return sum(n for name, n in self.done.items() if name not in ("lights", "offset"))


@dataclass(frozen=True)
class Saved:
    """A state that was read back. settings, data: what the run was started with."""

    position: Position
    settings: dict[str, Any]
    data: dict[str, str]
    scaler: dict[str, Any]
    tensors: dict[str, Tensor]


def save_state(
    file: Path,
    models: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    meta: dict[str, Any],
    position: Position,
) -> None:
    """Write models (`model`, `averaged`), optimiser, random state and `meta` (settings, data, scaler), by rename."""
    tensors = {
        f"{kind}.{name}": value for kind, m in models.items() for name, value in m.state_dict().items()
    }
    names: dict[Tensor, str] = {p: n for n, p in models["model"].named_parameters()}
    for parameter, values in optimiser.state.items():
        tensors |= {f"optimiser.{names[parameter]}.{key}": v for key, v in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = json.dumps({**meta, "position": asdict(position)})
    write_file(file, [save(plain, metadata={_KEY: header})])


def load_state(file: Path) -> Saved:
    """Read what `save_state` wrote. InputError where the file is damaged or of another version."""
    try:
        with safe_open(file, framework="pt") as opened:
            meta = json.loads(opened.metadata()[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        saved = Saved(Position(**meta["position"]), meta["settings"], meta["data"], meta["scaler"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{file} is not a state that can be resumed ({text}): give `overwrite=True` to start anew"
        ) from error
    if names := of_another_version(saved.settings):
        # weights lie beside the state from the first validation on
        weights = (file.parent / MANIFEST_NAME).exists()
        on = (
            f"train its weights on with {mention(start=str(file.parent))} and another `out`, or "
            if weights
            else ""
        )
        raise InputError(
            f"{file} is of a version of DeepLight with other settings or stages ({', '.join(names)}) and cannot be "
            f"resumed: {on}give `overwrite=True` to start anew"
        )
    return saved


def restore(
    saved: Saved, models: Mapping[str, DeepLightSR], optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Put weights and random state back, and where given the optimiser's moments, in the layout of their weights."""
    for kind, model in models.items():
        prefix = f"{kind}."
        own = {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}
        model.load_state_dict(own)
    torch.set_rng_state(saved.tensors["random.cpu"])
    if "random.cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["random.cuda"])
    if optimiser is None:
        return
    for name, parameter in models["model"].named_parameters():
        prefix = f"optimiser.{name}."
        moments = {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}
        if moments:
            optimiser.state[parameter] = {
                k: v if k == "step" else torch.empty_like(parameter).copy_(v) for k, v in moments.items()
            }
