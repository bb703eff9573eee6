"""Frozen configurations: the network with its named presets, and all that decides a training run besides the data."""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deeplight.engine.errors import InputError


@dataclass(frozen=True)
class Normalisation:
    """Fixed constants that live in the graph; never statistics of a tile or a scene.

    Radiance x becomes log1p(max(x, 0) / ntl_unit) / ntl_gain; a band becomes (x − mean) / std; elevation likewise.
    """

    ntl_unit: float = 1.0
    ntl_gain: float = 2.0
    ntl_max: float = 1e6
    dmo_mean: tuple[float, ...] = (0.06, 0.07, 0.09, 0.10, 0.24, 0.21, 0.15)
    dmo_std: tuple[float, ...] = (0.04, 0.05, 0.06, 0.07, 0.11, 0.11, 0.10)
    dem_mean: float = 400.0
    dem_std: float = 500.0


FUSIONS = ("modulate", "concatenate")


@dataclass(frozen=True)
class ModelConfig:
    """Widths and depths of DeepLightSR. Tuples run over the scales ×1, ×2, ×4, ×8.

    main: channels of the NTL features. aux: channels of each modality's features.
    body: residual 3×3 convolutions after the fusion at ×1. refine: 3×3 convolutions in each refinement.
    localise_width: channels of the pointwise layers that estimate the offset.
    d_max: bound of the offset in LR pixels; the search covers ±2.
    align, fusion, embed_isp take the paper's modules out, for ablation: align False estimates no offset (0 everywhere);
    fusion "concatenate" has a pointwise layer in place of the weighted modulation; embed_isp False keeps the impervious
    probability out of the features.
    """

    preset: str = "tiny"
    main: tuple[int, int, int, int] = (64, 32, 32, 8)
    aux: tuple[int, int, int, int] = (32, 32, 16, 8)
    body: int = 2
    refine: tuple[int, int, int] = (1, 1, 1)
    localise_width: int = 32
    d_max: float = 2.0
    align: bool = True
    fusion: str = "modulate"
    embed_isp: bool = True
    normalisation: Normalisation = Normalisation()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """A configuration from `to_dict`'s values (lists where JSON made lists of tuples).

        Raises ValueError, KeyError, TypeError or AttributeError where they are not such.
        """
        fields = {k: v for k, v in values.items() if k != "normalisation"}
        norm = Normalisation(**_tuples(values["normalisation"]))
        config = ModelConfig(**_tuples(fields), normalisation=norm)
        _check(config)
        return config


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _check(config: ModelConfig) -> None:
    """Raise ValueError in one sentence where a field is not what the network can be built from."""
    for name, count, least in (("main", 4, 1), ("aux", 4, 1), ("refine", 3, 0)):
        value = getattr(config, name)
        if not (isinstance(value, tuple) and len(value) == count and all(_whole(v, least) for v in value)):
            raise ValueError(f"{name} must be {count} integers from {least} on, not {reprlib.repr(value)}")
    for name, least in (("body", 0), ("localise_width", 1)):
        if not _whole(getattr(config, name), least):
            given = reprlib.repr(getattr(config, name))
            raise ValueError(f"{name} must be an integer from {least} on, not {given}")
    if not (_number(config.d_max) and config.d_max > 0):
        raise ValueError(f"d_max must be a number above 0, not {reprlib.repr(config.d_max)}")
    for name in ("align", "embed_isp"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, not {reprlib.repr(getattr(config, name))}")
    if config.fusion not in FUSIONS:
        raise ValueError(f"fusion must be {' or '.join(FUSIONS)}, not {reprlib.repr(config.fusion)}")
    if not isinstance(config.preset, str):
        raise ValueError(f"preset must be a text, not {reprlib.repr(config.preset)}")
    for name, default in asdict(Normalisation()).items():
        value = getattr(config.normalisation, name)
        wanted = len(default) if isinstance(default, tuple) else 0
        parts = value if wanted and isinstance(value, tuple) else (value,)
        if len(parts) != (wanted or 1) or not all(_number(v) for v in parts):
            kind = f"{wanted} numbers" if wanted else "a number"
            raise ValueError(f"normalisation.{name} must be {kind}, not {reprlib.repr(value)}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "base": ModelConfig(
        preset="base",
        main=(128, 96, 64, 48),
        aux=(64, 64, 48, 32),
        body=4,
        refine=(3, 3, 2),
        localise_width=64,
    ),
}


