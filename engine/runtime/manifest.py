"""What a model folder says about itself: manifest.json, parsed and checked. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS, SCALE, InputSpec
from deeplight.engine.network.config import canonical

SCHEMA = 3
MANIFEST_NAME = "manifest.json"
WEIGHTS = "model.safetensors"
"""The weights in float32, from which PyTorch runs every precision and every other file is exported."""
WEIGHTS_NOTE = "deeplight.weights_sha256"
CONFIGURATION_NOTE = "deeplight.configuration_sha256"
HALO_NOTE = "deeplight.halo_lr"
"""Keys of an ONNX file's metadata: SHA-256 of the weights and of the configuration (`Manifest.configuration_digest`)
that it was exported from, and the halo that it needs."""
WEIGHT_PRECISIONS = ("fp32", "fp16", "bf16")
"""Precisions that PyTorch runs from the weights (network.precision)."""
OPENVINO_PRECISIONS = ("fp32", "bf16")
"""What OpenVINO computes in on a CPU; it would run float16 files in float32."""
OPENVINO_ALONE = ("bf16",)
"""Precisions of ONNX files that are for OpenVINO alone: ONNX Runtime does not compute in bfloat16 on a CPU."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNITS = {
    "ntl": "nW/cm²/sr",
    "dmo": "reflectance",
    "dem": "m",
    "ntl_hr": "nW/cm²/sr",
    "isp": "probability",
    "offset": "LR px",
    "psf": "LR px",
    "limits": "nW/cm²/sr",
    "interval": "nW/cm²/sr",
}


@dataclass(frozen=True)
class TensorInfo:
    """One named input or output. grid: "lr" (h, w), "hr" (8h, 8w) or "none" (a vector per sample)."""

    name: str
    channels: int
    grid: str
    unit: str


