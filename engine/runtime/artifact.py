"""The model folder: manifest, weights, and what exports add. Training and export write it, everybody reads it.

A run of deeplight-train is such a folder with the weights alone; deeplight-export adds ONNX files and plans. Its
identity is that of configuration and weights (`Manifest.identity`): another file beside them makes no other model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from deeplight.engine.core.errors import ArtifactError, InputError
from deeplight.engine.core.files import DISK, write_file
from deeplight.engine.core.locks import exclusive, is_held
from deeplight.engine.runtime.file_checks import check_file
from deeplight.engine.runtime.manifest import (
    MANIFEST_NAME,
    OPENVINO_ALONE,
    WEIGHT_PRECISIONS,
    WEIGHTS,
    FileInfo,
    Manifest,
)

MODELS = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "deeplight-tiny"
TRAINING_STATE = "state.safetensors"
"""A run that can be resumed has it."""
_NEXT = f"{MANIFEST_NAME}.next"
"""The manifest of weights that are about to take the place of others, see `put_weights`."""
_OLD_CARD = "checkpoint.json"
"""What a run of version 0.2 had in place of a manifest."""
_MAX_MANIFEST_BYTES = 1 << 22
_READINGS = 5
"""How often a folder is read that a writer changes meanwhile, before it is given up."""


@dataclass(frozen=True)
class Artifact:
    """A verified model folder. trusted: the user vouches for native code in it (TensorRT plans).

    weights: the verified bytes, kept because a training may replace the file at any time.
    """

    path: Path
    manifest: Manifest
    trusted: bool = False
    weights: bytes = field(default=b"", repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration and the weights: the same model, whatever else was exported from it."""
        return self.manifest.identity

    def offered(self, kind: str = "onnx") -> Mapping[str, str]:
        """Precision → file of a kind, see Manifest.offered."""
        return self.manifest.offered(kind)

    def file(self, precision: str, kind: str = "onnx") -> Path:
        """The model file of a precision. Raises ArtifactError where the folder has none."""
        name = self.offered(kind).get(precision)
        if name is None:
            have = ", ".join(self.offered(kind)) or "none"
            what = "engine of TensorRT for RTX" if kind == "engines" else "ONNX file"
            if kind != "engines" and precision in self.manifest.precisions:
                what = f"ONNX file that {'OpenVINO' if kind == 'openvino' else 'ONNX Runtime'} runs"
            raise ArtifactError(
                f"the model {self.manifest.name} has no {what} in precision {precision}, it has {have}"
                f"{self._instead(precision, kind)}"
            )
        return self.path / name

    def _instead(self, precision: str, kind: str) -> str:
        """What else there is of a precision that is not offered."""
        if kind == "engines":
            return f"; deeplight-export {self.path} --out DIR --format onnx,tensorrt-rtx builds one"
        if precision in self.manifest.precisions:
            other = "onnxruntime" if kind == "openvino" else "openvino"
            return f'; `backend="{other}"` runs {self.manifest.precisions[precision]}'
        if precision not in WEIGHT_PRECISIONS:
            return ""
        weights = '; `backend="torch"` runs its weights'
        if precision not in OPENVINO_ALONE:
            return weights
        export = f"deeplight-export {self.path} --out DIR --precision {precision}"
        return f'{weights}, and {export} writes a file for `backend="openvino"`'

    def read(self, precision: str, kind: str = "onnx") -> bytes:
        """The verified bytes of the model file: what was checked is what is used."""
        return self.read_file(self.file(precision, kind).name)

    def read_file(self, name: str) -> bytes:
        """The verified bytes of a listed file. Raises ArtifactError where it is not listed or was changed."""
        if name not in self.manifest.files:
            raise ArtifactError(f"the model {self.manifest.name} has no file {name!r}")
        if name == WEIGHTS and self.weights:
            return self.weights
        data = _verified(self.path, name, self.manifest.files[name])
        check_file(name, data)
        return data


def model_names() -> tuple[str, ...]:
    """Names of the models inside the package."""
    if not MODELS.is_dir():
        return ()
    return tuple(sorted(p.name for p in MODELS.iterdir() if (p / MANIFEST_NAME).is_file()))


