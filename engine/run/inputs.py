"""Descriptions of a run's inputs. Each is a line that changes with its files, for tags and for resumed runs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.raster.dataset_names import Located, locate
from deeplight.engine.raster.remote import object_version
from deeplight.engine.run.contents import content_digest

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from deeplight.engine.output.parts import Record
    from deeplight.engine.run.options import RunOptions

_SAMPLES, _SAMPLE_BYTES, _END_BYTES = 16, 4096, 1 << 16
MOST_READ = 1 << 30
"""Layers of up to so many bytes are read completely for `Compared.HOSTS`: in about a second (1.1 GB/s on one core)."""
_UNKNOWN = "of unknown version"


class Compared(Enum):
    """Where files are compared, which decides what is compared.

    ANYWHERE: size and samples, for tags, which are equal for equal files. ONE_HOST: the modification time too, since
    samples do not show every change. HOSTS: all bytes in place of the time, which a copy on another host does not keep;
    of layers above MOST_READ bytes size, samples and time.
    """

    ANYWHERE = "anywhere"
    ONE_HOST = "one host"
    HOSTS = "hosts"


def described(options: RunOptions, compared: Compared) -> dict[str, str]:
    """From each option to a line that changes with the option's files."""
    scene = options.scene
    return {k: _layer(v, scene.allow_remote, compared) for k, v in scene.files().items()}


def parameter(option: str) -> str:
    """The name as a parameter of the Python interface: "dmo-band blue" → dmo["blue"]."""
    name, _, slot = option.partition(" ")
    return f'{name.removesuffix("-band")}["{slot}"]' if slot else name.replace("-", "_")


def field_of(option: str) -> str:
    """The name of an input in a record."""
    return f"the file of `{parameter(option)}`"


def versions_unknown(lines: Mapping[str, str]) -> str | None:
    """A sentence about remote files without a version, over which a run cannot be resumed; None where all have one.

    lines: from `described`.
    """
    nameless = [parameter(option) for option, line in lines.items() if line.endswith(_UNKNOWN)]
    if not nameless:
        return None
    return (
        f"nobody says which version of `{nameless[0]}` its server holds (an ETag or a date, over http or https), "
        "so that a resumed run could mix two"
    )


def has_remote(options: RunOptions) -> bool:
    """Whether an input, or a file that it names, is on a server."""
    scene = options.scene
    return scene.allow_remote and any(locate(n, n, True).remote for n in scene.files().values())


def check_unchanged(options: RunOptions, record: Record) -> None:
    """Raise DeepLightError, naming the file, where a remote file has changed since the beginning of the run.

    record: made at the beginning. Local files are not compared.
    """
    scene, fields = options.scene, record.fields
    for option, name in scene.files().items():
        field, located = field_of(option), locate(name, name, scene.allow_remote)
        if fields[field].endswith(_UNKNOWN) or not located.remote:
            continue
        now = _versions(located)
        if not fields[field].endswith(now):
            raise DeepLightError(
                f"{field} changed while it was read: it was {fields[field]} and is now {now.lstrip(', ')}; "
                "restore it and make the same call with `resume=True`, or use `overwrite=True` to start again"
            )


def _layer(name: str, allow_remote: bool, compared: Compared) -> str:
    """A line that changes when any file behind a dataset name changes."""
    located = locate(name, name, allow_remote)
    compared = _affordable(located.pieces, compared)
    if located.pieces:
        each = [f"{p.name} {file_fingerprint(p, compared)}" for p in located.pieces]
        line = f"{len(located.pieces)} pieces of {_digest(each)}"
    elif located.path is None:
        line = "remote" if compared is Compared.ANYWHERE else f"remote {located.dataset}"
    else:
        line = _local(located, located.path, compared)
    return line + _versions(located)


def _versions(located: Located) -> str:
    """The end of a layer's line: the versions of its remote files; "" where all files are local."""
    if not located.remote:
        return ""
    if located.pieces or located.path is not None:
        versions = [object_version(source) for source in located.remote]
        if None in versions:
            return f", with remote files {_UNKNOWN}"
        return f", with {len(versions)} remote files of {_digest(f'{v}' for v in versions)}"
    # a remote VRT names further files, whose versions are not known
    version = (
        None if _opened(located, lambda dataset: dataset.driver) == "VRT" else object_version(located.dataset)
    )
    return f" {_UNKNOWN}" if version is None else f", {version}"


def _local(located: Located, path: Path, compared: Compared) -> str:
    others = sorted({Path(f) for f in _opened(located, lambda dataset: dataset.files)} - {path})
    compared = _affordable([path, *others], compared)
    line = file_fingerprint(path, compared)
    if located.dataset != str(path):  # the name is that of one of several datasets in the file
        before, _, after = located.dataset.rpartition(path.name)
        line += f", dataset {before.rpartition(':')[0]} {after}".rstrip()
    if not others:
        return line
    digest = _digest(file_fingerprint(p, compared) for p in others if p.is_file())
    return f"{line}, with {len(others)} files of {digest}"


def _affordable(paths: Iterable[Path], compared: Compared) -> Compared:
    """How the files of one layer are compared."""
    if compared is Compared.HOSTS and sum(p.stat().st_size for p in paths if p.is_file()) > MOST_READ:
        return Compared.ONE_HOST
    return compared


def _opened(located: Located, told: Callable[[DatasetReader], Any]) -> Any:
    """What the function `told` returns for the opened dataset."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import DatasetReader

    from deeplight.engine.raster.source import DRIVERS

    settings = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_NON_CACHED": "/vsi"}
    with rasterio.Env(**settings if located.remote else {}), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `ntl_bounds` says where it lies
        with DatasetReader(located.dataset, driver=list(DRIVERS), sharing=False) as dataset:
            return told(dataset)


def file_fingerprint(path: Path, compared: Compared) -> str:
    """Size and, as `compared` asks, modification time and a SHA-256: of all bytes, or of both ends and evenly spaced
    samples."""
    stat = path.stat()
    size = f"{stat.st_size} bytes"
    if compared is Compared.HOSTS:
        return f"{size}, all of sha256 {content_digest(path)[:32]}"
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_END_BYTES))
        for i in range(_SAMPLES):
            file.seek(stat.st_size * i // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, stat.st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    modified = "" if compared is Compared.ANYWHERE else f"modified {stat.st_mtime_ns}, "
    return f"{size}, {modified}sha256 {digest.hexdigest()[:16]}"


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
