"""The model artifact: a manifest and checksummed files. `export` writes it, the engine reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS, SCALE, InputSpec
from deeplight.engine.runtime.file_checks import check_file

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
MODELS = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "deeplight-tiny"
_MAX_MANIFEST_BYTES = 1 << 22
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNITS = {
    "ntl": "nW/cm²/sr",
    "dmo": "reflectance",
    "dem": "m",
    "ntl_hr": "nW/cm²/sr",
    "isp": "probability",
    "offset": "LR px",
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
    """Checksum and size of one file of the artifact."""

    sha256: str
    bytes: int


def tensor_infos(specs: Sequence[InputSpec]) -> tuple[TensorInfo, ...]:
    """The manifest's form of `spec.INPUTS` or `spec.OUTPUTS`, with the contract's units."""
    grids = {True: "hr", False: "lr", None: "none"}
    return tuple(TensorInfo(s.name, s.channels, grids[s.hr], _UNITS.get(s.name, "1")) for s in specs)


@dataclass(frozen=True)
class Manifest:
    """What an artifact says about itself.

    receptive_field_lr: radius in LR pixels that an output pixel can see; halo_lr ≥ that, the halo tiles need.
    multiple_lr, min_lr: tile sides in LR pixels must be multiples of the first and at least the second.
    bytes_per_lr_px: peak working memory of one run per LR pixel of the tile, measured; 0 where unknown.
    precisions: precision name → ONNX file. programs: precision name → torch.export program without weights, which
    are in the safetensors file `weights` ("" where there is no program). files: file name → checksum and size,
    filled by `write_artifact`.
    normalisation, training, producer: a record for people; the graph itself applies the normalisation.
    """

    name: str
    preset: str
    receptive_field_lr: float
    halo_lr: int
    precisions: Mapping[str, str]
    normalisation: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = field(default_factory=lambda: tensor_infos(INPUTS))
    outputs: tuple[TensorInfo, ...] = field(default_factory=lambda: tensor_infos(OUTPUTS))
    dmo_slots: tuple[str, ...] = DMO_SLOTS
    scale: int = SCALE
    multiple_lr: int = 1
    min_lr: int = 1
    bytes_per_lr_px: int = 0
    programs: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    files: Mapping[str, FileInfo] = field(default_factory=dict)

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
                f"{MANIFEST_NAME} has schema {found!r}; this version reads {SCHEMA}: export the model again"
            )
        try:
            manifest = _parse(d)
        except (KeyError, TypeError, ValueError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise ArtifactError(f"{MANIFEST_NAME} is not valid: {what}") from None
        return manifest


def _parse(d: dict[str, Any]) -> Manifest:
    """Fields of a schema-1 manifest. Raises KeyError, TypeError or ValueError; `from_json` words them."""
    rules = _mapping(d, "shape_rules")
    manifest = Manifest(
        name=_text(d, "name"),
        preset=_text(d, "preset"),
        receptive_field_lr=float(d["receptive_field_lr"]),
        halo_lr=_integer(d, "halo_lr", 0),
        precisions={str(k): str(v) for k, v in _mapping(d, "precisions").items()},
        normalisation=_mapping(d, "normalisation"),
        training=_mapping(d, "training"),
        producer=_mapping(d, "producer"),
        inputs=tuple(TensorInfo(**t) for t in d["inputs"]),
        outputs=tuple(TensorInfo(**t) for t in d["outputs"]),
        dmo_slots=tuple(d["dmo_slots"]),
        scale=_integer(d, "scale", 1),
        multiple_lr=_integer(rules, "multiple_lr", 1),
        min_lr=_integer(rules, "min_lr", 1),
        bytes_per_lr_px=_integer(d, "bytes_per_lr_px", 0) if "bytes_per_lr_px" in d else 0,
        programs={str(k): str(v) for k, v in _mapping(d, "programs").items()} if "programs" in d else {},
        weights=str(d.get("weights", "")),
        files={
            k: FileInfo(_text(v, "sha256"), _integer(v, "bytes", 0)) for k, v in _mapping(d, "files").items()
        },
    )
    _check_against_spec(manifest)
    _check_files(manifest)
    return manifest


def _mapping(d: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(d[key], dict):
        raise TypeError(f'"{key}" must be an object')
    return dict(d[key])


def _text(d: Mapping[str, Any], key: str) -> str:
    if not isinstance(d[key], str) or not d[key]:
        raise TypeError(f'"{key}" must be a text')
    return str(d[key])


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
    """Plain names only, a checksum for each, every precision's file listed."""
    for name, info in m.files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
            raise ValueError(f"{name!r} is not a plain file name")
        if not _SHA256.fullmatch(info.sha256):
            raise ValueError(f"the checksum of {name!r} is not a SHA-256")
    if not m.precisions:
        raise ValueError('"precisions" is empty')
    for precision, name in (*m.precisions.items(), *m.programs.items()):
        if name not in m.files:
            raise ValueError(f"the file {name!r} of precision {precision!r} is not listed under files")
    if m.programs and m.weights not in m.files:
        raise ValueError(f"the file {m.weights!r} with the weights is not listed under files")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact. digest: SHA-256 of manifest.json, which holds those of all other files.

    trusted: the user vouches for native code in it (TensorRT plans).
    """

    path: Path
    manifest: Manifest
    digest: str
    trusted: bool = False

    def offered(self, kind: str = "onnx") -> Mapping[str, str]:
        """Precision → file of a kind: "onnx" or "program"."""
        return self.manifest.programs if kind == "program" else self.manifest.precisions

    def file(self, precision: str, kind: str = "onnx") -> Path:
        """The model file of a precision. Raises ArtifactError where the artifact has none."""
        name = self.offered(kind).get(precision)
        if name is None:
            have = ", ".join(self.offered(kind)) or "none"
            what = "torch program of precision" if kind == "program" else "precision"
            raise ArtifactError(f"the model {self.manifest.name} has no {what} {precision}; it has {have}")
        return self.path / name

    def read(self, precision: str, kind: str = "onnx") -> bytes:
        """The verified bytes of the model file: what was checked is what is used."""
        return self.read_file(self.file(precision, kind).name)

    def read_file(self, name: str) -> bytes:
        """The verified bytes of a listed file. Raises ArtifactError where it is not listed or was changed."""
        if name not in self.manifest.files:
            raise ArtifactError(f"the model {self.manifest.name} has no file {name!r}")
        data = _verified(self.path, name, self.manifest.files[name])
        check_file(name, data)
        return data


def model_names() -> tuple[str, ...]:
    """Names of the models inside the package."""
    if not MODELS.is_dir():
        return ()
    return tuple(sorted(p.name for p in MODELS.iterdir() if (p / MANIFEST_NAME).is_file()))


def load_artifact(name_or_dir: str | Path, *, trust: bool = False) -> Artifact:
    """Open a built-in model by name, else an artifact by directory; a built-in name wins over a folder.

    Every file's size, SHA-256 and content (`file_checks`) are checked, names stay inside the directory.
    trust: let native code in it run. Raises ArtifactError in one sentence.
    """
    path = MODELS / str(name_or_dir) if str(name_or_dir) in model_names() else Path(name_or_dir)
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        names = ", ".join(model_names()) or "none in this installation"
        raise ArtifactError(
            f"unknown model {str(name_or_dir)!r}: give a built-in name ({names}) "
            f"or a directory with {MANIFEST_NAME}"
        )
    try:
        if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{manifest_path} is larger than 4 MiB: not a manifest")
        text = manifest_path.read_bytes()
    except OSError as e:
        raise ArtifactError(f"cannot read {manifest_path}: {e.strerror}") from None
    try:
        manifest = Manifest.from_json(text)
    except ArtifactError as e:
        raise ArtifactError(f"the model at {path} cannot be used: {e}") from None
    for name, info in manifest.files.items():
        check_file(str(path / name), _verified(path, name, info))
    return Artifact(path, manifest, hashlib.sha256(text).hexdigest(), trust)


def _verified(folder: Path, name: str, info: FileInfo) -> bytes:
    """Bytes of a file after its size and checksum."""
    path = folder / name
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise ArtifactError(f"{path} links outside the artifact: copy the file itself into it")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size == info.bytes and path.is_file() else None
    except OSError as e:
        raise ArtifactError(f"cannot read {path}: {e.strerror}; copy or export the model again") from None
    if data is None:
        raise ArtifactError(f"{path} has {size} bytes, not {info.bytes}: copy or export the model again")
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise ArtifactError(f"{path} does not match its SHA-256: copy or export the model again")
    return data


def check_target(directory: str | Path, *, overwrite: bool = False) -> Path:
    """The absolute path of a place that an artifact can be written to. Raises ArtifactError where it cannot.

    An existing directory is refused unless `overwrite`, and accepted then only where it is itself an artifact.
    """
    target = Path(directory).absolute()
    try:
        if target.exists() or target.is_symlink():
            if not overwrite:
                raise ArtifactError(f"{directory} exists: choose another place or ask to overwrite it")
            if not (target / MANIFEST_NAME).is_file():
                raise ArtifactError(f"{directory} is not a model artifact, so it is not overwritten")
        parent = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=parent):
            return target
    except OSError as e:
        raise ArtifactError(f"cannot write {directory}: {e.strerror}; choose another place") from None


def write_artifact(
    directory: str | Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False
) -> Path:
    """Write an artifact durably: a temporary sibling, fsync, rename. Returns the directory.

    `manifest.files` is filled from `files`. An existing directory is refused unless `overwrite`, and
    replaced only where it is itself an artifact. Raises ArtifactError.
    """
    target = check_target(directory, overwrite=overwrite)
    infos = {name: FileInfo(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    text = dataclasses.replace(manifest, files=infos).to_json()
    Manifest.from_json(text)
    for name, data in files.items():
        check_file(name, data)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _commit(target, {**files, MANIFEST_NAME: text.encode()})
    except OSError as e:
        raise ArtifactError(f"cannot write {directory}: {e.strerror}") from None
    return target


def _commit(target: Path, files: Mapping[str, bytes]) -> None:
    """Files into a temporary sibling, then swap it in."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        new = temporary / "new"
        new.mkdir()
        for name, data in files.items():
            with (new / name).open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _sync_folder(new)
        if target.exists():
            target.rename(temporary / "old")
        new.rename(target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
