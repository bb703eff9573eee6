"""An export in several files, as Earth Engine delivers it: pieces on one lattice are one raster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.engine.analytic import write_analytic
from tests.field.programs import advised, refusal, run
from tests.scenes import ARC, NORTH, WEST, north_up, write_raster

LIGHTS = np.random.default_rng(3).gamma(0.5, 8.0, (30, 44)).astype(np.float32)
NAMES = ["blue", "green", "red", "nir"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def infer(folder: Path, model: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("deeplight-infer", *arguments, "--model", model, "--tiles", "16", cwd=folder)


def piece(
    path: Path, values: np.ndarray, row: int, col: int, size: tuple[int, int], **header: object
) -> None:
    part = values[..., row : row + size[0], col : col + size[1]]
    place = north_up(ARC, WEST + col * ARC, NORTH - row * ARC)
    write_raster(path, part, transform=place, **header)  # type: ignore[arg-type]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as d:
        return np.asarray(d.read(1))


def test_pieces_give_the_pixels_of_the_whole(tmp_path: Path, model: str) -> None:
    """Different sizes, an overlap that agrees, nodata, a mask, and a corner that no piece covers."""
    lights = LIGHTS.copy()
    lights[4, 5] = -999
    mask = np.ones(lights.shape, bool)
    mask[12, 30:34] = False
    whole = mask.copy()
    whole[20:, 30:] = False  # no piece there
    write_raster(tmp_path / "w.tif", lights, nodata=None, mask=whole & (lights != -999))
    for number, (row, col, h, w) in enumerate([(0, 0, 30, 20), (0, 18, 20, 26), (20, 20, 10, 10)]):
        part = mask[row : row + h, col : col + w]
        piece(
            tmp_path / f"ntl-{number}.tif",
            lights,
            row,
            col,
            (h, w),
            nodata=-999,
            mask=None if part.all() else part,
        )
    for name, ntl in (("whole", "w.tif"), ("pieces", "ntl-?.tif")):
        done = infer(tmp_path, model, "--ntl", ntl, "--out", f"{name}.tif", "--report", f"{name}.json")
        assert done.returncode == 0, done.stderr
    # the mask is a number beside nodata in one and a mask in both: what was valid must be
    np.testing.assert_array_equal(read(tmp_path / "whole.tif"), read(tmp_path / "pieces.tif"))
    facts = json.loads((tmp_path / "pieces.json").read_text())["inputs"]["ntl"]
    assert facts["file"] == "ntl-?.tif" and [Path(p).name for p in facts["pieces"]] == [
        f"ntl-{i}.tif" for i in range(3)
    ]
    assert facts["bytes"] == sum((tmp_path / f"ntl-{i}.tif").stat().st_size for i in range(3))


def test_pieces_of_daytime_bands_keep_names_and_scale(tmp_path: Path, model: str) -> None:
    write_raster(tmp_path / "n.tif", LIGHTS)
    raw = np.random.default_rng(0).integers(500, 4000, (4, 30, 44)).astype(np.uint16)
    header = {"names": NAMES, "scales": [1e-4] * 4, "nodata": 0}
    write_raster(tmp_path / "d.tif", raw, **header)  # type: ignore[arg-type]
    for col in (0, 22):
        piece(tmp_path / f"dmo {col} [a].tif", raw, 0, col, (30, 22), **header)
    for name, dmo in (("whole", "d.tif"), ("pieces", "dmo *.tif")):
        done = infer(tmp_path, model, "--ntl", "n.tif", "--dmo", dmo, "--out", f"{name}.tif")
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read(tmp_path / "whole.tif"), read(tmp_path / "pieces.tif"))


def test_a_pattern_that_the_shell_has_expanded_is_told_in_quotes(tmp_path: Path, model: str) -> None:
    for number in range(3):
        piece(tmp_path / f"ntl-000{number}-0.tif", LIGHTS, 0, 12 * number, (30, 12))
    files = sorted(p.name for p in tmp_path.glob("ntl-*.tif"))
    message = refusal(infer(tmp_path, model, "--ntl", *files, "--out", "o.tif"))
    flag, pattern = advised(message, "--ntl '").split(" ")
    assert infer(tmp_path, model, flag, pattern.strip("'"), "--out", "o.tif").returncode == 0
    with rasterio.open(tmp_path / "o.tif") as d:
        assert (d.height, d.width) == (240, 288)
    assert "o.png belongs to no option" in refusal(
        infer(tmp_path, model, "--ntl", "a.tif", "--out", "o.tif", "o.png")
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"values": LIGHTS + 1}, "overlap and hold different pixels"),
        ({"west": WEST + 20.4 * ARC}, "lies 0.40 columns"),
        ({"pixel": ARC / 2}, "the pixel size is"),
        ({"crs": "EPSG:4269"}, "the CRS is"),
        ({"values": LIGHTS.astype(np.float64)}, "the pixel type is"),
        ({"nodata": -9.0}, "the nodata value is"),
        ({"scales": [0.1]}, "the scale is"),
        ({"units": ["DN"]}, "the unit is"),
        ({"values": np.stack([LIGHTS] * 2)}, "the number of bands is"),
    ],
)
def test_what_is_not_pieces_of_one_raster_is_refused(
    tmp_path: Path, model: str, second: dict[str, object], expected: str
) -> None:
    write_raster(tmp_path / "p-1.tif", LIGHTS)
    header = {"values": LIGHTS, "west": WEST + 20 * ARC, "pixel": ARC, "crs": "EPSG:4326", **second}
    place = north_up(header.pop("pixel"), header.pop("west"))  # type: ignore[arg-type]
    write_raster(tmp_path / "p-2.tif", header.pop("values"), header.pop("crs"), place, **header)  # type: ignore[arg-type]
    message = refusal(infer(tmp_path, model, "--ntl", "p-*.tif", "--out", "o.tif"))
    assert expected in message and "p-1.tif" in message and not (tmp_path / "o.tif").exists()


def test_names_that_lead_nowhere_or_away(tmp_path: Path, model: str) -> None:
    out = ("--out", "o.tif")
    assert "is a pattern that no file matches" in refusal(infer(tmp_path, model, "--ntl", "x-*.tif", *out))
    (tmp_path / "f").mkdir()
    write_raster(tmp_path / "f" / "a.tif", LIGHTS)
    assert "its pieces as a pattern, such as " in refusal(infer(tmp_path, model, "--ntl", "f", *out))
    remote = (
        '<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    )
    remote += (
        "<SourceFilename>/vsicurl/http://x/y.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "f" / "b.tif").write_text(remote)
    assert "is not a file here" in refusal(infer(tmp_path, model, "--ntl", "f/*.tif", *out))
    assert "is also an input" in refusal(
        infer(tmp_path, model, "--ntl", "f/*.tif", "--out", "f/a.tif", "--overwrite")
    )


def test_a_changed_piece_stops_a_resumed_run(tmp_path: Path, model: str) -> None:
    for number in range(2):
        piece(tmp_path / f"p{number}.tif", LIGHTS, 0, 22 * number, (30, 22))
    call = ("--ntl", "p*.tif", "--out", "o.tif")
    assert infer(tmp_path, model, *call).returncode == 0
    assert infer(tmp_path, model, *call, "--resume").returncode == 0
    piece(tmp_path / "p1.tif", LIGHTS + 1, 0, 22, (30, 22))
    assert "DEEPLIGHT_INPUT_NTL" in refusal(infer(tmp_path, model, *call, "--resume"))
