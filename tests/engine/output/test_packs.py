"""Packs: what is written comes back, and what a crash or a bad disk leaves is never taken for a pack."""

from __future__ import annotations

import errno
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import Disk, replacing
from deeplight.engine.core.windows import Window, split
from deeplight.engine.output.facts import Facts
from deeplight.engine.output.filling import PackFiller
from deeplight.engine.output.pack_format import DamagedPack, Encoded, halve, read_index
from deeplight.engine.output.packs import BandSpec, OutputSpec, PackStore, required_bytes
from deeplight.engine.raster.grid import Grid
from tests.engine.output.disks import FullDisk

BLOCK = 128


def output(height: int, width: int, bands: int = 1, **options: Any) -> OutputSpec:
    """A small output in UTM with 128-px blocks."""
    grid = options.pop("grid", None) or Grid(
        CRS.from_epsg(32633), Affine(60.0, 0, 5e5, 0, -60.0, 5.5e6), height, width
    )
    specs = tuple(BandSpec(f"band {n}", "nW/cm²/sr" if n == 0 else "") for n in range(bands))
    return OutputSpec(grid, specs, **{"block": BLOCK, **options})


def lights(spec: OutputSpec, seed: int = 0, holes: bool = True) -> Floats:
    """Heavy-tailed values with a nodata corner larger than a block, and single nodata pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.gamma(0.5, 20, (len(spec.bands), spec.grid.height, spec.grid.width)).astype(np.float32)
    if holes:
        pixels[:, :200, :150] = np.nan
        pixels[rng.random(pixels.shape) < 0.02] = np.nan
    return pixels


def part(store: PackStore, pixels: Floats, key: tuple[int, int]) -> Floats:
    """The pixels of one pack."""
    w = store.window(key)
    return pixels[:, w.row : w.row + w.height, w.col : w.col + w.width]


def fill(store: PackStore, pixels: Floats) -> PackStore:
    """Write all packs."""
    keys = store.keys()
    for key in keys:
        store.write(key, part(store, pixels, key))
    return store


def loop_halve(plane: Floats) -> Floats:
    height, width = plane.shape
    out = np.full((math.ceil(height / 2), math.ceil(width / 2)), np.nan, np.float32)
    for row, col in np.ndindex(out.shape):
        group = plane[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        valid = group[~np.isnan(group)].astype(np.float64)
        if valid.size:
            out[row, col] = valid.mean()
    return out


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (1, 1), (1, 9), (63, 100)], ids=str)
def test_halve_is_the_mean_of_valid_pixels(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).gamma(0.5, 20, (2, *shape)).astype(np.float32)
    pixels[np.random.default_rng(2).random(pixels.shape) < 0.4] = np.nan
    expected = np.stack([loop_halve(plane) for plane in pixels])
    # three float32 additions against a float64 mean
    np.testing.assert_allclose(halve(pixels), expected, rtol=3e-7, equal_nan=True)


def test_halve_has_the_same_bits_in_any_cut() -> None:
    pixels = np.random.default_rng(3).gamma(0.5, 20, (1, 64, 64)).astype(np.float32)
    pixels[0, 40:, 40:][np.random.default_rng(4).random((24, 24)) < 0.3] = np.nan
    whole = halve(pixels)
    for row, col in itertools.product(range(0, 64, 16), repeat=2):
        cut = halve(pixels[:, row : row + 16, col : col + 16])
        assert cut.tobytes() == whole[:, row // 2 : row // 2 + 8, col // 2 : col // 2 + 8].tobytes()


def decode(data: bytes, spec: OutputSpec) -> np.ndarray:
    raw = np.frombuffer(
        zstandard.ZstdDecompressor().decompress(data), "<f4" if spec.dtype == "float32" else "<u2"
    )
    tile = raw.reshape(BLOCK, BLOCK)
    return tile if spec.dtype == "float32" else np.cumsum(tile, axis=1, dtype=np.uint16)


@pytest.mark.parametrize(("nodata", "lowest", "highest"), [(65535, 0, 65534), (0, 1, 65535)])
def test_uint16_rounds_and_clamps_and_never_wraps(nodata: int, lowest: int, highest: int) -> None:
    spec = output(BLOCK, BLOCK, dtype="uint16", scale=0.1, offset=2.0, nodata=nodata)
    values = np.array([2.0, 2.04, 2.06, -5.0, 70000.7, 6555.5, 1e30, np.nan, 12.3], np.float32)
    found = decode(spec.codec.encode(np.tile(values, (1, 1))), spec)
    expected = [0, 0, 1, 0, 65535, 65535, 65535, None, 103]
    for number, want in zip(found[0], expected, strict=False):
        assert number == (nodata if want is None else min(max(want, lowest), highest))
    assert (found[1:] == nodata).all()


def test_a_valid_pixel_equal_to_nodata_stays_valid() -> None:
    spec = output(BLOCK, BLOCK, nodata=0.0)
    found = decode(spec.codec.encode(np.array([[0.0, 1.0, np.nan]], np.float32)), spec)
    assert 0 < found[0, 0] < 1e-40
    assert found[0, 1:3].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("side", [0, 64, 100, 129, 384, 640, -128])
def test_sides_that_are_no_doubling_of_a_block_are_refused(tmp_path: Path, side: int) -> None:
    with pytest.raises(InputError, match=r"not aligned to blocks: give 128 times a power of two"):
        PackStore(tmp_path / "parts", output(300, 300), side)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 100}, "multiple of 16"),
        ({"dtype": "int8"}, "float32 or uint16"),
        ({"scale": 0.1}, "float32 output"),
        ({"dtype": "uint16", "scale": 0.0, "nodata": 0}, "positive scale"),
        ({"dtype": "uint16", "scale": 0.1, "nodata": math.nan}, "0 or 65535"),
        ({"nodata": 1e300}, "float32 number"),
        ({"compression": "lzw"}, "zstd or deflate"),
    ],
    ids=str,
)
def test_outputs_that_cannot_be_written_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        output(10, 10, **options)


@pytest.mark.parametrize("side", [128, 256, 1024])
def test_windows_partition_the_scene(tmp_path: Path, side: int) -> None:
    store = PackStore(tmp_path / "parts", output(700, 391), side)
    count = np.zeros((700, 391), int)
    keys = store.keys()
    for key in keys:
        w = store.window(key)
        count[w.row : w.row + w.height, w.col : w.col + w.width] += 1
    assert (count == 1).all()
    with pytest.raises(KeyError):
        store.window((0, store.lattice[1]))


def test_pixels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "parts", output(100, 90), 128)
    for wrong in (
        np.zeros((1, 90, 100), np.float32),
        np.zeros((1, 100, 90)),
        np.full((1, 100, 90), np.inf, "f4"),
    ):
        with pytest.raises(ValueError, match="must be"):
            store.write((0, 0), wrong)
    assert store.done() == set()


def test_packs_are_done_until_a_byte_changes(tmp_path: Path) -> None:
    spec = output(300, 391, bands=2)
    pixels = lights(spec)
    store = fill(PackStore(tmp_path / "parts", spec, 128), pixels)
    keys = set(store.keys())
    assert store.done() == keys
    rng = np.random.default_rng(5)
    key = (1, 2)
    good = store.path(key).read_bytes()
    index = store.index(key)
    places = [0, 9, 13, index.start - 1, index.start, index.rest_start, len(good) - 1]
    for place in [*places, *rng.integers(0, len(good), 15).tolist()]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        store.path(key).write_bytes(bad)
        assert store.done() == keys - {key}, place
        assert not store.path(key).exists()
    for size in (0, 5, index.start - 1, index.rest_start, len(good) - 1):
        store.path(key).write_bytes(good[:size])
        assert store.done() == keys - {key}, size
    store.path(key).write_bytes(good + b"\0")
    assert store.done() == keys - {key}
    store.write(key, part(store, pixels, key))
    assert store.path(key).read_bytes() == good
    assert store.done() == keys


def test_names_that_a_network_disk_shows_late_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads nowhere stands for one that is listed and cannot be opened yet."""
    spec = output(256, 128)
    store = fill(PackStore(tmp_path / "parts", spec, 128), lights(spec))
    hidden = store.path((1, 0)).rename(tmp_path / "hidden")
    store.path((1, 0)).symlink_to(tmp_path / "late")
    monkeypatch.setattr("deeplight.engine.output.packs.PATIENCE_S", 0.0)
    assert store.done() == {(0, 0)} and store.path((1, 0)).is_symlink(), "it is not taken for damaged"
    monkeypatch.setattr("deeplight.engine.output.packs.PATIENCE_S", 60.0)
    monkeypatch.setattr("time.sleep", lambda _: hidden.rename(tmp_path / "late"))
    assert store.done() == {(0, 0), (1, 0)}


