"""Which dataset names may be opened: local files and local GDAL subdataset names, VRTs only where every
source is one.

GDAL follows names: a URL, a /vsi path or a VRT (whatever its extension) can reach the network, archives or
any file on the machine. So a name is looked at before GDAL sees it, and a VRT's XML before GDAL parses it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.remedies import quoted

_SUBDATASET = re.compile(r"^(HDF5|NETCDF|GTIFF_DIR|HDF4_SDS|HDF4_EOS):(.+)$", re.DOTALL | re.IGNORECASE)
"""GDAL's own list of a file's datasets spells NETCDF in small letters."""
_QUOTED = re.compile(r'"([^"]+)"')
_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://|^/vsi|^<|^\{|^[A-Z0-9_]+:\"?(/vsi|[a-z]+://)", re.IGNORECASE)

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
"""First bytes of archives and packed files."""
_ARCHIVED = re.compile(r"^/vsi(gzip|zip|tar|7z|rar)/", re.IGNORECASE)

_HEAD = 4096
"""Bytes in which GDAL's VRT driver may find its tag (it looks at the header block, 1 kB by default)."""
_VRT_TAG = b"<VRTDataset"
_VRT_DEPTH = 4
_VRT_BYTES = 128 << 20
_MAGIC: tuple[bytes, ...] = (
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"\x89HDF\r\n\x1a\n",
    b"CDF\x01",
    b"CDF\x02",
    b"CDF\x05",
    b"\x0e\x03\x13\x01",
    b"EHFA_HEADER_TAG",
    b"\x00\x00\x00\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
"""First bytes of TIFF, BigTIFF, HDF5, netCDF, HDF4, HFA, JPEG 2000: what a VRT's sources may be. Formats
known only by a side file or by text are left out, since GDAL would try every driver on them, those that fetch
included."""

_SERIAL_MAGIC = (b"\x89HDF", b"CDF", b"\x0e\x03\x13\x01")
"""HDF5, netCDF, HDF4: their libraries are not thread-safe, and GDAL's drivers do not share one lock."""

_FILE_KEYS = frozenset(
    {"sourcefilename", "sourcedataset", "dempath", "x_dataset", "y_dataset", "overview_file"}
)
_CLASSES = {
    "vrtdataset": frozenset({"", "vrtdataset", "vrtwarpeddataset"}),
    "vrtrasterband": frozenset({"", "vrtsourcedrasterband", "vrtwarpedrasterband", "vrtderivedrasterband"}),
}
"""Accepted subClass values by element; VRTRawRasterBand, which reads any file's bytes as pixels, is not among
them."""


@dataclass(frozen=True)
class Located:
    """A name that may be opened.

    dataset: what GDAL is given. path: the local file behind it, None for a remote name; of a pattern the first.
    serial: reads must not overlap. pieces: the files that a pattern found, where they are several. remote: names that
    lead out of this machine: the one given, or those that a VRT holds.
    """

    dataset: str
    path: Path | None
    serial: bool
    pieces: tuple[Path, ...] = ()
    remote: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were named; none where the name is remote."""
        return self.pieces or (() if self.path is None else (self.path,))


def matching(name: str) -> list[str]:
    """Files that a pattern such as 'ntl-*.tif' finds, sorted; none where `name` is no pattern, or a file's own name."""
    if not glob.has_magic(name) or _exists(name) or _REMOTE.match(name) or _SUBDATASET.match(name):
        return []
    return sorted(glob.glob(name))  # noqa: PTH207  # Path.glob takes no pattern with a folder in it


def common_pattern(files: Sequence[str]) -> str | None:
    """The pattern that finds just these files; None where there is none."""
    start = _beginning(files)
    end = _beginning([file[len(start) :][::-1] for file in files])[::-1]
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    return pattern if matching(pattern) == sorted(files) else None


def _beginning(texts: Sequence[str]) -> str:
    return os.path.commonprefix(list(texts))  # noqa: RUF071  # letters that are meant here, not folders


def locate(name: str, what: str, allow_remote: bool = False) -> Located:
    """Checks a raster's name and the VRTs behind it, without opening it as a raster.

    name: a path, a local GDAL subdataset name such as HDF5:"file.h5"://group/data, or a pattern of paths.
    what: "NTL raster", for errors. Raises InputError for URLs and /vsi names (unless allow_remote), for missing,
    unreadable and non-regular files, and for a VRT with a source that is remote, raw, missing or of a
    format not accepted.
    """
    found = [locate(file, what, allow_remote) for file in matching(name)]
    if len(found) == 1:
        return found[0]
    if found:
        pieces = tuple(file for one in found for file in one.files)
        remote = tuple(other for one in found for other in one.remote)
        return Located(name, pieces[0], any(one.serial for one in found), pieces, remote)
    path = _local_file(name)
    if path is None:
        if allow_remote and _REMOTE.match(name):
            return Located(name, None, serial=False, remote=(name,))
        raise InputError(_not_local(name, what))
    head = _head(path, what, name)
    kind = _packed_by(head)
    if kind is not None:
        raise InputError(_packed(name, what, kind))
    serial = head.startswith(_SERIAL_MAGIC)
    reached: set[str] = set()
    if _VRT_TAG in head:
        serial = _check_vrt(path, f"{what} {name}", reached if allow_remote else None, _VRT_DEPTH, set())
    return Located(str(path) if _exists(name) else name, path, serial, remote=tuple(sorted(reached)))


def _local_file(name: str) -> Path | None:
    """The existing local path that `name` is or points into; None where there is none."""
    if not name or "\0" in name or name.lower().startswith("/vsi"):
        return None
    if _exists(name):
        return Path(name).absolute()
    match = _SUBDATASET.match(name)
    if match is None:
        return None
    quoted = _QUOTED.search(match[2])
    for part in [quoted[1]] if quoted else match[2].split(":"):
        if part and not part.lower().startswith("/vsi") and _exists(part):
            return Path(part).absolute()
    return None


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # too long for a file name, or in a folder that may not be entered
        return False


def _packed_by(head: bytes) -> str | None:
    """What has packed a file with these first bytes; None where nothing known has."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)


def _packed(name: str, what: str, kind: str) -> str:
    """How to unpack a file and keep the original."""
    file = quoted(name)
    if kind == "tar":
        return f"{what} {name} is an archive; unpack it first: tar -xf {file}"
    if kind != "gzip":
        return f"{what} {name} is packed by {kind}; unpack it first, and give the raster in it"
    lower = name.lower()
    if lower.endswith((".tar.gz", ".tgz")):
        return f"{what} {name} is an archive; unpack it first: tar -xzf {file}"
    if lower.endswith(".gz"):
        return f"{what} {name} is packed by gzip; unpack it first: gunzip -k {file}"
    return f"{what} {name} is packed by gzip; unpack it first: gunzip -c {file} > unpacked.tif"


def _not_local(name: str, what: str) -> str:
    if _ARCHIVED.match(name):
        return (
            f"{what} {name} names a file in an archive; unpack the archive and give the file, "
            "or pass `allow_remote=True` to read it there, slowly"
        )
    if _REMOTE.match(name):
        return (
            f"{what} {name} is not a local file; give a path or a local GDAL dataset name, "
            "or pass `allow_remote=True` if you trust where it points"
        )
    if _SUBDATASET.match(name):
        return f'{what} {name}: the file in this dataset name does not exist; the form is HDF5:"file.h5"://group/data'
    if glob.has_magic(name):
        return f"{what} {name} is a pattern that no file matches; check it, and the folder it is in"
    return f"{what} {name or '(empty name)'} does not exist; check the path"


def _head(path: Path, what: str, name: str) -> bytes:
    if (path / "zarr.json").is_file():
        raise InputError(
            f"{what} {name} is a Zarr group, which is not read here; give rasters such as GeoTIFFs, which xarray and "
            'rioxarray write of it, as in group.ntl.isel(time=0).rio.to_raster("date.tif")'
        )
    if path.is_dir():
        raise InputError(
            f"{what} {name} is a directory; give a raster file, such as a GeoTIFF, or its pieces as a pattern, "
            f"such as {quoted(str(path / '*.tif'))}"
        )
    if not path.is_file():
        raise InputError(f"{what} {name} is not a regular file; give a raster file, such as a GeoTIFF")
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{what} {name} cannot be read ({error.strerror}); check its permissions") from None


def _check_vrt(path: Path, what: str, remote: set[str] | None, depth: int, seen: set[Path]) -> bool:
    """Refuses a VRT that reaches out of local raster files; True where a source's reads must not overlap.

    what: the top-level raster, for errors. remote: takes the remote sources; None: there must be none. seen: VRTs
    already checked; grows.
    """
    if depth == 0:
        raise InputError(f"{what} nests VRTs deeper than {_VRT_DEPTH}; give a VRT whose sources are rasters")
    if path in seen:
        return False
    seen.add(path)
    serial = False
    for source in sorted(_vrt_sources(path, what)):
        file = _local_file(source)
        if file is None:
            if remote is not None and _REMOTE.match(source):
                remote.add(source)
                continue
            raise InputError(
                f"{what} is a VRT whose source {source} is not a file here; "
                "give a VRT whose sources are existing local rasters"
            )
        head = _head(file, f"{what} is a VRT whose source", source)
        if _VRT_TAG in head:
            serial |= _check_vrt(file, what, remote, depth - 1, seen)
        elif not head.startswith(_MAGIC):
            raise InputError(
                f"{what} is a VRT whose source {source} is no TIFF, HDF, netCDF, HFA or JPEG 2000 file; "
                "give that source as a GeoTIFF"
            )
        serial |= head.startswith(_SERIAL_MAGIC)
    return serial


def _vrt_sources(path: Path, what: str) -> set[str]:
    """Names of all files that a VRT mentions, relative ones resolved against its folder."""
    if path.stat().st_size > _VRT_BYTES:
        raise InputError(
            f"{what} is a VRT of more than {_VRT_BYTES >> 20} MB; build it from fewer, larger files"
        )
    scan = _VrtScan(what, path.resolve().parent)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = scan.doctype
    parser.StartElementHandler = scan.start
    parser.EndElementHandler = scan.end
    parser.CharacterDataHandler = scan.text
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise InputError(f"{what} is not well-formed VRT XML ({error}); write it again") from None
    return scan.sources


class _VrtScan:
    """Expat handlers that collect file names. GDAL ignores case and reads attributes like child elements; so
    do these."""

    def __init__(self, what: str, folder: Path) -> None:
        self.sources: set[str] = set()
        self._what = what
        self._folder = folder
        self._relative = False
        self._text: list[str] | None = None

    def doctype(self, *_: object) -> None:
        """Refuses: a document type may declare entities, and no VRT needs one."""
        self._refuse("declares a document type")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Checks an element's class and starts to collect where it holds a file name."""
        name = tag.lower()
        values = {key.lower(): value for key, value in attributes.items()}
        if self._text is not None:
            self._refuse("has elements inside a file name")
        if name in _CLASSES and values.get("subclass", "").lower() not in _CLASSES[name]:
            self._refuse(f"uses {values['subclass']}")
        if name in {"pixelfunctioncode", "pixelfunctionlanguage"}:
            self._refuse("carries code")
        self._relative = values.get("relativetovrt", "0") == "1"
        if values.get("relativetovrt", "0") not in {"0", "1"}:
            self._refuse("has a relativeToVRT other than 0 or 1")
        for key in _FILE_KEYS & values.keys():
            self._add(values[key])
        if name in _FILE_KEYS or values.get("key", "").lower() in _FILE_KEYS:
            self._text = []

    def text(self, data: str) -> None:
        """Collects a file name's characters."""
        if self._text is not None:
            self._text.append(data)

    def end(self, _tag: str) -> None:
        """Ends a file name."""
        if self._text is not None:
            self._add("".join(self._text).strip())
            self._text = None

    def _add(self, name: str) -> None:
        self.sources.add(_rebased(name, self._folder) if self._relative else name)

    def _refuse(self, why: str) -> None:
        raise InputError(
            f"{self._what} is a VRT that {why}, which is not accepted; "
            "give a plain mosaic or warped VRT, or a GeoTIFF"
        )


def _rebased(name: str, folder: Path) -> str:
    """A VRT's relative file or subdataset name, made absolute; other names as they are."""
    if _REMOTE.match(name):
        return name
    match = _SUBDATASET.match(name)
    if match is None:
        return str(folder / name)
    quoted = _QUOTED.search(match[2])
    for part in [quoted[1]] if quoted else match[2].split(":"):
        if part and (folder / part).is_file():
            return name.replace(part, str(folder / part), 1)
    return name