def preset(name: str) -> ModelConfig:
    """The named preset; InputError names the ones there are."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective.

    alpha: share of the radiance term. beta: weights of the outputs at ×2, ×4, ×8.
    consistency: weight of |log mean(output) − log mean(truth)| over 8×8 blocks; keeps sums of lights, which a mean
    absolute error in the log domain alone would lower (it estimates a median).
    squared: weight of the mean squared error of the finest output, whose optimum is the mean (of log radiance) rather
    than the median: what reflectance does not tell, such as a block's lamps, is then spread evenly and PSNR rises.
    totals: weight of each crop's relative error in its sum of lights (physical units).
    offset: weight of the offset's error where the true field is known (synthetic and degraded data).
    literal_isp: BCE between the normalised radiance and ISP, as the paper prints it; for ablation only, since it
    raises the radiance of every impervious pixel.
    """

    alpha: float = field(default=0.8, metadata={"least": 0, "most": 1})
    beta: tuple[float, float, float] = field(default=(0.25, 0.5, 1.0), metadata={"least": 0})
    consistency: float = field(default=0.2, metadata={"least": 0})
    squared: float = field(default=4.0, metadata={"least": 0})
    totals: float = field(default=0.0, metadata={"least": 0})
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
class TrainConfig:
    """The stages of a run, in the order in which they are made; see `stages.plan`.

    light_steps, localise_steps: steps of the offset's layers alone. told_steps, told_rate: steps of everything else,
    aligned with the true offset, and their learning rate. steps, learning_rate: the whole network, aligned with its own
    estimate. localise_rate: learning rate of the offset's layers there, relative to the others (0 freezes them: crops
    cut their window off, and going on with them made the offset worse). finish_steps, finish_rate, finish_totals: the
    last stage, its learning rate and its weight of the totals term.
    batch: windows a step, over all processes. crop: their side in LR pixels. margin: their rim without loss.
    average: decay of the moving average of the weights (EMA). clip: largest norm of the gradient. patience: validations
    without a better `monitor` that end the stage of the whole network (0: never).
    precision: 32-true, bf16-mixed or 16-mixed. seed: of the weights, the windows and their augmentation.
    """

    told_steps: int = field(default=1200, metadata={"least": 0})
    told_rate: float = field(default=3e-3, metadata={"above": 0})
    steps: int = field(default=4500, metadata={"least": 1})
    batch: int = field(default=4, metadata={"least": 1})
    crop: int = field(default=44, metadata={"least": 8, "most": 1024})
    margin: int = field(default=8, metadata={"least": 0})
    learning_rate: float = field(default=2e-3, metadata={"above": 0})
    warm_up: int = field(default=100, metadata={"least": 0})
    weight_decay: float = field(default=1e-4, metadata={"least": 0})
    clip: float = field(default=1.0, metadata={"above": 0})
    average: float = field(default=0.995, metadata={"least": 0, "below": 1})
    localise_steps: int = field(default=1000, metadata={"least": 0})
    light_steps: int = field(default=400, metadata={"least": 0})
    localise_rate: float = field(default=0.0, metadata={"least": 0})
    finish_steps: int = field(default=120, metadata={"least": 0})
    finish_rate: float = field(default=5e-4, metadata={"above": 0})
    finish_totals: float = field(default=0.15, metadata={"least": 0})
    patience: int = field(default=0, metadata={"least": 0})
    monitor: str = field(
        default="psnr_log1p",
        metadata={"choices": ("psnr", "psnr_log1p", "psnr_log1p_gain_scene_mean", "rmse", "mae")},
    )
    precision: str = field(default="32-true", metadata={"choices": ("32-true", "bf16-mixed", "16-mixed")})
    validate_every: int = field(default=200, metadata={"least": 1})
    checkpoint_every: int = field(default=200, metadata={"least": 1})
    log_every: int = field(default=20, metadata={"least": 1})
    seed: int = field(default=0, metadata={"least": 0, "below": 2**63})

    def scaled(self, steps: int) -> TrainConfig:
        """The same with `steps` steps of the whole network, and every other stage longer or shorter alike."""
        others = {name: math.ceil(getattr(self, name) * steps / self.steps) for name in SCALED}
        return replace(self, steps=steps, **others)


SCALED = ("light_steps", "localise_steps", "told_steps", "finish_steps")
"""Steps that keep their share where `steps` alone is given."""


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are read.

    protocol: paired (HR lights are given) or wald (everything is degraded 8×, and the LR lights become the truth).
    regions: regions of synthetic countries kept in memory, 12 MB each. workers: processes that read; −1: none on a
    CPU, whose cores the network uses, else up to eight. unreadable: clips that may be unreadable before the run fails.
    validation_places: places that validation looks at.
    """

    protocol: str = field(default="paired", metadata={"choices": ("paired", "wald")})
    regions: int = field(default=320, metadata={"least": 1})
    workers: int = field(default=-1, metadata={"least": -1, "most": 256})
    unreadable: int = field(default=10, metadata={"least": 0})
    validation_places: int = field(default=64, metadata={"least": 1})
