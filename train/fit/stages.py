"""The stages of a run: what is trained in each, on what, and at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deeplight.train.fit.config import AugmentConfig, ObjectiveConfig, VarietyConfig
from deeplight.train.fit.settings import Settings

LIGHTS = ("localise.impervious.", "localise.lights.")
LOCALISE = ("localise.",)
_OFFSET_BATCH, _OFFSET_CROP, _OFFSET_MARGIN = 8, 72, 13
"""Of the stages that train the offset alone, which see little more than LR pixels and so many more places a second."""
_EARLY_FOREIGN = 0.6
"""Share that the early stages have of the layers that belong elsewhere."""


@dataclass(frozen=True)
class DataFacts:
    """What the data offer. offset: the true offset is known. isp, dmo, dem: there is some. aligned: places without any
    offset."""

    offset: bool
    isp: bool
    aligned: tuple[int, ...]
    dmo: bool = True
    dem: bool = True


@dataclass(frozen=True)
class TrainingStage:
    """One stage. `number` is its place in the full recipe, so that random numbers do not depend on those left out.

    task: lights, offset or image: what the loss compares. told: align with the true offset. rate: the peak, from which
    half a cosine falls to `floor` of it. trained: prefixes of the parameters that learn; empty: all but the offset's,
    which learn at `localise_rate` of the rate. aligned: only places without offset. simple: in simple countries, where
    the data have some. holds_sums: whether the last step of the network is the deployed one (without belief); else it
    is the plain ratio.
    """

    name: str
    number: int
    task: str
    steps: int
    rate: float
    warm_up: int
    floor: float
    average: float
    batch: int
    crop: int
    margin: int
    trained: tuple[str, ...]
    localise_rate: float
    objective: ObjectiveConfig
    augment: AugmentConfig
    variety: VarietyConfig
    told: bool = False
    aligned: bool = False
    simple: bool = False
    holds_sums: bool = False
    stops_early: bool = False

    @property
    def horizon(self) -> int:
        """Steps until the rate is at its floor. Where the offset is told, it is not reached: another stage goes on."""
        return 2 * self.steps if self.told else self.steps

    @property
    def validated(self) -> bool:
        """Whether the whole network is at work, so that its quality can be measured."""
        return self.task == "image"

    @property
    def estimated(self) -> bool:
        """Whether the offset's layers rest, so that their estimate can be made once for each place."""
        return self.validated and not self.told and not self.localise_rate


