"""One raster: what is accepted, a clear refusal of what is not, thread-safe reading of raw windows."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.environment import proj_trouble
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.machine import thread_bytes_read
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention, of_role
from deeplight.engine.raster.band_facts import alpha_bands, band_name, wavelength
from deeplight.engine.raster.blocks import check_blocks, pixel_interleaved
from deeplight.engine.raster.dataset_names import Located, locate
from deeplight.engine.raster.georeference import black_marble, checked_grid, is_black_marble
from deeplight.engine.raster.mosaic import mosaic_vrt
from deeplight.engine.raster.names import likeliest
from deeplight.engine.raster.pixel_source import PixelSource
from deeplight.engine.raster.placement import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader, MemoryFile

_log = logging.getLogger(__name__)

DRIVERS: tuple[str, ...] = (
    "GTiff",
    "VRT",
    "HFA",
    "netCDF",
    "HDF5",
    "HDF5Image",
    "HDF4",
    "HDF4Image",
    "JP2OpenJPEG",
    "ENVI",
    "EHdr",
    "AAIGrid",
    "SRTMHGT",
    "DTED",
)
"""GDAL drivers that may read: formats that hold georeferenced measurements in local files. Left out are the
drivers that fetch (WMS, WCS, STAC, …), that run queries, and pictures (PNG, JPEG, GIF), which carry neither
CRS nor nodata."""

CACHE_MB = 256
"""GDAL's block cache: holds a row of 512-px blocks of seven uint16 bands 35,000 px wide. The default, 5 % of the
machine's memory, ignores cgroup limits. It holds between two reads, so that what is above it is lost then."""

