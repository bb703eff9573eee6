"""The settings of a run: defaults, then one TOML file, then `--set key=value`, then the options of the command line."""

from __future__ import annotations

import difflib
import math
import reprlib
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import mention
from deeplight.engine.network.config import PRESETS, ModelConfig
from deeplight.train.fit.config import (
    FROM_NOTHING,
    SCALED,
    AugmentConfig,
    DataConfig,
    ObjectiveConfig,
    TrainConfig,
    VarietyConfig,
)

FREE_ON_RESUME = {
    "data.workers",
    "data.unreadable",
    "training.steps",
    "training.log_every",
    "training.checkpoint_every",
    *(f"training.{name}" for name in SCALED),
}
"""Settings that a resumed run may change: they decide its length, or nothing about the weights."""
_TOO_LARGE = 2**64


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run besides the data themselves. One table of the TOML file for each field.

    degradation: fields of `degrade.Degradation` that differ from its defaults, for the protocol wald.
    """

    model: ModelConfig = PRESETS["tiny"]
    training: TrainConfig = field(default_factory=TrainConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    variety: VarietyConfig = field(default_factory=VarietyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, one table for each field."""
        return {**asdict(self), "degradation": dict(self.degradation)}


Tables = dict[str, Any]


FINE_TUNING = {**dict.fromkeys(FROM_NOTHING, 0), "learning_rate": 1e-3}
"""[training] of a run that begins with trained weights, where nothing else is given: no stage that makes something from
nothing, and a lower learning rate."""


def load_settings(
    file: Path | None = None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    start: ModelConfig | None = None,
) -> Settings:
    """Read settings: from a TOML file, then `table.key=value` texts, then options by dotted name (None: not given).

    start: the network of a checkpoint to go on from: the default of [model], and FINE_TUNING's are those of [training].
    Where `training.steps` is given, stages whose steps are not given keep their share of it.
    Raises InputError, which names the setting, what was given and what is accepted.
    """
    tables = _read(file) if file else {}
    for text in sets:
        _assign(tables, *_split(text))
    for name, value in (options or {}).items():
        if value is not None:
            _assign(tables, name, value)
    if start is not None:
        tables = {"model": start.to_dict()} | tables
        own = tables.get("training", {})
        tables["training"] = FINE_TUNING | own if isinstance(own, dict) else own
    return settings_from(tables)


def settings_from(tables: Tables) -> Settings:
    """Make settings of nested values, as TOML or JSON give them. Raises InputError as `load_settings` does."""
    _known(tables, [f.name for f in fields(Settings)], "")
    for name, value in tables.items():
        if not isinstance(value, dict):
            raise InputError(f"setting {name} must be a table such as [{name}], not {value!r}")
    training = tables.get("training", {})
    config = _checked(TrainConfig(), training, "training")
    if "steps" in training:
        scaled = TrainConfig().scaled(config.steps)
        kept = {n: getattr(scaled, n) for n in SCALED if n not in training}
        config = replace(config, **kept)
    if 2 * config.margin >= config.crop:
        raise InputError(
            f"setting training.margin = {config.margin} leaves nothing of training.crop = {config.crop}: "
            "give a margin below half of the crop"
        )
    augment = _checked(AugmentConfig(), tables.get("augment", {}), "augment")
    if augment.dem_shift[0] > augment.dem_shift[1]:
        raise InputError(
            f"setting augment.dem_shift must be [lowest, highest], not {list(augment.dem_shift)}: swap the two"
        )
    reading = _checked(DataConfig(), tables.get("data", {}), "data")
    degradation = _degradation(tables.get("degradation", {}))
    if degradation and reading.protocol != "wald":
        raise InputError(
            'setting degradation belongs to data.protocol = wald: give `protocol="wald"`, or leave it out'
        )
    return Settings(
        _model(tables.get("model", {})),
        config,
        _checked(ObjectiveConfig(), tables.get("objective", {}), "objective"),
        augment,
        _checked(VarietyConfig(), tables.get("variety", {}), "variety"),
        reading,
        degradation,
    )


def differences(ours: Settings, theirs: Mapping[str, Any]) -> list[str]:
    """Return `table.key: then → now` for each setting that decides the weights and differs from `theirs` (of
    to_dict)."""
    then, now = dict(_flat(theirs)), dict(_flat(_json(ours.to_dict())))
    names = sorted((then.keys() | now.keys()) - FREE_ON_RESUME)
    missing = "not set"
    return [
        f"{name}: {then.get(name, missing)} → {now.get(name, missing)}"
        for name in names
        if then.get(name, missing) != now.get(name, missing)
    ]


