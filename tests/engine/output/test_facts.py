"""What a run counts over its output stays whole when it is resumed; what is written beside it, and when."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import InputError, Interrupted
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.output.facts import Facts, layers_present
from deeplight.engine.output.packs import BandSpec, OutputSpec
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.test_packs import output
from tests.scenes import ARC, NORTH, WEST, north_up, write_raster

HEIGHT, WIDTH = 6, 800


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    """Four packs of NTL with some nodata, some pixels beyond uint16, and a DEM over the last half of it."""
    folder = tmp_path_factory.mktemp("scene")
    ntl = np.random.default_rng(5).gamma(0.5, 8.0, (HEIGHT, WIDTH)).astype(np.float32)
    ntl[:, 30:60] = -1
    ntl[2:5, 10:15] = ntl[2:5, 700:705] = 20000
    dem = np.full((HEIGHT + 2, WIDTH // 2 + 1), 200, np.int16)
    place = north_up(ARC, WEST + WIDTH // 2 * ARC, NORTH + ARC)  # its corners, where it is cut, lie outside
    return SceneOptions(
        ntl=str(write_raster(folder / "ntl.tif", ntl, nodata=-1, units=["nW/cm²/sr"])),
        dem=str(write_raster(folder / "dem.tif", dem, transform=place)),
    )


class Stopper(Silent):
    """Interrupts after some tiles; keeps what was said."""

    def __init__(self, tiles: int = 1 << 30) -> None:
        self.left, self.said = tiles, list[str]()

    def advance(self, pixels: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)

    def log(self, message: str) -> None:
        self.said.append(message)


def options(scene: SceneOptions, model: str, folder: Path, **more: Any) -> RunOptions:
    folder.mkdir(exist_ok=True)
    return RunOptions(scene=scene, out=folder / "o.tif", model=model, report=folder / "run.json", **more)


@pytest.mark.parametrize("tiles", [TileRequest(100), None], ids=["tiles", "one piece"])
def test_counts_are_whole_after_a_resumed_run(
    scene: SceneOptions, model: str, tmp_path: Path, tiles: TileRequest | None
) -> None:
    calm = options(scene, model, tmp_path / "calm", tiles=tiles, dtype="uint16")
    told = Stopper()
    whole = infer(calm, told)
    assert whole is not None
    with rasterio.open(calm.out) as d:
        written = d.read(1)
    valid = written != 65535
    assert whole.inputs["dem"]["share_of_output"] == valid[:, 4 * WIDTH :].sum() / valid.sum()
    # where the model exceeds the largest code, all of it: 6553.4 is not reached by rounding
    assert whole.clamped_pixels == (written == 65534).sum() > 64
    warning = [line for line in told.said if line.startswith(f"warning: {whole.clamped_pixels} pixels (")]
    assert len(warning) == 1 and "above 6553.4 nW/cm²/sr" in warning[0] and '`dtype="float32"`' in warning[0]

    request = options(scene, model, tmp_path / "stopped", tiles=tiles, dtype="uint16")
    if tiles is None:  # one piece has no end within: lose a pack, as a kill after three would
        request = lose_a_pack(request)
    else:
        with pytest.raises(Interrupted):
            infer(request, Stopper(5))
    again = infer(dataclasses.replace(request, mode=Mode.RESUME))
    assert again is not None and again.packs["kept_from_earlier_run"] >= 1
    assert request.out.read_bytes() == calm.out.read_bytes()
    report = json.loads(request.report.read_text()) if request.report else {}
    assert report["inputs"]["dem"]["share_of_output"] == whole.inputs["dem"]["share_of_output"]
    assert report["clamped_pixels"] == whole.clamped_pixels
    assert report["lights"] == whole.lights  # to the last bit: sums are in the order of the cores


def lose_a_pack(request: RunOptions) -> RunOptions:
    """Runs until the output would be assembled, and takes one of its packs away."""

    class Killed(Exception):
        pass

    class Killer(Silent):
        def log(self, message: str) -> None:
            if message.startswith("assembling"):
                raise Killed

    with pytest.raises(Killed):
        infer(request, Killer())
    packs = sorted(request.out.parent.glob("o.tif.parts/packs-*/*.pack"))
    assert len(packs) == 4
    packs[1].unlink()
    return request


def test_facts_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    lr, valid = rng.normal(1, 2, (3, 4)).astype(np.float32), (rng.random((3, 4)) < 0.6).astype(np.uint8)
    there = {f"{n}_valid": (rng.random((1, 1, 40, 48)) < 0.5).astype(np.float32) for n in ("dmo", "dem")}
    core, window = Window(5, 6, 3, 4), Window(4, 5, 5, 6)
    layers = layers_present(there, core, window)
    radiance = rng.random((24, 32)).astype(np.float32)
    counts = {"valid": 0, "dmo": 0, "dem": 0, "ntl_alone": 0}
    for r in range(24):
        for c in range(32):
            if not valid[r // 8, c // 8]:
                radiance[r, c] = np.nan
                continue
            dmo, dem = (there[f"{n}_valid"][0, 0, r + 8, c + 8] != 0 for n in ("dmo", "dem"))
            counts["valid"] += 1
            counts["dmo"] += bool(dmo)
            counts["dem"] += bool(dem)
            counts["ntl_alone"] += not (dmo or dem)
    seen = (lr + 0.1).astype(np.float32)
    got = Facts.of(lr, valid, radiance, seen, layers, 7)
    light = np.maximum(lr[valid != 0], 0)
    rms = np.sqrt(np.mean((seen[valid != 0] - light) ** 2) / np.mean(light**2))
    assert got.residual_rms == pytest.approx(float(rms), rel=1e-6)
    assert {k: getattr(got, k) for k in counts} == counts and got.clamped == 7
    assert got.lights_in == pytest.approx(float(lr[valid != 0].sum()))
    assert got.lights_in_clamped == pytest.approx(float(np.maximum(lr[valid != 0], 0).sum()))
    assert got.lights_out == pytest.approx(float(np.nansum(radiance)) / 64) and got.largest == np.nanmax(
        radiance
    )
    assert Facts.from_json(json.loads(json.dumps(got.to_json()))) == got
    both = got + Facts(valid=1, clamped=2, largest=0.5)
    assert (both.valid, both.clamped, both.largest) == (got.valid + 1, 9, got.largest)


@pytest.mark.parametrize("nodata", [0, 65535])
def test_clamped_pixels_are_those_that_rounding_cannot_explain(nodata: int) -> None:
    grid = output(1, 1).grid
    spec = OutputSpec(grid, (BandSpec("ntl", ""),), "uint16", scale=0.1, offset=-2.0, nodata=nodata)
    low, high = (1, 65535) if nodata == 0 else (0, 65534)
    steps = np.array([low - 0.9, low - 0.4, low, high, high + 0.4, high + 0.6, high + 1e6, np.nan])
    pixels = (steps * 0.1 - 2.0).astype(np.float32)[None, None]
    assert spec.codec.clamped(pixels) == 3
    assert spec.codec.largest == pytest.approx(high * 0.1 - 2.0)
    assert output(1, 1).codec.clamped(np.full((1, 1, 1), 3e38, np.float32)) == 0


@pytest.mark.parametrize("kind", ["report", "quicklook", "stac"])
def test_files_beside_the_output_are_replaced_only_on_request(
    scene: SceneOptions, model: str, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / {"report": "a.json", "quicklook": "a.png", "stac": "o.stac.json"}[kind]
    path.write_text("mine")
    wanted: dict[str, Any] = {"stac": True} if kind == "stac" else {kind: path}
    request = RunOptions(scene=scene, out=tmp_path / "o.tif", model=model, tiles=TileRequest(256), **wanted)
    with pytest.raises(InputError, match=rf"{path.name} exists: use `overwrite=True`"):
        infer(request)
    assert path.read_text() == "mine" and sorted(tmp_path.iterdir()) == [path]
    infer(dataclasses.replace(request, mode=Mode.OVERWRITE))
    assert path.read_bytes() != b"mine" and request.out.exists()


@pytest.mark.parametrize("mode", [Mode.NEW, Mode.RESUME])
def test_what_a_kill_left_while_writing_the_report_goes(
    scene: SceneOptions, model: str, tmp_path: Path, mode: Mode
) -> None:
    request = RunOptions(
        scene=scene,
        out=tmp_path / "o.tif",
        model=model,
        tiles=TileRequest(256),
        report=tmp_path / "run.json",
        quicklook=tmp_path / "q.png",
    )
    if mode is Mode.RESUME:  # the output was complete when the kill came
        infer(dataclasses.replace(request, report=None, quicklook=None))
    for name in (".run.json.17-23.tmp", ".q.png.17-23.tmp"):
        (tmp_path / name).write_bytes(b"half")
    others = [tmp_path / ".other.json.17-23.tmp", tmp_path / "run.json.tmp"]
    for other in others:
        other.write_bytes(b"not ours")
    infer(dataclasses.replace(request, mode=mode))
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"o.tif", "q.png", *(o.name for o in others)} | (
        {"run.json"} if mode is Mode.NEW else set()
    )