def test_a_pack_under_the_name_of_another_is_not_done(tmp_path: Path) -> None:
    store = fill(PackStore(tmp_path / "parts", output(256, 128), 128), lights(output(256, 128)))
    store.path((0, 0)).write_bytes(store.path((1, 0)).read_bytes())
    assert store.done() == {(1, 0)}


def test_packs_of_another_output_are_refused_and_kept(tmp_path: Path) -> None:
    spec = output(256, 128)
    fill(PackStore(tmp_path / "parts", spec, 128), lights(spec))
    other = PackStore(tmp_path / "parts", output(256, 128, dtype="uint16", nodata=0), 128)
    with pytest.raises(InputError, match="packs of another output"):
        other.done()
    assert len(list((tmp_path / "parts").glob("*.pack"))) == 2


def test_an_empty_pack_is_a_pack_of_nodata(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "parts", output(300, 300), 128)
    store.write((0, 0), np.full((1, 128, 128), np.nan, np.float32))
    written = store.path((0, 0)).read_bytes()
    assert store.write_empty((0, 0)) == len(written) < 200
    assert store.path((0, 0)).read_bytes() == written
    assert store.done() == {(0, 0)}


def test_a_full_disk_keeps_the_finished_packs(tmp_path: Path) -> None:
    spec = output(256, 256)
    pixels = lights(spec, holes=False)
    store = PackStore(tmp_path / "parts", spec, 128, disk=FullDisk(200_000))
    with pytest.raises(
        DeepLightError, match=r"^the disk is full while writing .*: free some space.*`resume=True`"
    ) as caught:
        fill(store, pixels)
    assert not isinstance(caught.value, InputError)
    done = store.done()
    assert 0 < len(done) < 4
    assert {path.name for path in store.folder.iterdir()} == {store.path(key).name for key in done}