def of_another_version(theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of settings, of `theirs` (of to_dict) or ours, that the other does not know. Each stage has
    some, so where there are none, the stages are the same."""
    then, now = ({name for name, _ in _flat(each)} for each in (theirs, Settings().to_dict()))
    return sorted(name for name in then ^ now if not name.startswith("degradation"))  # which is given or not


def _read(file: Path) -> Tables:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{mention(config=str(file))} cannot be read ({error.strerror}); give a TOML file"
        ) from error
    except ValueError as error:  # TOML's, UTF-8's, and that of a number of thousands of digits
        raise InputError(f"{mention(config=str(file))} is not TOML: {error}") from error


def _split(text: str) -> tuple[str, Any]:
    """`training.batch=8` → ("training.batch", 8). A value that is not TOML is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"{mention(sets=text)} is not TABLE.KEY=VALUE, such as training.batch=8")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name.strip(), value.strip()


def _assign(tables: Tables, name: str, value: Any) -> None:
    *path, key = name.split(".")
    if not path:
        raise InputError(f"setting {name!r} lacks its table: write TABLE.KEY, such as training.batch")
    for part in path:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise InputError(f"setting {name}: {part} is a value, not a table")
    tables[key] = value


def _known(given: Mapping[str, Any], known: Sequence[str], table: str) -> None:
    """InputError, with the nearest name there is, where a name is not known."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            where = f"{table}.{name}" if table else name
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown setting {where}: {hint}")


def _model(given: Tables) -> ModelConfig:
    """The preset, with the fields given in its place."""
    name = given.get("preset", "tiny")
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"setting model.preset is {name!r}: choose one of {', '.join(PRESETS)}")
    base = PRESETS[name]
    _known(given, [f.name for f in fields(ModelConfig)], "model")
    changed = {k: v for k, v in given.items() if k not in ("normalisation", "preset")}
    norm = given.get("normalisation", {})
    if not isinstance(norm, dict):
        raise InputError(f"setting model.normalisation must be a table, not {norm!r}")
    _known(norm, [f.name for f in fields(base.normalisation)], "model.normalisation")
    values = base.to_dict() | changed
    values["normalisation"] = base.to_dict()["normalisation"] | norm
    try:
        return ModelConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"setting model.{error}") from error


def _degradation(given: Tables) -> tuple[tuple[str, float], ...]:
    """The fields given, by their own or short names, checked against the degradation's own rules."""
    if not given:
        return ()
    from deeplight.train.clips.degrade import SHORT, Degradation

    named = {SHORT.get(name, name): value for name, value in given.items()}
    if len(named) < len(given):
        raise InputError(f"a setting of degradation is given twice, in {', '.join(given)}: give each once")
    _checked(Degradation(), named, "degradation")
    return tuple(sorted(named.items()))


def _checked(default: Any, given: Tables, table: str) -> Any:
    """`default` with the fields given, each of its type and in its range."""
    _known(given, [f.name for f in fields(default)], table)
    kinds = typing.get_type_hints(type(default))
    limits = {f.name: f.metadata for f in fields(default)}
    return replace(default, **{k: _value(f"{table}.{k}", v, kinds[k], limits[k]) for k, v in given.items()})


def _value(name: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    """`value` as `kind` within `limits`, or InputError."""
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise InputError(f"setting {name} must be a list of {len(parts)} values, not {value!r}")
        return tuple(_value(name, v, k, limits) for v, k in zip(value, parts, strict=True))
    kinds = typing.get_args(kind) or (kind,)
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        raise InputError(f"setting {name} must be less than 2^64; it has {value.bit_length()} bits")
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        text = " or ".join(wanted[k] for k in kinds if k in wanted)
        raise InputError(f"setting {name} must be {text}, not {_brief(value)}")
    broken = [
        text
        for key, text, fails in (
            ("least", "{} or more", lambda limit: value < limit),
            ("above", "more than {}", lambda limit: value <= limit),
            ("most", "{} or less", lambda limit: value > limit),
            ("below", "less than {}", lambda limit: value >= limit),
            ("choices", "one of {}", lambda limit: value not in limit),
        )
        if key in limits and fails(limits[key])
        for text in [text.format(_listed(limits[key]))]
    ]
    if broken:
        raise InputError(f"setting {name} must be {' and '.join(broken)}, not {value!r}")
    return value


def _brief(value: Any) -> str:
    """Return the value as it was given, shortened where it is longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else reprlib.repr(value)


def _listed(limit: Any) -> str:
    return ", ".join(limit) if isinstance(limit, tuple) else str(limit)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if is_dataclass(value) and not isinstance(value, type):
        return _json(asdict(value))
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, list | tuple) else value
