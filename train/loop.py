"""The training loop: AdamW, warm-up and cosine schedule, gradient clipping, weight averaging, validation."""

from __future__ import annotations

import copy
import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from deeplight.engine.errors import DeepLightError
from deeplight.train.checkpoint import save_checkpoint
from deeplight.train.config import ModelConfig
from deeplight.train.losses import ObjectiveConfig, Truth, objective
from deeplight.train.metrics import validate
from deeplight.train.model import DeepLightSR
from deeplight.train.pool import AugmentConfig, Batch, Region, batches, fixed_batches
from deeplight.train.pretrain import pretrain_offset
from deeplight.train.scores import by_layers, table


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run besides the model and the data.

    light_steps, localise_steps: steps of the offset's layers alone (see pretrain.py). told_steps, told_rate: steps of
    everything else, aligned with the true offset, and their learning rate. steps, learning_rate: the whole network,
    aligned with its own estimate. localise_rate: learning rate of the offset's layers there, relative to the others
    (0 leaves them as they were: crops cut their window off, and going on with them made the offset worse).
    finish_steps, finish_rate, finish_totals: the last stage, its learning rate and its weight of the totals term.
    """

    told_steps: int = 1200
    told_rate: float = 3e-3
    steps: int = 1950
    batch: int = 4
    crop: int = 44
    margin: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.995
    localise_steps: int = 1000
    light_steps: int = 400
    localise_rate: float = 0.0
    finish_steps: int = 120
    finish_rate: float = 5e-4
    finish_totals: float = 0.15
    validate_every: int = 200
    seed: int = 0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def scaled(self, steps: int) -> TrainConfig:
        """The same with `steps` steps of the whole network, and every other stage longer or shorter alike."""
        names = ("light_steps", "localise_steps", "told_steps", "finish_steps")
        others = {name: math.ceil(getattr(self, name) * steps / self.steps) for name in names}
        return replace(self, steps=steps, **others)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    progress = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))


def keep_heap() -> None:
    """Ask glibc to keep freed memory: torch on a CPU otherwise maps and faults every large tensor anew, each step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mmap for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return  # not glibc: only speed is lost


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    pool: list[Region],
    held_out: list[Region],
    run: Path,
    data: dict[str, object],
    log: Callable[[str], None] = print,
) -> DeepLightSR:
    """Train from scratch on `pool`, validate on `held_out`, and leave a checkpoint (averaged weights) in `run`.

    Four stages: the offset alone at LR size; the rest with the true offset, since encoders that see misplaced streets
    learn to ignore them; the whole network; and a short one that removes the bias in totals.
    """
    keep_heap()
    torch.manual_seed(config.seed)
    model = DeepLightSR(model_config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.localise_steps:
        pretrain_offset(model, pool, config.light_steps, config.localise_steps, config.seed, log)
    book = _Book(config, fixed_batches(held_out, config.batch), run, data, log)
    if config.told_steps:
        model = copy.deepcopy(tell(model, pool, config, book)).train()
    averaged = _stage(model, pool, config, book, config.told_steps, config.steps)
    averaged = finish(averaged, pool, config, book)
    log(table(by_layers(averaged, book.checks)))
    return averaged


def tell(model: DeepLightSR, pool: list[Region], config: TrainConfig, book: _Book) -> DeepLightSR:
    """The stage with the true offset: the first half of a cosine, since the whole network goes on from there."""
    told = replace(config, learning_rate=config.told_rate, steps=2 * config.told_steps)
    return _stage(model, pool, told, book, 0, config.told_steps, known_offset=True)


def finish(model: DeepLightSR, pool: list[Region], config: TrainConfig, book: _Book) -> DeepLightSR:
    """The last stage: small steps with the totals term. An absolute error in the log domain has a median for its
    optimum, which lies below the mean of skewed lights, so sums of lights come out low without this.
    """
    if not config.finish_steps:
        return model
    totals = replace(config.objective, totals=config.finish_totals)
    last = replace(
        config,
        objective=totals,
        learning_rate=config.finish_rate,
        steps=config.finish_steps,
        warm_up=min(20, config.finish_steps),
        average=0.98,
        seed=config.seed + 2,
    )
    first = config.told_steps + config.steps
    return _stage(copy.deepcopy(model).train(), pool, last, book, first, config.finish_steps)


@dataclass
class _Book:
    """Validation, log lines and checkpoints of a run."""

    config: TrainConfig
    checks: list[Batch]
    run: Path
    data: dict[str, object]
    log: Callable[[str], None]
    history: list[dict[str, float]] = field(default_factory=list)

    def note(self, averaged: DeepLightSR, step: int, known_offset: bool) -> None:
        """Validate the averaged weights and write them as the run's checkpoint."""
        scores = validate(averaged, self.checks, known_offset=known_offset)
        self.history.append({"step": step, "known_offset": float(known_offset), **scores})
        self.log("validation " + " ".join(f"{k} {v:.4g}" for k, v in self.history[-1].items()))
        card = {"step": step, "training": asdict(self.config), "data": self.data, "history": self.history}
        save_checkpoint(self.run, averaged, card)


def _stage(
    model: DeepLightSR,
    pool: list[Region],
    config: TrainConfig,
    book: _Book,
    first: int,
    steps: int,
    known_offset: bool = False,
) -> DeepLightSR:
    """`steps` steps of the whole network, counted from `first`. Returns the averaged weights, in eval mode."""
    model.localise.requires_grad_(config.localise_rate > 0 and not known_offset)
    averaged = copy.deepcopy(model).eval()
    optimiser = _optimiser(model, config)
    source = batches(pool, config.batch, config.crop, config.margin, config.augment, config.seed + first)
    start = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config) * group["relative"]
        parts = _step(model, optimiser, next(source), config, known_offset)
        _average(averaged, model, min(config.average, (step + 1) / (step + 10)))
        if step % 20 == 0:
            text = " ".join(f"{k} {v:.4f}" for k, v in parts.items())
            rate = (time.monotonic() - start) / (step + 1)
            book.log(f"step {first + step}/{first + steps} {text} {rate:.2f} s/step")
        if (step + 1) % config.validate_every == 0 or step + 1 == steps:
            book.note(averaged, first + step + 1, known_offset)
    return averaged


def _optimiser(model: DeepLightSR, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the offset's layers in a group of their own."""
    offset = list(model.localise.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("localise.")]
    groups = [{"params": others, "relative": 1.0}, {"params": offset, "relative": config.localise_rate}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _step(
    model: DeepLightSR,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    known_offset: bool = False,
) -> dict[str, float]:
    ntl, valid, dmo, dmo_valid, bands, dem, dem_valid = (
        t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in batch.inputs
    )
    truth = Truth(batch.ntl_hr, batch.isp, batch.weight, batch.offset)
    told = batch.offset if known_offset else None
    prediction = model.predict(ntl, valid, dmo, dmo_valid, bands, dem, dem_valid, told)
    loss, parts = objective(model, prediction, truth, config.objective)
    if not torch.isfinite(loss):
        raise DeepLightError(
            f"the loss became {float(loss.detach())}; lower the learning rate or look at the data: {parts}"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimiser.step()
    return parts


@torch.no_grad()
def _average(averaged: DeepLightSR, model: DeepLightSR, decay: float) -> None:
    for a, b in zip(averaged.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 1.0 - decay)