def load_artifact(name_or_dir: str | Path, *, trust: bool = False) -> Artifact:
    """Open a built-in model by name, else a model folder or a run by directory; a built-in name wins over a folder.

    Every file's size, SHA-256 and content (`file_checks`) are checked, names stay inside the directory. A folder that
    a training or an export replaces meanwhile is read again.
    trust: let native code in it run. Raises ArtifactError in one sentence.
    """
    path = MODELS / str(name_or_dir) if str(name_or_dir) in model_names() else Path(name_or_dir)
    earlier = None
    for _ in range(_READINGS):
        try:
            text = _manifest_text(path)
        except ArtifactError as e:
            raise ArtifactError(f"the model at {path} cannot be used: {e}") from None
        except FileNotFoundError:
            raise ArtifactError(_absent(name_or_dir, path)) from None
        try:
            return _opened(path, text, trust)
        except ArtifactError:
            if text == earlier:  # no writer between the two readings: the file itself is at fault
                raise
            earlier = text
    raise ArtifactError(f"{path} was changed while it was read: run the same command again")


def _opened(path: Path, text: bytes, trust: bool) -> Artifact:
    """The folder, if all its files are those of this manifest."""
    try:
        manifest = Manifest.from_json(text)
    except ArtifactError as e:
        raise ArtifactError(f"the model at {path} cannot be used: {e}") from None
    weights = b""
    for name, info in manifest.files.items():
        data = _verified(path, name, info)
        check_file(str(path / name), data)
        if name == WEIGHTS:
            weights = data
    return Artifact(path, manifest, trust, weights)


def _manifest_text(folder: Path) -> bytes:
    """manifest.json, or its successor where the weights are already those of the successor (see `put_weights`)."""
    path = folder / MANIFEST_NAME
    try:
        with contextlib.suppress(FileNotFoundError):  # there is none, or it became the manifest just now
            following = _small(folder / _NEXT)
            if _matches(folder, following):
                return following
        return _small(path)
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except OSError as e:
        raise ArtifactError(f"cannot read {path}: {e.strerror}") from None


def _small(path: Path) -> bytes:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than 4 MiB: not a manifest")
    return path.read_bytes()


def _matches(folder: Path, text: bytes) -> bool:
    """Whether the weights in the folder are those of this manifest."""
    try:
        info = Manifest.from_json(text).files[WEIGHTS]
        _verified(folder, WEIGHTS, info)
    except ArtifactError:
        return False
    return True


def _absent(name: str | Path, path: Path) -> str:
    names = ", ".join(model_names()) or "none in this installation"
    if (path / _OLD_CARD).is_file() and not (path / TRAINING_STATE).is_file():
        return (
            f"{path} is of an older version ({_OLD_CARD}) and has no training state: train it again with the "
            "deeplight-train command that made it and --overwrite"
        )
    if (path / _OLD_CARD).is_file():
        return (
            f"{path} is a run of an older version ({_OLD_CARD}): write it anew with the deeplight-train command that "
            "made it and --resume"
        )
    return (
        f"unknown model {str(name)!r}: give a built-in name ({names}), or a directory with {MANIFEST_NAME} that "
        "deeplight-train or deeplight-export wrote"
    )


def _verified(folder: Path, name: str, info: FileInfo) -> bytes:
    """Bytes of a file after its size and checksum."""
    path = folder / name
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise ArtifactError(f"{path} links outside the model folder: copy the file itself into it")
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
    """The absolute path of a place that a model folder can be written to. Raises ArtifactError where it cannot, and
    InputError where another export is writing it.

    An existing directory is refused unless `overwrite`, and accepted then only where it is itself a model folder, and
    no run that can be resumed.
    """
    target = Path(directory).absolute()
    if is_held(_lock(target)):
        raise InputError(_busy(target))
    _check_free(target, directory, overwrite)
    return target


def _check_free(target: Path, directory: str | Path, overwrite: bool) -> None:
    try:
        if target.exists() or target.is_symlink():
            if not overwrite:
                raise ArtifactError(
                    f"{directory} exists: use `overwrite=True` to replace it, or choose another `out`"
                )
            if not (target / MANIFEST_NAME).is_file():
                raise ArtifactError(f"{directory} is not a model folder, so it is not overwritten")
            if (target / TRAINING_STATE).exists():
                raise ArtifactError(
                    f"{directory} is a training run, whose state would be lost: choose another place"
                )
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=_existing_parent(target)):
            return
    except OSError as e:
        raise ArtifactError(f"cannot write {directory}: {e.strerror}; choose another place") from None