_FORMATS = "GeoTIFF, VRT, netCDF, HDF5, HFA, JPEG 2000, ENVI, ASCII grid, SRTM or DTED"
_DTYPES = frozenset(
    {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
    | {"float16", "float32", "float64"}
)
_SERIAL_DRIVERS = frozenset({"netCDF", "HDF5", "HDF5Image", "HDF4", "HDF4Image"})
_serial_lock = threading.Lock()
_OWN = Placement()


def open_raster(name: str, role: str, allow_remote: bool = False, placement: Placement = _OWN) -> Raster:
    """Opens a raster that can be placed on the globe and read as real numbers.

    name: a path, a local GDAL dataset name, or a pattern such as 'ntl-*.tif' of pieces on one lattice. role: NTL, DMO
    or DEM, for messages. placement: see Placement.
    Raises InputError, one sentence with the remedy, for everything that cannot be used.
    """
    located = locate(name, f"{role} raster", allow_remote)
    trouble = proj_trouble()
    if trouble is not None:
        raise InputError(trouble)
    if not located.pieces:
        return Raster(located, name, role, placement)
    crs_only = Placement(placement.crs)
    with ExitStack() as stack:
        pieces = [stack.enter_context(open_raster(str(p), role, placement=crs_only)) for p in located.pieces]
        vrt = mosaic_vrt(f"{role} rasters {name}", pieces)
    return Raster(located, name, role, placement, vrt)


class Raster(PixelSource):
    """One open raster. Each thread that reads it has its own dataset handle. A context manager.

    name, role: as given. what: both, for messages. Others: see PixelSource.
    bands: 1-based numbers of the data bands (an alpha band is a mask, not data); count: how many they are.
    dtype: of `read` over all data bands. path: of the file, or the first piece. size_bytes: of all pieces together;
    both None for a remote one. pieces: names of the files that a pattern found. tags: metadata
    items of the dataset.
    cache_mb: GDAL's block cache while this raster is read. bytes_read: from the file by `read` so far, where
    the system counts them. Per file band, index
    = number − 1: dtypes, scales, offsets (float64), nodata (float or None), units, band_tags, band_names (common name
    or description, "" where there is none), band_sources (XML of where a VRT has the band from) and wavelengths
    (micrometres or None).
    """

    def __init__(
        self, located: Located, name: str, role: str, placement: Placement = _OWN, vrt: str | None = None
    ) -> None:
        """vrt: of the pieces, where a pattern names several."""
        super().__init__()
        self.name = name
        self.role = role
        self.what = f"{role} raster {name}"
        self.size_bytes = sum(p.stat().st_size for p in located.files) if located.files else None
        self.path = located.path
        self.pieces = tuple(str(p) for p in located.pieces)
        self._located = located
        self._placement = placement
        self._memory: MemoryFile | None = None
        self._settings: dict[str, Any] = {}
        self._local = threading.local()
        self._handles: list[DatasetReader] = []
        self._handles_lock = threading.Lock()
        self._closed = False
        self.cache_mb = CACHE_MB
        self.bytes_read = 0
        try:
            with self._env():
                if vrt is not None:
                    self._hold(vrt)
                turned = self._first_row_north()
            with self._env():
                self._describe(self._handle())
                if turned:
                    _log.info(
                        "%s has no coordinates; its first row is taken as the northernmost, as in every raster that is "
                        "placed by --%s-bounds",
                        self.what,
                        role.lower(),
                    )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rest(self) -> None:
        """Closes the handles of all threads, and lets go of what GDAL has decoded, until the next read. No read may be
        running."""
        super().rest()
        with self._handles_lock:
            handles, self._handles = self._handles, []
            self._local = threading.local()
        for handle in handles:
            handle.close()

    def close(self) -> None:
        """Closes the handles of all threads. No read may be running."""
        with self._handles_lock:
            self._closed, self._shared = True, None
            handles, self._handles = self._handles, []
        for handle in handles:
            handle.close()
        if self._memory is not None:
            self._memory.close()

    def _first_row_north(self) -> bool:
        """Has the rows of a netCDF file that is placed by given bounds read in the file's order; whether that was
        needed. GDAL takes files without coordinates as beginning in the south, and turns them around."""
        handle = self._handle()
        if handle.driver != "netCDF" or self._placement.bounds is None or not handle.transform.is_identity:
            return False
        self._settings["GDAL_NETCDF_BOTTOMUP"] = "NO"
        self._handles.remove(handle)
        del self._local.handle
        handle.close()
        return True

    def _hold(self, vrt: str) -> None:
        """Keep a VRT's text where all threads can open it."""
        from rasterio.io import MemoryFile

        self._memory = MemoryFile(vrt.encode(), ext=".vrt")
        self._located = replace(self._located, dataset=self._memory.name)

    def decode(
        self, window: Window, bands: Sequence[int], into: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """As `read`, without what threads share."""
        pixels = ((window.row, window.row + window.height), (window.col, window.col + window.width))
        dtypes = [self.dtypes[band - 1] for band in bands]
        with self._env(), self._reading(window), self._counted():
            handle = self._handle()
            if len(set(dtypes)) == 1:
                raw = handle.read(list(bands), window=pixels, out=into)
            else:  # rasterio reads several bands at once only of one type
                raw = np.stack(
                    [handle.read(band, window=pixels) for band in bands], dtype=np.result_type(*dtypes)
                )
            mask = handle.read_masks(self.bands[0], window=pixels) if self.masked else None
        return raw, mask

    @contextmanager
    def _env(self) -> Iterator[None]:
        """GDAL's settings for this raster, and one reader at a time where its library needs that."""
        import rasterio

        local = not self._located.remote
        options = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE" if local else "EMPTY_DIR", **self._settings}
        if local:
            # Should a local file name a remote one in a way not seen before opening, it stays unreachable.
            options["CPL_VSIL_CURL_ALLOWED_EXTENSIONS"] = ".none"
        else:
            # GDAL would keep what it fetched for the life of the process, and mix it with what the server holds later.
            options["CPL_VSIL_CURL_NON_CACHED"] = "/vsi"
        if "GDAL_CACHEMAX" not in os.environ:
            options["GDAL_CACHEMAX"] = self.cache_mb << 20  # rasterio takes integers as bytes, not MB
        with _serial_lock if self._located.serial else nullcontext(), rasterio.Env(**options):
            yield

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = thread_bytes_read()
        yield
        with self._handles_lock:
            self.bytes_read += thread_bytes_read() - before

    @contextmanager
    def _reading(self, window: Window) -> Iterator[None]:
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import RasterioError

        try:
            yield
        except (RasterioError, CPLE_BaseError, MemoryError) as error:
            rows = f"rows {window.row}–{window.row + window.height - 1}"
            cols = f"columns {window.col}–{window.col + window.width - 1}"
            raise DeepLightError(
                f"{self.what} cannot be read at {rows}, {cols} ({_reason(error)}); "
                "the file is damaged there: fetch or write it again"
            ) from error

    def _handle(self) -> DatasetReader:
        """This thread's dataset."""
        handle: DatasetReader | None = getattr(self._local, "handle", None)
        if self._closed:
            raise ValueError(f"{self.what} is closed")
        if handle is None:
            handle = self._open()
            with self._handles_lock:
                self._handles.append(handle)
            self._local.handle = handle
        return handle

    def _open(self) -> DatasetReader:
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
        from rasterio.io import DatasetReader

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                return DatasetReader(self._located.dataset, driver=list(DRIVERS), sharing=False)
        except UnicodeEncodeError:
            raise InputError(
                f"{self.what} has a name that is not UTF-8, which GDAL needs: give it another name, or a link to it"
            ) from None
        except (RasterioError, CPLE_BaseError) as error:
            raise InputError(
                f"{self.what} cannot be opened as a raster ({_reason(error)}); accepted are {_FORMATS} files"
            ) from error

    def _describe(self, dataset: DatasetReader) -> None:
        """Reads the header once; refuses what cannot be used."""
        self.driver = dataset.driver
        if self.driver in _SERIAL_DRIVERS and not self._located.serial:
            self._located = replace(self._located, serial=True)
        _check_bands(self, dataset)
        self.dtypes = tuple(dataset.dtypes)
        alpha = alpha_bands(dataset)
        self.bands = tuple(b for b in dataset.indexes if b not in alpha)
        self.count = len(self.bands)
        _check_dtypes(self)
        self.dtype = str(np.result_type(*(self.dtypes[b - 1] for b in self.bands)))
        self.grid = checked_grid(self.what, self.name, self.role, dataset, self._placement)
        self.block_shape = dataset.block_shapes[self.bands[0] - 1]
        sizes = [np.dtype(dtype).itemsize for dtype in self.dtypes]
        whole = pixel_interleaved(dataset)
        self.pixel_bytes = sum(sizes) if whole else sum(sizes[b - 1] for b in self.bands)
        self.scales = np.array(dataset.scales, np.float64)
        self.offsets = np.array(dataset.offsets, np.float64)
        self.nodata: tuple[float | None, ...] = tuple(dataset.nodatavals)
        self.units = tuple(
            unit or dataset.tags(b).get("units", "") for b, unit in enumerate(dataset.units, 1)
        )
        self.tags: dict[str, str] = dataset.tags()
        self.band_tags: tuple[dict[str, str], ...] = tuple(dataset.tags(b) for b in dataset.indexes)
        # what rasterio gives of a VRT's sources is XML; other drivers have none
        self.band_sources = tuple(
            "".join(dataset.tags(b, ns="vrt_sources").values()) for b in dataset.indexes
        )
        self.band_names = tuple(band_name(dataset, b) for b in dataset.indexes)
        self.wavelengths = tuple(wavelength(dataset, b) for b in dataset.indexes)
        flags = {flag.name for flag in dataset.mask_flag_enums[self.bands[0] - 1]}
        self.masked = bool(flags & {"per_dataset", "alpha"})
        if self.size_bytes is not None and self.driver != "VRT":
            check_blocks(self.what, self.name, dataset, self.size_bytes)


def _reason(error: BaseException) -> str:
    """GDAL's own words for a failure, on one line."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()).rstrip(".") or type(cause).__name__


def _check_bands(raster: Raster, dataset: DatasetReader) -> None:
    if dataset.count:
        return
    if not dataset.subdatasets:
        raise InputError(f"{raster.what} holds no raster bands; give a file with pixels")
    if any(is_black_marble(name) for name in dataset.subdatasets):
        raise InputError(black_marble(raster.what, raster.name))
    short = [name.rpartition(":")[2] for name in dataset.subdatasets]
    names = ", ".join(short[:4]) + (", …" if len(short) > 4 else "")
    raise InputError(
        f"{raster.what} holds {len(short)} datasets ({names}) and none is chosen; "
        f"name one: {mention(**{of_role(raster.role): dataset.subdatasets[likeliest(raster.role, short)]})}"
    )


def _check_dtypes(raster: Raster) -> None:
    for band in raster.bands:
        dtype = raster.dtypes[band - 1]
        if dtype.startswith("complex"):
            raise InputError(
                f"{raster.what} holds complex numbers ({dtype}) and real ones are needed; "
                "give their magnitude, written to a file of its own"
            )
        if dtype not in _DTYPES:
            raise InputError(
                f"{raster.what} has pixels of type {dtype}; give them as float32, in a file of their own"
            )