def schedule(step: int, peak: float, horizon: int, warm_up: int, floor: float) -> float:
    """Return the learning rate: linear warm-up, then half a cosine from `peak` down to `floor`·peak at `horizon`."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = min((step - warm_up) / max(1, horizon - warm_up), 1.0)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def plan(
    settings: Settings, facts: DataFacts, trained: bool = False
) -> tuple[list[TrainingStage], list[str]]:
    """Return the stages that the data allow, in order, and a sentence for each that is left out. trained: whether
    training begins with the weights of a trained network.

    The offset alone comes first; then the rest with the true offset, since encoders that see misplaced streets learn
    to ignore them; the whole network, in simple countries, in all in an easier world, and in the one that is set; and
    once more with the last step that holds sums.
    """
    makers = (_lights, _offset, _told, _simple, _early, _whole, _finish)
    all_stages = [make(settings) for make in makers]
    kept, notes = [], []
    for stage in all_stages:
        reason = _missing(stage, facts)
        if stage.steps and reason:
            notes.append(f"stage {stage.name} is left out: {reason}")
        elif stage.steps:
            kept.append(stage)
    if facts.offset and not settings.training.localise_rate and not settings.training.localise_steps:
        notes.append("the offset's layers stay as they start: localise_steps and localise_rate are 0")
    if not facts.offset and not settings.training.localise_rate and not trained:
        # nothing has trained the offset's layers, so frozen they would stay at their random start
        kept = [replace(s, localise_rate=1.0) if s.validated else s for s in kept]
        notes.append("the offset's layers learn with the whole network, since nothing else trains them")
    return kept, notes


def _missing(stage: TrainingStage, facts: DataFacts) -> str:
    """Why the data do not allow the stage; empty where they do."""
    needs_offset = stage.task == "offset" or stage.told or stage.aligned
    if needs_offset and not facts.offset:
        return "the data do not say where the lights are misplaced (no offset)"
    if stage.task == "lights" and not facts.isp:
        return "the data have no impervious surface (ISP)"
    if stage.aligned and not facts.aligned:
        return "no place is free of misregistration"
    return ""


def _lights(settings: Settings) -> TrainingStage:
    """What the auxiliary suggests, on places whose true offset is zero."""
    config = settings.training
    stage = _alone(settings, 0, config.light_steps, 5e-3)
    return replace(stage, name="lights", task="lights", trained=LIGHTS, aligned=True)


def _offset(settings: Settings) -> TrainingStage:
    """The whole estimate of the offset."""
    return _alone(settings, 1, settings.training.localise_steps, 3e-3)


def _alone(settings: Settings, number: int, steps: int, rate: float) -> TrainingStage:
    augment = AugmentConfig(
        drop_dmo=0.0, drop_dem=0.0, drop_both=0.0, hole=0.0, cut=0.0, dem_shift=(0.0, 0.0)
    )
    return TrainingStage(
        name="offset",
        number=number,
        task="offset",
        steps=steps,
        rate=rate,
        warm_up=min(20, steps),
        floor=0.02,
        average=0.0,
        batch=_OFFSET_BATCH,
        crop=_OFFSET_CROP,
        margin=_OFFSET_MARGIN,
        trained=LOCALISE,
        localise_rate=1.0,
        objective=settings.objective,
        augment=augment,
        variety=replace(settings.variety, sensor=0.5, lights=0.0, foreign=0.0, void=0.0, gaps=0.0),
    )


def _whole(settings: Settings) -> TrainingStage:
    config = settings.training
    return TrainingStage(
        name="whole",
        number=5,
        task="image",
        steps=config.steps,
        rate=config.learning_rate,
        warm_up=config.warm_up,
        floor=0.01,
        average=config.average,
        batch=config.batch,
        crop=config.crop,
        margin=config.margin,
        trained=(),
        localise_rate=config.localise_rate,
        objective=replace(settings.objective, pattern=0.0),
        augment=settings.augment,
        variety=settings.variety,
        stops_early=True,
    )


def _told(settings: Settings) -> TrainingStage:
    """As `_simple`, with the true offset."""
    config = settings.training
    return replace(
        _simple(settings),
        name="told",
        number=2,
        steps=config.told_steps,
        rate=config.told_rate,
        localise_rate=0.0,
        told=True,
    )


def _simple(settings: Settings) -> TrainingStage:
    """As `_early`, in simple countries."""
    config = settings.training
    return replace(
        _early(settings),
        name="simple",
        number=3,
        steps=config.simple_steps,
        rate=config.simple_rate,
        simple=True,
    )


def _early(settings: Settings) -> TrainingStage:
    """In an easier world: errors in the log domain alone, no even lights, and fewer layers that belong elsewhere.
    What layers tell is learnt here; how far to trust them, and how bright the brightest are, later."""
    config, variety, whole = settings.training, settings.variety, _whole(settings)
    return replace(
        whole,
        name="early",
        number=4,
        steps=config.early_steps,
        rate=config.early_rate,
        objective=replace(whole.objective, linear=0.0),
        variety=replace(variety, even=0.0, foreign=_EARLY_FOREIGN * variety.foreign),
        stops_early=False,
    )


def _finish(settings: Settings) -> TrainingStage:
    """With the last step that is deployed, which holds sums of lights. It comes late: a network that learnt with it
    from the start gained 0.2 dB less in unseen countries of all styles, believed blindly (docs/model-card.md).

    Where it is short, as in fine-tuning, so are its warm-up and its average, or the weights would hardly move.
    """
    config = settings.training
    return replace(
        _whole(settings),
        name="finish",
        number=6,
        steps=config.finish_steps,
        rate=config.finish_rate,
        warm_up=min(config.warm_up, config.finish_steps // 10),
        average=min(config.average, 1.0 - 5.0 / max(5, config.finish_steps)),
        objective=settings.objective,
        holds_sums=True,
        stops_early=False,
    )