def _existing_parent(target: Path) -> Path:
    return next(folder for folder in target.parents if folder.exists())


def _lock(target: Path) -> Path:
    return _existing_parent(target) / f".{target.name}.lock"


def _busy(target: Path) -> str:
    return f"another export is writing {target}: wait for it or stop it, or choose another place"


class Draft:
    """A model folder in the making, beside its place: `put` its files, `commit` swaps it in whole.

    A context manager that holds the place for itself; without `commit` nothing stays. Raises as `check_target`; methods
    raise ArtifactError where the disk refuses.
    """

    def __init__(self, directory: str | Path, *, overwrite: bool = False) -> None:
        self._directory, self._overwrite = directory, overwrite
        self._target = Path(directory).absolute()
        self._files: dict[str, FileInfo] = {}
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(exclusive(_lock(self._target), _busy(self._target), remove=True))
            except OSError as e:
                raise ArtifactError(
                    f"cannot write {self._directory}: {e.strerror}; choose another place"
                ) from None
            _check_free(self._target, self._directory, self._overwrite)
            self._scratch = Path(
                tempfile.mkdtemp(prefix=f".{self._target.name}.", dir=_existing_parent(self._target))
            )
            held.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self.folder = self._scratch / "new"
            self._scratch.chmod(0o755)
            self.folder.mkdir()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def put(self, name: str, data: bytes) -> None:
        """Write a file durably and list it in the manifest."""
        check_file(name, data)
        self._write(name, data)
        self._files[name] = FileInfo(hashlib.sha256(data).hexdigest(), len(data))

    def checksum(self, name: str) -> str:
        """SHA-256 of a file that was put."""
        return self._files[name].sha256

    def open(self, manifest: Manifest) -> Artifact:
        """The folder as it is so far, as others will read it."""
        complete = dataclasses.replace(manifest, files=dict(self._files))
        text = complete.to_json()
        Manifest.from_json(text)
        self._write(MANIFEST_NAME, text.encode())
        return load_artifact(self.folder)

    def commit(self, manifest: Manifest) -> Path:
        """Write the manifest and give the folder its name. Returns the directory."""
        self.open(manifest)
        try:
            DISK.sync_folder(self.folder)
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._swap()
            DISK.sync_folder(self._target.parent)
        except OSError as e:
            raise ArtifactError(f"cannot write {self._target}: {e.strerror}") from None
        return self._target

    def _swap(self) -> None:
        """Give the new folder the name; the old one keeps it where that fails or is interrupted."""
        old = self._scratch / "old"
        try:
            if self._target.exists():
                self._target.rename(old)
            self.folder.rename(self._target)
        except BaseException:
            if old.exists() and not self._target.exists():
                old.rename(self._target)
            raise

    def _write(self, name: str, data: bytes) -> None:
        try:
            with (self.folder / name).open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise ArtifactError(f"cannot write {self._target}: {e.strerror}") from None


def write_artifact(
    directory: str | Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False
) -> Path:
    """Write a model folder durably and return it; see Draft. `manifest.files` is filled from `files`."""
    with Draft(directory, overwrite=overwrite) as draft:
        for name, data in files.items():
            draft.put(name, data)
        return draft.commit(manifest)


WRITTEN = (_NEXT, MANIFEST_NAME, WEIGHTS)
"""The files of `put_weights`."""


def put_weights(folder: Path, manifest: Manifest, weights: bytes) -> None:
    """Replace weights and manifest in the folder of a training run, so that a reader finds a pair that belongs together
    whenever the writer is killed: the new manifest waits beside the old one until the new weights are there.

    Raises OSError where the disk refuses.
    """
    info = FileInfo(hashlib.sha256(weights).hexdigest(), len(weights))
    text = dataclasses.replace(manifest, files={WEIGHTS: info}).to_json()
    Manifest.from_json(text)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = folder / _NEXT
    if waiting.is_file() and _matches(folder, waiting.read_bytes()):
        # an earlier writer was killed here: what describes the present weights must not be overwritten first
        DISK.replace(waiting, folder / MANIFEST_NAME)
        DISK.sync_folder(folder)
    write_file(folder / _NEXT, [text.encode()])
    write_file(folder / WEIGHTS, [weights])
    DISK.replace(folder / _NEXT, folder / MANIFEST_NAME)
    DISK.sync_folder(folder)


def remove_weights(folder: Path) -> None:
    """Remove what `put_weights` left in a folder."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
