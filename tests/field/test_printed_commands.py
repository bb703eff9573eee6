"""Every command that a message prints is run as printed, and its result gives the right lights."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from tests.engine.analytic import write_analytic
from tests.field.lights import hole, lights
from tests.field.programs import refusal, run, shell
from tests.scenes import ARC, NORTH, WEST, north_up, write_raster
from tests.sources import tracked

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
COMMAND = re.compile(r"(?:deeplight-data|rio|tar|gunzip|unzip) .*|\S*python\S* -[cm] .*")
"""A command ends its message."""
SCALED = {"scales": [0.1], "offsets": [2.0], "units": ["nW/cm²/sr"]}
SIDE = 24
NAMES = ["my lights (2021) & 'old'.tif", "tiles of June/*.tif", "plain.tif"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def truth() -> np.ndarray:
    """What is right, in steps of 0.1 nW/cm²/sr."""
    return (np.rint(lights(SIDE) * 10) / 10).astype(np.float32)


def stored() -> np.ndarray:
    """The same as a file of tenths from 2 holds it."""
    return np.rint((truth() - 2) * 10)


def put(
    folder: Path, name: str, pixels: np.ndarray, transform: Affine | None = None, **header: object
) -> None:
    """Write pixels under a name; for a pattern as two pieces, left and right."""
    place = transform or north_up(ARC)
    (folder / name).parent.mkdir(exist_ok=True)
    if "*" not in name:
        write_raster(folder / name, pixels, transform=place, **header)
        return
    for piece, start, stop in (("a", 0, 10), ("b", 10, SIDE)):
        at = place @ Affine.translation(start, 0)
        write_raster(folder / name.replace("*", piece), pixels[..., start:stop], transform=at, **header)


@dataclass(frozen=True)
class Case:
    """write: the files, of a name. options: of the first run, beside --ntl NAME. then: those of the run on the result,
    in place of --ntl NAME. right: the lights that it must see."""

    write: Callable[[Path, str], None]
    then: tuple[str, ...]
    right: Callable[[], np.ndarray] = truth
    options: tuple[str, ...] = ()


def two_fills(folder: Path, name: str) -> None:
    values = stored()
    gap = hole(48)[:SIDE, :SIDE]
    values[gap] = 32767
    values[0, :3] = -999
    put(folder, name, values.astype(np.int16), nodata=-999, **SCALED)


def with_gaps() -> np.ndarray:
    values = truth()
    values[hole(48)[:SIDE, :SIDE]] = np.nan
    values[0, :3] = np.nan
    return values


def decibels(folder: Path, name: str) -> None:
    logs = 10 * np.log10(truth() + 1)
    header = {"units": ["dB"], "scales": [0.5], "offsets": [-3.0], "nodata": -9999.0}
    put(folder, name, ((logs + 3) / 0.5).astype(np.float32), **header)


def second_band_of_logarithms(folder: Path, name: str) -> None:
    both = np.stack([np.full((SIDE, SIDE), 7.0), np.log(truth() + 1)]).astype(np.float32)
    put(folder, name, both, units=["1", "ln(nW/cm2/sr)"])


def shifted_count(folder: Path, name: str) -> None:
    put(folder, name, stored().astype(np.int16), **SCALED)
    count = np.ones((SIDE * 2, SIDE * 2), np.uint8)
    count[:8] = 0
    write_raster(folder / "count.tif", count, transform=north_up(ARC / 2))


def seen() -> np.ndarray:
    values = truth()
    values[:4] = np.nan
    return values


CASES = {
    "two fill values": Case(two_fills, ("--ntl", "one.tif"), with_gaps),
    "decibels": Case(decibels, ("--ntl", "radiance.tif"), lambda: truth() + 1),
    "a band of logarithms": Case(
        second_band_of_logarithms, ("--ntl", "radiance.tif"), lambda: truth() + 1, ("--ntl-band", "2")
    ),
    "a count elsewhere": Case(
        shifted_count, ("--ntl", "NAME", "--ntl-valid", "valid.tif"), seen, ("--ntl-valid", "count.tif")
    ),
}


def infer(folder: Path, model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    fixed = ("--model", model, "--tiles", "16", "--overwrite", "--out", "o.tif")
    return run("deeplight-infer", *arguments, *fixed, cwd=folder)


def pixels(folder: Path, model: str, *arguments: str) -> np.ndarray:
    done = infer(folder, model, *arguments)
    assert done.returncode == 0, done.stderr
    with rasterio.open(folder / "o.tif") as d:
        return np.asarray(d.read(1, masked=True).filled(np.nan))


def right(folder: Path, model: str, values: np.ndarray) -> np.ndarray:
    write_raster(folder / "right.tif", values, transform=north_up(ARC), nodata=np.nan, units=["nW/cm²/sr"])
    return pixels(folder, model, "--ntl", "right.tif")


def printed(message: str) -> str:
    found = COMMAND.search(message)
    assert found is not None, message
    return found[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_lights_that_a_printed_command_prepares(case: str, name: str, tmp_path: Path, model: str) -> None:
    """Scales, units and missing pixels stay, whatever the name, and of a pattern all pieces are taken."""
    told = CASES[case]
    told.write(tmp_path, name)
    shell(printed(refusal(infer(tmp_path, model, "--ntl", name, *told.options))), tmp_path)
    out = pixels(tmp_path, model, *(name if part == "NAME" else part for part in told.then))
    np.testing.assert_allclose(out, right(tmp_path, model, told.right()), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_control_points(tmp_path: Path, model: str, dtype: str) -> None:
    """What the warp leaves empty is missing, and the scale stays."""
    name = NAMES[0]
    put(tmp_path, name, np.maximum(stored(), 0).astype(dtype), Affine.identity(), crs=None, **SCALED)
    with rasterio.open(tmp_path / name, "r+") as file:
        at = [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)]
        file.gcps = ([GroundControlPoint(r, c, WEST + c * ARC, NORTH - r * ARC) for r, c in at], "EPSG:4326")
    shell(printed(refusal(infer(tmp_path, model, "--ntl", name))), tmp_path)
    expected = right(tmp_path, model, np.maximum(truth(), 2))
    np.testing.assert_allclose(pixels(tmp_path, model, "--ntl", "warped.tif"), expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("more", [False, True])
def test_a_daytime_file_of_several_bands(tmp_path: Path, model: str, more: bool) -> None:
    """--dmo-band NIR=FILE leads to the band that is near infrared, with its scale."""
    name = NAMES[0]
    put(tmp_path, "n.tif", truth(), units=["nW/cm²/sr"])
    bands = np.stack([np.full((SIDE, SIDE), v, np.uint16) for v in (700, 900, 1200, 2500)])
    header = {"names": ["blue", "green", "red", "nir"], "scales": [0.0002] * 4}
    put(tmp_path, name, bands, **header)
    put(tmp_path, "r.tif", bands[2] * np.float32(0.0002), names=["red"])
    other = ("--dmo-band", "red=r.tif") if more else ()
    message = refusal(infer(tmp_path, model, "--ntl", "n.tif", "--dmo-band", f"nir={name}", *other))
    if more:
        shell(printed(message), tmp_path)
        out = pixels(tmp_path, model, "--ntl", "n.tif", "--dmo-band", "nir=nir.tif", *other)
    else:
        program = (
            f"deeplight-infer --ntl n.tif {message[message.index('--dmo ') :]} --model {model} --out o.tif"
        )
        shell(program, tmp_path)
        with rasterio.open(tmp_path / "o.tif") as d:
            out = d.read(1)
    put(tmp_path, "nir.tif", bands[3] * np.float32(0.0002), names=["nir"])
    wanted = pixels(tmp_path, model, "--ntl", "n.tif", "--dmo-band", "nir=nir.tif", *other)
    np.testing.assert_allclose(out, wanted, rtol=1e-5)
    put(tmp_path, "nir.tif", bands[0] * np.float32(0.0002), names=["nir"])
    wrong = pixels(tmp_path, model, "--ntl", "n.tif", "--dmo-band", "nir=nir.tif", *other)
    assert not np.allclose(wrong, wanted, rtol=1e-5), "the test would see another band"


@pytest.mark.parametrize("name", ["-x.tif", NAMES[0], "a 'quoted\" $HOME `name`.tif"])
def test_names_that_a_shell_would_read_otherwise(tmp_path: Path, name: str) -> None:
    """Of a layer that only training knows: a band that is picked, and a CRS that is added to a copy."""
    clip = ("clip", "--out", "tree", "--place", "here", "--ntl", "n.tif", "--isp", name)
    put(tmp_path, "n.tif", truth(), units=["nW/cm²/sr"])
    put(tmp_path, name, np.full((2, SIDE, SIDE), 40, np.uint8), scales=[0.01] * 2)
    shell(printed(refusal(run("deeplight-data", *clip, cwd=tmp_path))), tmp_path)
    with rasterio.open(tmp_path / "one_band.tif") as d:
        assert d.count == 1 and d.scales == (0.01,)
    put(tmp_path, name, np.full((SIDE, SIDE), 40, np.uint8), crs=None, scales=[0.01])
    shell(printed(refusal(run("deeplight-data", *clip, cwd=tmp_path))), tmp_path)
    with rasterio.open(tmp_path / "placed.tif") as d:
        assert d.crs.to_epsg() == 4326 and d.scales == (0.01,)


def test_a_copy_never_replaces_what_it_copies(tmp_path: Path) -> None:
    put(tmp_path, "n.tif", truth())
    before = (tmp_path / "n.tif").read_bytes()
    done = run("deeplight-data", "copy", "n.tif", "n.tif", "--overwrite", cwd=tmp_path)
    assert "n.tif is the raster to be copied, which stays as it is" in refusal(done)
    assert (tmp_path / "n.tif").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_no_message_prints_a_command_that_is_not_run_here() -> None:
    """rio loses scales and units and opens no pattern; edit-info changes the place alone, of a copy."""
    found = []
    for path in tracked("engine", "train", "export"):
        found += re.findall(r"rio (?:calc|stack|warp|merge|convert|clip)\b", path.read_text())
    assert found == []