class NoLinks(Disk):
    """A file system without hard links."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("disk", [Disk(), NoLinks()], ids=["links", "no links"])
def test_a_pack_may_be_written_twice(tmp_path: Path, disk: Disk) -> None:
    spec = output(128, 128)
    store = PackStore(tmp_path / "parts", spec, 128, disk=disk)
    fill(store, lights(spec))
    first = store.path((0, 0)).stat().st_ino, store.path((0, 0)).read_bytes()
    fill(store, lights(spec))
    again = store.path((0, 0)).stat().st_ino, store.path((0, 0)).read_bytes()
    assert [p.name for p in store.folder.iterdir()] == ["00000_00000.pack"]
    assert again == first if type(disk) is Disk else again[1] == first[1]


def test_other_refusals_of_a_link_are_failures(tmp_path: Path) -> None:
    class Broken(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    store = PackStore(tmp_path / "parts", output(128, 128), 128, disk=Broken())
    with pytest.raises(DeepLightError, match="cannot write"):
        store.write_empty((0, 0))
    assert list(store.folder.iterdir()) == []


def test_writers_with_the_same_process_id_do_not_meet(tmp_path: Path) -> None:
    """As in two containers that share a folder: each is process 1 there."""
    path = tmp_path / "o.tif"
    with replacing(path, first_stays=True) as mine:
        mine.write(b"pixels")
        with replacing(path, first_stays=True) as theirs:
            theirs.write(b"pixels")
        assert path.read_bytes() == b"pixels"
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif"]


@pytest.mark.parametrize(
    ("side", "options"),
    [(64, {}), (128, {}), (128, {"dtype": "uint16", "scale": 0.1, "nodata": 65535})],
    ids=["a core in each pack", "a core over four packs", "uint16"],
)
def test_equal_pixels_are_equal_packs_in_whatever_order_cores_come(
    tmp_path: Path, side: int, options: dict[str, Any]
) -> None:
    spec = output(256, 256, **options)
    pixels = lights(spec)
    cores = list(split(Window(0, 0, 256, 256), side if side == 64 else 192))

    def counted(part: Window) -> Facts:
        return Facts(lights_in=0.1 * part.row + 1e15 * (part.col == 64), lights_out=1e-3 * part.col + 0.1)

    found = set()
    for seed in range(6):
        folder = tmp_path / str(seed)
        filler = PackFiller(PackStore(folder, spec, 128))
        for number in np.random.default_rng(seed).permutation(len(cores)):
            core = cores[number]
            rows, cols = core.slices_in(Window(0, 0, 256, 256))
            filler.add(core, pixels[:, rows, cols], counted)
        packs = {p.name: p.read_bytes() for p in folder.iterdir()}
        assert len(packs) == 4
        found.add((filler.facts, *(packs[name] for name in sorted(packs))))
    assert len(found) == 1


@pytest.mark.parametrize("nodata", [0, 65535])
@pytest.mark.parametrize(("height", "width", "side"), [(256, 256, 128), (131, 77, 128), (50, 60, 64)])
def test_pixels_that_are_encoded_already_give_the_same_packs(
    tmp_path: Path, nodata: int, height: int, width: int, side: int
) -> None:
    spec = output(height, width, bands=2, block=64, dtype="uint16", scale=0.1, nodata=nodata)
    pixels = lights(spec)
    pixels[0, 4:6, 8:10] = 1e6  # beyond what uint16 holds: not as bright in an overview that is made of steps
    plain, steps = (PackStore(tmp_path / name, spec, side) for name in ("plain", "steps"))
    whole = spec.codec.encoded(pixels)
    keys = plain.keys()
    for key in keys:
        rows, cols = plain.window(key).slices_in(Window(0, 0, height, width))
        filled = spec.codec.empty(2, *plain.window(key).shape)
        assert isinstance(filled, Encoded)
        filled.paste(whole.cut(rows, cols), slice(0, filled.shape[1]), slice(0, filled.shape[2]))
        plain.write(key, pixels[:, rows, cols])
        steps.write(key, filled)
        assert steps.path(key).read_bytes() == plain.path(key).read_bytes()
    with pytest.raises(ValueError, match="infinite"):
        steps.write((0, 0), spec.codec.encoded(np.full((2, *plain.window((0, 0)).shape), np.inf, np.float32)))


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "parts", output(128, 128), 128)
    store.write_empty((0, 0))
    (store.folder / f".{store.path((0, 0)).name}.123-456.tmp").write_bytes(b"half")
    (store.folder / ".notes.txt.1-2.tmp").write_bytes(b"not ours")
    store.remove_leftovers()
    assert sorted(p.name for p in store.folder.iterdir()) == [".notes.txt.1-2.tmp", "00000_00000.pack"]


def test_a_pack_that_the_disk_cannot_read_is_damaged() -> None:
    class Unreadable(io.BytesIO):
        number = errno.EIO

        def read(self, size: int | None = -1) -> bytes:
            raise OSError(self.number, "no")

    with pytest.raises(DamagedPack, match=r"00000_00000.pack is damaged \(the disk cannot read it\)"):
        read_index(Unreadable(), "00000_00000.pack", (0, 0))
    Unreadable.number = errno.EBADF
    with pytest.raises(OSError, match="no"):
        read_index(Unreadable(), "00000_00000.pack", (0, 0))


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "uint16", "scale": 0.01, "nodata": 65535}], ids=["f4", "u2"]
)
@pytest.mark.parametrize("side", [128, 512])
def test_packs_fit_into_the_space_asked_for(tmp_path: Path, options: dict[str, Any], side: int) -> None:
    spec = output(700, 391, bands=2, **options)
    noise = np.random.default_rng(6).integers(0, 2**16, (2, 700, 391)).astype(np.float32)
    noise += np.random.default_rng(7).random(noise.shape, dtype=np.float32)
    store = fill(PackStore(tmp_path / "parts", spec, side), noise)
    upper, typical = required_bytes(spec, side)
    assert 2 * sum(path.stat().st_size for path in store.folder.iterdir()) <= upper
    assert typical <= upper <= required_bytes(spec)[0]
