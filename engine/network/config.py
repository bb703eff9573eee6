"""The network as a frozen configuration, and the named presets."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from deeplight.engine.core.errors import InputError


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
_POSITIVE = ("ntl_unit", "ntl_gain", "ntl_max", "dmo_std", "dem_std")
"""Divisors, and the end of a range that begins at 0."""
_SMALLEST, _LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
"""Of the normal float32 numbers above 0."""
_FITS = "that fits float32"


@dataclass(frozen=True)
class ModelConfig:
    """Widths and depths of DeepLightSR. Tuples run over the scales ×1, ×2, ×4 and, for `main`, ×8.

    main: channels of the NTL features. aux: channels of each modality's features, whose encoder begins at ×4.
    body: residual 3×3 convolutions after the fusion at ×1. refine: 3×3 convolutions in each refinement.
    localise_width: channels of the pointwise layers that estimate the offset.
    d_max: bound of the offset in LR pixels; the search covers ±2.
    align, fusion, embed_isp take the paper's modules out, for ablation: align False estimates no offset (0 everywhere);
    fusion "concatenate" has a pointwise layer in place of the weighted modulation; embed_isp False keeps the impervious
    probability out of the features.
    """

    preset: str = "tiny"
    main: tuple[int, int, int, int] = (64, 32, 32, 8)
    aux: tuple[int, int, int] = (32, 32, 16)
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
        """A configuration from `to_dict`'s values (lists where JSON made lists of tuples, 2 where it made that of 2.0).

        Raises ValueError, KeyError, TypeError or AttributeError where they are not such.
        """
        fields = {k: v for k, v in values.items() if k != "normalisation"}
        norm = Normalisation(**_tuples(values["normalisation"]))
        config = ModelConfig(**_tuples(fields), normalisation=norm)
        _check(config)
        norm = Normalisation(**{k: _floats(v) for k, v in asdict(norm).items()})
        return replace(config, d_max=float(config.d_max), normalisation=norm)


def canonical(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that are given, in the form of `to_dict`: equal for equal networks however the numbers are written.

    Fields that are not given stay out, so that a field added by a later version changes nothing. What is no
    configuration is given back as it is.
    """
    try:
        full = ModelConfig.from_dict(dict(values)).to_dict()
        norm = {name: full["normalisation"][name] for name in values["normalisation"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return values
    return {name: full[name] for name in values} | {"normalisation": norm}


def _floats(value: float | tuple[float, ...]) -> Any:
    return tuple(float(v) for v in value) if isinstance(value, tuple) else float(value)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _check(config: ModelConfig) -> None:
    """Raise ValueError in one sentence where a field is not what the network can be built from."""
    for name, count, least in (("main", 4, 1), ("aux", 3, 1), ("refine", 3, 0)):
        value = getattr(config, name)
        if not (isinstance(value, tuple) and len(value) == count and all(_whole(v, least) for v in value)):
            raise ValueError(f"{name} must be {count} integers from {least} on, not {reprlib.repr(value)}")
    for name, least in (("body", 0), ("localise_width", 1)):
        if not _whole(getattr(config, name), least):
            given = reprlib.repr(getattr(config, name))
            raise ValueError(f"{name} must be an integer from {least} on, not {given}")
    if not _number(config.d_max, positive=True):
        raise ValueError(f"d_max must be a number above 0 {_FITS}, not {reprlib.repr(config.d_max)}")
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
        positive = name in _POSITIVE
        if len(parts) != (wanted or 1) or not all(_number(v, positive=positive) for v in parts):
            kind = f"{wanted} numbers" if wanted else "a number"
            above = " above 0" if positive else ""
            raise ValueError(f"normalisation.{name} must be {kind}{above} {_FITS}, not {reprlib.repr(value)}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object, *, positive: bool) -> bool:
    """Whether it is a number that a float32 holds; where `positive`, also one that is not 0 there."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
        return False
    return value >= _SMALLEST or not positive


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "base": ModelConfig(
        preset="base",
        main=(128, 96, 64, 48),
        aux=(64, 64, 48),
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