@dataclass(frozen=True)
class FileInfo:
    """Checksum and size of one file of the folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class EngineInfo:
    """An engine of TensorRT for RTX. capabilities: compute capabilities of the GPUs that it runs on, as in "8.9".
    library: version of tensorrt-rtx. model: SHA-256 of the ONNX file that it was built from."""

    precision: str
    capabilities: tuple[str, ...]
    library: str
    model: str


def tensor_infos(specs: Sequence[InputSpec]) -> tuple[TensorInfo, ...]:
    """The manifest's form of `spec.INPUTS` or `spec.OUTPUTS`, with the contract's units."""
    grids = {True: "hr", False: "lr", None: "none"}
    return tuple(TensorInfo(s.name, s.channels, grids[s.hr], _UNITS.get(s.name, "1")) for s in specs)


@dataclass(frozen=True)
class Manifest:
    """What a model folder says about itself.

    configuration: network.config.ModelConfig as plain values: preset, widths, d_max, normalisation.
    receptive_field_lr: radius in LR pixels that an output pixel can see; halo_lr ≥ that, the halo tiles need.
    multiple_lr, min_lr: tile sides in LR pixels must be multiples of the first and at least the second.
    bytes_per_lr_px: peak working memory of one run per LR pixel of the tile, measured; 0 where unknown.
    precisions: precision name → ONNX file; empty in a run of deeplight-train. engines: file name → what it runs on.
    files: file name → checksum and size, the weights (WEIGHTS) among them; filled by `artifact.write_artifact`.
    training, producer: a record for people.
    """

    name: str
    configuration: Mapping[str, Any]
    receptive_field_lr: float
    halo_lr: int
    precisions: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, EngineInfo] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = field(default_factory=lambda: tensor_infos(INPUTS))
    outputs: tuple[TensorInfo, ...] = field(default_factory=lambda: tensor_infos(OUTPUTS))
    dmo_slots: tuple[str, ...] = DMO_SLOTS
    scale: int = SCALE
    multiple_lr: int = 1
    min_lr: int = 1
    bytes_per_lr_px: int = 0
    files: Mapping[str, FileInfo] = field(default_factory=dict)

    @property
    def preset(self) -> str:
        """Name of the network's configuration."""
        return str(self.configuration["preset"])

    @property
    def d_max(self) -> float:
        """Largest offset along an axis that the model makes, in LR pixels."""
        return float(self.configuration["d_max"])

    def offered(self, kind: str = "onnx") -> Mapping[str, str]:
        """Precision → file of a kind: "onnx" (for ONNX Runtime, and the source of TensorRT's), "openvino" (those ONNX
        files that OpenVINO runs as they are meant), "engines" (TensorRT for RTX; the first of those for several GPUs),
        or "weights" for what PyTorch runs."""
        if kind == "engines":
            return {e.precision: name for name, e in reversed(list(self.engines.items()))}
        if kind == "weights":
            return dict.fromkeys(WEIGHT_PRECISIONS, WEIGHTS)
        files = self.precisions.items()
        if kind == "openvino":
            return {p: name for p, name in files if p in OPENVINO_PRECISIONS}
        return {p: name for p, name in files if p not in OPENVINO_ALONE}

    @property
    def identity(self) -> str:
        """SHA-256 of the configuration and the weights: the same model, whatever else was exported from it."""
        return _sha256(f"{self._configuration()}\n{self.files[WEIGHTS].sha256}")

    @property
    def configuration_digest(self) -> str:
        """SHA-256 of the configuration, however its numbers are written."""
        return _sha256(self._configuration())

    def _configuration(self) -> str:
        return json.dumps(canonical(self.configuration), sort_keys=True)

    def to_json(self) -> str:
        """The text of manifest.json. Raises ValueError where JSON cannot hold a record (NaN)."""
        d = {"schema": SCHEMA, **dataclasses.asdict(self)}
        d["shape_rules"] = {"multiple_lr": d.pop("multiple_lr"), "min_lr": d.pop("min_lr")}
        return json.dumps(d, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parse and validate manifest.json. Raises ArtifactError in one sentence."""
        try:
            d = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ArtifactError(f"{MANIFEST_NAME} is not JSON: {e}") from None
        if not isinstance(d, dict) or d.get("schema") != SCHEMA:
            found = d.get("schema") if isinstance(d, dict) else type(d).__name__
            raise ArtifactError(
                f"{MANIFEST_NAME} has schema {found!r} and this version reads {SCHEMA}, whose models are told the blur "
                "and the noise of the lights: train it again, with deeplight-train --out RUN, or use the built-in model"
            )
        try:
            manifest = _parse(d)
        except (KeyError, TypeError, ValueError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise ArtifactError(f"{MANIFEST_NAME} is not valid: {what}") from None
        return manifest


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(d: dict[str, Any]) -> Manifest:
    """Fields of a manifest of this schema. Raises KeyError, TypeError or ValueError; `from_json` words them."""
    rules = _mapping(d, "shape_rules")
    manifest = Manifest(
        name=_text(d, "name"),
        configuration=_mapping(d, "configuration"),
        receptive_field_lr=float(d["receptive_field_lr"]),
        halo_lr=_integer(d, "halo_lr", 0),
        precisions={str(k): str(v) for k, v in _mapping(d, "precisions").items()},
        engines={k: _engine(v) for k, v in _mapping(d, "engines").items()} if "engines" in d else {},
        training=_mapping(d, "training"),
        producer=_mapping(d, "producer"),
        inputs=tuple(TensorInfo(**t) for t in d["inputs"]),
        outputs=tuple(TensorInfo(**t) for t in d["outputs"]),
        dmo_slots=tuple(d["dmo_slots"]),
        scale=_integer(d, "scale", 1),
        multiple_lr=_integer(rules, "multiple_lr", 1),
        min_lr=_integer(rules, "min_lr", 1),
        bytes_per_lr_px=_integer(d, "bytes_per_lr_px", 0) if "bytes_per_lr_px" in d else 0,
        files={
            k: FileInfo(_text(v, "sha256"), _integer(v, "bytes", 0)) for k, v in _mapping(d, "files").items()
        },
    )
    _text(d["configuration"], "preset")
    _positive(d["configuration"], "d_max")
    _check_against_spec(manifest)
    _check_files(manifest)
    return manifest


def _engine(d: dict[str, Any]) -> EngineInfo:
    capabilities = tuple(str(c) for c in d["capabilities"])
    return EngineInfo(_text(d, "precision"), capabilities, _text(d, "library"), _text(d, "model"))


def _mapping(d: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(d[key], dict):
        raise TypeError(f'"{key}" must be an object')
    return dict(d[key])


def _text(d: Mapping[str, Any], key: str) -> str:
    if not isinstance(d[key], str) or not d[key]:
        raise TypeError(f'"{key}" must be a text')
    return str(d[key])


def _positive(d: Mapping[str, Any], key: str) -> None:
    number = isinstance(d[key], int | float) and not isinstance(d[key], bool)
    if not number or not 0 < d[key] < math.inf:
        raise TypeError(f'"{key}" must be a number above 0')


def _integer(d: Mapping[str, Any], key: str, least: int) -> int:
    if not isinstance(d[key], int) or isinstance(d[key], bool) or d[key] < least:
        raise TypeError(f'"{key}" must be an integer ≥ {least}')
    return int(d[key])


def _check_against_spec(m: Manifest) -> None:
    """The tensors, slots and scale that this engine feeds and reads."""
    if m.scale != SCALE:
        raise ValueError(f"the model's scale is {m.scale}; this engine refines {SCALE}×")
    if m.dmo_slots != DMO_SLOTS:
        raise ValueError(f"the DMO slots are {m.dmo_slots}; this engine feeds {DMO_SLOTS}")
    if not math.isfinite(m.receptive_field_lr) or not 0 <= m.receptive_field_lr <= m.halo_lr:
        raise ValueError(f"a halo of {m.halo_lr} is below the receptive field of {m.receptive_field_lr}")

    def shapes(infos: Sequence[TensorInfo]) -> dict[str, tuple[int, str]]:
        return {t.name: (t.channels, t.grid) for t in infos}

    if shapes(m.inputs) != (want := shapes(tensor_infos(INPUTS))):
        raise ValueError(f"the inputs are {shapes(m.inputs)}; this engine feeds {want}")
    known, given = shapes(tensor_infos(OUTPUTS)), shapes(m.outputs)
    if "ntl_hr" not in given or any(known.get(k) != v for k, v in given.items()):
        raise ValueError(f"the outputs are {given}; this engine reads ntl_hr and at most {known}")


def _check_files(m: Manifest) -> None:
    """Plain names only, a checksum for each, the weights and every precision's file listed."""
    for name, info in m.files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
            raise ValueError(f"{name!r} is not a plain file name")
        if not _SHA256.fullmatch(info.sha256):
            raise ValueError(f"the checksum of {name!r} is not a SHA-256")
    if WEIGHTS not in m.files:
        raise ValueError(f"the weights {WEIGHTS!r} are not listed under files")
    for precision, name in m.precisions.items():
        if name not in m.files:
            raise ValueError(f"the file {name!r} of precision {precision!r} is not listed under files")
    for name in m.engines:
        if name not in m.files:
            raise ValueError(f"the engine {name!r} is not listed under files")
