"""All that decides a training run besides the network and the data, as frozen configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective.

    alpha: share of the radiance term. beta: weights of the outputs at ×2, ×4, ×8.
    consistency: weight of |log mean(output) − log mean(truth)| over 8×8 blocks; keeps sums of lights, which a mean
    absolute error in the log domain alone would lower (it estimates a median).
    squared: weight of the mean squared error of the finest output, whose optimum is the mean (of log radiance) rather
    than the median: what reflectance does not tell, such as a block's lamps, is then spread evenly and PSNR rises.
    linear: weight of each crop's squared error of the radiance itself, relative to its variance: an error in the log
    domain alone lets the brightest pixels go astray.
    pattern: weight of the pattern that the last stage leaves on even lights, and of what it takes from them where they
    end at nodata (`even.even_errors`).
    totals: weight of each crop's relative error in its sum of lights (physical units).
    interval: weight of the quantile loss that teaches the interval's ends.
    offset: weight of the offset's error where the true field is known (synthetic and degraded data).
    literal_isp: BCE between the normalised radiance and ISP, as the paper prints it; for ablation only, since it
    raises the radiance of every impervious pixel.
    """

    alpha: float = field(default=0.8, metadata={"least": 0, "most": 1})
    beta: tuple[float, float, float] = field(default=(0.25, 0.5, 1.0), metadata={"least": 0})
    consistency: float = field(default=0.2, metadata={"least": 0})
    squared: float = field(default=4.0, metadata={"least": 0})
    linear: float = field(default=0.15, metadata={"least": 0})
    pattern: float = field(default=1.0, metadata={"least": 0})
    totals: float = field(default=0.0, metadata={"least": 0})
    interval: float = field(default=0.5, metadata={"least": 0})
    offset: float = field(default=0.1, metadata={"least": 0})
    literal_isp: bool = False


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities of the augmentations, each drawn per sample.

    turn: one of the eight symmetries of the square. drop_dmo, drop_dem, drop_both, drop_bands: layers and bands taken
    away. hole: a nodata rectangle, for each of the three layers. cut: NTL that is 0, though not declared as nodata, on
    one side of a line (a country cut out of its surroundings). gain_octaves: bounds the brightness factor 2^±x.
    dem_shift: lowest and highest elevation, in metres, that is added.
    """

    turn: float = field(default=1.0, metadata={"least": 0, "most": 1})
    drop_dmo: float = field(default=0.12, metadata={"least": 0, "most": 1})
    drop_dem: float = field(default=0.2, metadata={"least": 0, "most": 1})
    drop_both: float = field(default=0.1, metadata={"least": 0, "most": 1})
    drop_bands: float = field(default=0.25, metadata={"least": 0, "most": 1})
    hole: float = field(default=0.25, metadata={"least": 0, "most": 1})
    cut: float = field(default=0.1, metadata={"least": 0, "most": 1})
    gain_octaves: float = field(default=2.0, metadata={"least": 0, "most": 8})
    dem_shift: tuple[float, float] = (-200.0, 600.0)


@dataclass(frozen=True)
class VarietyConfig:
    """Probabilities with which a window becomes one of another world, drawn per sample; see `variety.varied`.

    sensor: another blur, noise and saturation. lights: other lights, of which the next six are the shares or
    probabilities: texture (lights without fabric), night (nearly none), even (one level), dark (built-up land without
    light), smooth (a truth that is blurred itself), points (boats, flares, camps). colours: other daytime spectra.
    foreign: layers that belong elsewhere. void: bands that say nothing. gaps: nodata as composites have it, for each of
    the three layers.
    """

    sensor: float = field(default=1.0, metadata={"least": 0, "most": 1})
    lights: float = field(default=0.7, metadata={"least": 0, "most": 1})
    texture: float = field(default=0.2, metadata={"least": 0, "most": 1})
    night: float = field(default=0.06, metadata={"least": 0, "most": 1})
    even: float = field(default=0.1, metadata={"least": 0, "most": 1})
    dark: float = field(default=0.2, metadata={"least": 0, "most": 1})
    smooth: float = field(default=0.6, metadata={"least": 0, "most": 1})
    points: float = field(default=0.3, metadata={"least": 0, "most": 1})
    colours: float = field(default=0.85, metadata={"least": 0, "most": 1})
    foreign: float = field(default=0.2, metadata={"least": 0, "most": 1})
    void: float = field(default=0.04, metadata={"least": 0, "most": 1})
    gaps: float = field(default=0.2, metadata={"least": 0, "most": 1})


@dataclass(frozen=True)
class TrainConfig:
    """The stages of a run, in the order in which they are made; see `stages.plan`.

    light_steps, localise_steps: steps of the offset's layers alone. told_steps, told_rate: steps of everything else,
    aligned with the true offset, and their learning rate. simple_steps, simple_rate: the same, aligned with the
    network's own estimate, in simple countries where the data have some. early_steps, early_rate: the same in all
    countries. Until here the world is an easier one (`stages.plan`). steps, learning_rate: the same in the world as it
    is set. localise_rate: learning rate of the offset's layers there, relative to the others (0 freezes them: crops cut
    their window off, and going on with them made the offset worse). finish_steps, finish_rate: the last stage, whose
    last step holds sums, and its learning rate.
    batch: windows a step, over all processes. crop: their side in LR pixels. margin: their rim without loss.
    average: decay of the moving average of the weights (EMA). clip: largest norm of the gradient. patience: validations
    without a better `monitor` that end the stage of the whole network (0: never).
    precision: 32-true, bf16-mixed or 16-mixed. seed: of the weights, the windows and their augmentation.
    """

    told_steps: int = field(default=400, metadata={"least": 0})
    told_rate: float = field(default=3e-3, metadata={"above": 0})
    simple_steps: int = field(default=1600, metadata={"least": 0})
    simple_rate: float = field(default=2e-3, metadata={"above": 0})
    early_steps: int = field(default=3400, metadata={"least": 0})
    early_rate: float = field(default=1.5e-3, metadata={"above": 0})
    steps: int = field(default=4200, metadata={"least": 1})
    batch: int = field(default=4, metadata={"least": 1})
    crop: int = field(default=44, metadata={"least": 8, "most": 1024})
    margin: int = field(default=8, metadata={"least": 0})
    learning_rate: float = field(default=1.2e-3, metadata={"above": 0})
    warm_up: int = field(default=100, metadata={"least": 0})
    weight_decay: float = field(default=1e-4, metadata={"least": 0})
    clip: float = field(default=1.0, metadata={"above": 0})
    average: float = field(default=0.995, metadata={"least": 0, "below": 1})
    localise_steps: int = field(default=500, metadata={"least": 0})
    light_steps: int = field(default=200, metadata={"least": 0})
    localise_rate: float = field(default=0.0, metadata={"least": 0})
    finish_steps: int = field(default=1500, metadata={"least": 0})
    finish_rate: float = field(default=8e-4, metadata={"above": 0})
    patience: int = field(default=0, metadata={"least": 0})
    monitor: str = field(
        default="psnr_log1p",
        metadata={"choices": ("psnr", "psnr_log1p", "psnr_log1p_gain_scene_mean", "rmse", "mae")},
    )
    precision: str = field(default="32-true", metadata={"choices": ("32-true", "bf16-mixed", "16-mixed")})
    validate_every: int = field(default=500, metadata={"least": 1})
    checkpoint_every: int = field(default=200, metadata={"least": 1})
    log_every: int = field(default=20, metadata={"least": 1})
    seed: int = field(default=0, metadata={"least": 0, "below": 2**63})

    def scaled(self, steps: int) -> TrainConfig:
        """The same with `steps` steps of the whole network, and every other stage longer or shorter alike."""
        others = {name: math.ceil(getattr(self, name) * steps / self.steps) for name in SCALED}
        return replace(self, steps=steps, **others)


FROM_NOTHING = ("light_steps", "localise_steps", "told_steps", "simple_steps", "early_steps")
"""Steps of the stages that make something from random weights."""

SCALED = (*FROM_NOTHING, "finish_steps")
"""Steps that keep their share where `steps` alone is given."""


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are read.

    protocol: paired (HR lights are given) or wald (everything is degraded 8×, and the LR lights become the truth).
    regions: regions of synthetic countries kept in memory, 12 MB each; half as many simple ones beside them at first.
    workers: processes that read; −1: none on a CPU, whose cores the network uses, else up to eight. unreadable: clips
    that may be unreadable before the run fails. validation_places: places that validation looks at.
    """

    protocol: str = field(default="paired", metadata={"choices": ("paired", "wald")})
    regions: int = field(default=320, metadata={"least": 1})
    workers: int = field(default=-1, metadata={"least": -1, "most": 256})
    unreadable: int = field(default=10, metadata={"least": 0})
    validation_places: int = field(default=64, metadata={"least": 1})
