"""The engine on small scenes with a model whose result is known: values, nodata, tiles, resume, failures."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.windows import Window
from deeplight.engine.output.packs import PackStore
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run import pipeline
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import BLUR, expected, write_analytic
from tests.scenes import write_raster, write_scene

HEIGHT, WIDTH = 21, 27


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    files = write_scene(tmp_path_factory.mktemp("scene"), HEIGHT, WIDTH)
    return SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))


@pytest.fixture(scope="module")
def long_scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    """NTL alone, 12 × 1100 LR pixels: five packs, the second all nodata."""
    rng = np.random.default_rng(3)
    ntl = rng.gamma(0.5, 8.0, (12, 1100)).astype(np.float32)
    ntl[:, 250:520] = -1
    return SceneOptions(ntl=str(write_raster(tmp_path_factory.mktemp("long") / "ntl.tif", ntl, nodata=-1)))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as d:
        return d.read(masked=True).astype(np.float64).filled(np.nan)


def run(scene: SceneOptions, model: str, out: Path, tiles: int | None = None, **more) -> pipeline.RunReport:
    request = None if tiles is None else TileRequest(tiles)
    report = infer(RunOptions(scene=scene, out=out, model=model, tiles=request, **more))
    assert report is not None
    return report


def truth(scene: SceneOptions) -> np.ndarray:
    """The model's formula on the whole scene's inputs; NaN where NTL is nodata."""
    with Scene.open(scene) as s:
        window = Window(0, 0, s.grid.height, s.grid.width)
        inputs = s.read_inputs(window.grown(BLUR))
        valid = s.read_ntl(window)[1]
    inner = expected(inputs)[8 * BLUR : -8 * BLUR, 8 * BLUR : -8 * BLUR]
    return np.where(np.kron(valid, np.ones((8, 8))) != 0, inner, np.nan)


@pytest.mark.parametrize("tiles", [None, 4, 5, 17, 256])
def test_values_and_nodata_are_the_models(
    scene: SceneOptions, model: str, tmp_path: Path, tiles: int | None
) -> None:
    report = run(scene, model, tmp_path / "o.tif", tiles)
    want = truth(scene)
    assert np.isnan(want).any() and np.nanmax(want) > 1
    # float32 sums of 25 terms, relative to the range
    np.testing.assert_allclose(read(tmp_path / "o.tif")[0], want, rtol=0, atol=1e-5 * np.nanmax(want))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.tif"]
    assert cog_validate(tmp_path / "o.tif", strict=True)[0]
    assert report.tiles["plan"] == ("whole scene" if tiles is None else f"{tiles}+2")


def test_output_grid_bands_and_tags(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    run(scene, model, tmp_path / "o.tif", 8, bands=("isp", "offset"))
    with rasterio.open(scene.ntl) as ntl, rasterio.open(tmp_path / "o.tif") as out:
        assert (out.height, out.width, out.count) == (8 * HEIGHT, 8 * WIDTH, 4)
        assert out.crs == ntl.crs
        np.testing.assert_allclose(out.bounds, ntl.bounds, atol=1e-9)
        assert out.descriptions == ("ntl", "isp", "offset_x", "offset_y")
        assert out.units == ("nW/cm²/sr", "probability", "LR px", "LR px")
        tags = out.tags()
        offset, lr = out.read(3), ntl.read(1)
    assert tags["DEEPLIGHT_MODEL"] == "analytic" and "DEEPLIGHT_ONNXRUNTIME_VERSION" in tags
    assert str(tmp_path) not in json.dumps(tags)
    # the analytic model's first offset channel is its NTL input
    want = np.kron(np.where(lr == -999, np.nan, lr), np.ones((8, 8)))
    np.testing.assert_array_equal(offset, want.astype(np.float32))


def test_report_adds_up(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    report = run(scene, model, tmp_path / "o.tif", 5, report=tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["tiles"]["computed"] + content["tiles"]["skipped"] == 5 * 6
    assert content["tiles"]["skipped"] == 1
    with Scene.open(scene) as s:
        values, valid = s.read_ntl(Window(0, 0, HEIGHT, WIDTH))
    assert content["lights"]["valid_lr_pixels"] == valid.sum()
    assert content["lights"]["mean_in"] == pytest.approx(values[valid != 0].mean(), rel=1e-5)
    assert content["lights"]["mean_out"] == pytest.approx(np.nanmean(truth(scene)), rel=1e-5)
    assert content["bottleneck"] in content["load"] and report.hr_mpix_per_s > 0
    # 15″ pixels at 50° N: 0.4633 km × 0.4633 km · cos 50°
    area = content["km2_per_s"] * content["seconds"]["total"]
    assert area == pytest.approx(valid.sum() * 0.4633**2 * np.cos(np.radians(49.96)), rel=0.01)


def test_equal_runs_give_equal_bytes(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    """Whatever the file's name and folder, the inputs' folder, the time, and how the run was started."""
    (tmp_path / "elsewhere").mkdir()
    moved = {}
    for layer in ("ntl", "dmo", "dem"):
        moved[layer] = str(tmp_path / "elsewhere" / f"{layer}_2.tif")
        Path(moved[layer]).write_bytes(Path(getattr(scene, layer)).read_bytes())
    bands = ("isp", "offset", "quality")
    run(scene, model, tmp_path / "a.tif", 6, bands=bands)
    other = dataclasses.replace(scene, **moved)
    run(other, model, tmp_path / "elsewhere" / "b.tif", 6, bands=bands, mode=Mode.RESUME)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "elsewhere" / "b.tif").read_bytes()
    with rasterio.open(tmp_path / "a.tif") as d:
        tags = d.tags()
    assert tags["DEEPLIGHT_OPTION_BANDS"] == "isp,offset,quality"
    assert str(tmp_path) not in json.dumps(tags) and "tif" not in json.dumps(list(tags.values()))


def test_streams_do_not_change_a_byte(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    reports = [
        run(
            scene,
            model,
            tmp_path / f"{streams}.tif",
            5,
            threads=2,
            streams=streams,
            bands=("offset", "quality"),
        )
        for streams in (1, 2)
    ]
    assert [r.tiles["streams"] for r in reports] == [1, 2]
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "2.tif").read_bytes()


def test_auto_tiles_take_two_streams_where_there_are_two_threads(
    long_scene: SceneOptions, model: str, tmp_path: Path
) -> None:
    def streams(tiles: TileRequest, threads: int) -> int:
        out = tmp_path / f"{tiles}-{threads}.tif"
        report = infer(RunOptions(long_scene, out, model, tiles, threads=threads))
        assert report is not None
        return int(report.tiles["streams"])

    found = [streams(TileRequest(core), threads) for core in (None, 100) for threads in (1, 2)]
    assert found == [1, 2, 1, 1]


def test_streams_that_a_backend_lacks_are_refused_before_anything_goes(
    long_scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend

    def claimed(*_: object) -> None:
        raise AssertionError("what an earlier run kept would be gone")

    monkeypatch.setattr(pipeline, "claimed_parts", claimed)
    monkeypatch.setattr(OnnxRuntimeBackend, "splits", False)
    with pytest.raises(InputError, match="onnxruntime computes one tile at a time: leave out `streams=2`"):
        run(long_scene, model, tmp_path / "o.tif", 5, threads=2, streams=2, mode=Mode.OVERWRITE)


def test_tags_do_not_name_what_decides_no_pixel(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    tags = []
    for tiles, threads in ((6, 1), (None, 2)):
        run(scene, model, tmp_path / "o.tif", tiles, threads=threads, mode=Mode.OVERWRITE)
        with rasterio.open(tmp_path / "o.tif") as d:
            tags.append(d.tags())
    assert tags[0] == tags[1]
    assert {
        "DEEPLIGHT_MODEL",
        "DEEPLIGHT_MODEL_SHA256",
        "DEEPLIGHT_VERSION",
        "DEEPLIGHT_OPTION_DTYPE",
    } <= set(tags[0])


def test_deflate_on_request(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    run(scene, model, tmp_path / "z.tif", 6)
    run(scene, model, tmp_path / "d.tif", 6, compression="deflate")
    with rasterio.open(tmp_path / "z.tif") as z, rasterio.open(tmp_path / "d.tif") as d:
        assert (z.compression.value, d.compression.value) == ("ZSTD", "DEFLATE")
        np.testing.assert_array_equal(z.read(), d.read())
    assert cog_validate(tmp_path / "d.tif", strict=True)[0]


def test_uint16(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    run(scene, model, tmp_path / "o.tif", dtype="uint16")
    with rasterio.open(tmp_path / "o.tif") as d:
        assert d.dtypes == ("uint16",) and d.scales == (0.1,) and d.nodata == 65535
    want = truth(scene)
    got = read(tmp_path / "o.tif")[0] * 0.1
    # half a step of the encoding
    np.testing.assert_allclose(got, want, rtol=0, atol=0.0501)


def test_packs_and_skipped_tiles(long_scene: SceneOptions, model: str, tmp_path: Path) -> None:
    report = run(long_scene, model, tmp_path / "o.tif", 100)
    want = truth(long_scene)
    np.testing.assert_allclose(read(tmp_path / "o.tif")[0], want, rtol=0, atol=1e-5 * np.nanmax(want))
    assert report.packs == {"written": 4, "all_nodata": 1, "kept_from_earlier_run": 0}
    assert report.tiles["skipped"] == 3


def test_whole_scene_fills_several_packs(long_scene: SceneOptions, model: str, tmp_path: Path) -> None:
    report = run(long_scene, model, tmp_path / "o.tif")
    want = truth(long_scene)
    np.testing.assert_allclose(read(tmp_path / "o.tif")[0], want, rtol=0, atol=1e-5 * np.nanmax(want))
    assert report.tiles["computed"] == 1


class Stopper:
    """Stands in for PackStore.write: lets `packs` through, then raises."""

    def __init__(self, packs: int, error: BaseException) -> None:
        self.left, self.error, self.write = packs, error, PackStore.write

    def __call__(
        self, store: PackStore, key: tuple[int, int], pixels: np.ndarray, facts: dict[str, float]
    ) -> int:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.write(store, key, pixels, facts)


def test_stopped_run_resumes_to_the_same_bytes(
    long_scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(long_scene, model, tmp_path / "undisturbed.tif", 64)
    out = tmp_path / "o.tif"
    with monkeypatch.context() as m:
        stopper = Stopper(2, Interrupted(15))
        m.setattr(PackStore, "write", lambda *a: stopper(*a))
        with pytest.raises(Interrupted):
            run(long_scene, model, out, 64)
    assert not out.exists() and parts_folder(out).is_dir()
    with pytest.raises(InputError, match="use `resume=True` to continue it or `overwrite=True`"):
        run(long_scene, model, out, 64)
    with pytest.raises(InputError, match=r"`tiles` was 64 and is now 65"):
        run(long_scene, model, out, 65, mode=Mode.RESUME)
    with pytest.raises(InputError, match=r"option ntl_scale was absent and is now 2"):
        scaled = dataclasses.replace(long_scene, ntl_scale=(2.0, 0.0))
        run(scaled, model, out, 64, mode=Mode.RESUME)
    with pytest.raises(InputError, match=r"option psf was 1\.6,2\.5 and is now 1\.6,2\.4"):
        run(dataclasses.replace(long_scene, psf=(1.6, 2.4)), model, out, 64, mode=Mode.RESUME)
    report = run(long_scene, model, out, 64, mode=Mode.RESUME)
    assert report.packs["kept_from_earlier_run"] >= 2
    assert out.read_bytes() == (tmp_path / "undisturbed.tif").read_bytes()
    assert not parts_folder(out).exists()


def test_automatic_tiles_of_a_stopped_run_take_no_other_option(
    long_scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conservation needs a larger halo, which is not what the message is about."""
    request = RunOptions(scene=long_scene, out=tmp_path / "o.tif", model=model)
    with monkeypatch.context() as m:
        stopper = Stopper(1, Interrupted(15))
        m.setattr(PackStore, "write", lambda *a: stopper(*a))
        with pytest.raises(Interrupted):
            infer(request)
    with pytest.raises(InputError, match=r"option conserve_radiance was absent and is now yes"):
        infer(dataclasses.replace(request, mode=Mode.RESUME, conserve_radiance=True))
    assert infer(dataclasses.replace(request, mode=Mode.RESUME)) is not None


def test_resume_of_nothing_and_of_a_finished_run(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    out = tmp_path / "o.tif"
    run(scene, model, out, 8, mode=Mode.RESUME)
    before = out.stat().st_mtime_ns
    request = RunOptions(scene=scene, out=out, model=model, tiles=TileRequest(8), mode=Mode.RESUME)
    assert infer(request) is None and out.stat().st_mtime_ns == before
    # Tiles of another size would give the same map.
    assert infer(dataclasses.replace(request, tiles=TileRequest(9))) is None
    with pytest.raises(InputError, match="DEEPLIGHT_OPTION_COMPRESSION is zstd there and deflate here"):
        infer(dataclasses.replace(request, compression="deflate"))


def test_changed_input_is_named(
    long_scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ntl = tmp_path / "ntl.tif"
    ntl.write_bytes(Path(long_scene.ntl).read_bytes())
    scene = SceneOptions(ntl=str(ntl))
    with monkeypatch.context() as m:
        stopper = Stopper(1, DeepLightError("disk full"))
        m.setattr(PackStore, "write", lambda *a: stopper(*a))
        with pytest.raises(DeepLightError, match="disk full"):
            run(scene, model, tmp_path / "o.tif", 64)
    data = bytearray(ntl.read_bytes())
    data[-100] ^= 1
    ntl.write_bytes(data)
    with pytest.raises(InputError, match="the file of `ntl` was"):
        run(scene, model, tmp_path / "o.tif", 64, mode=Mode.RESUME)
    run(scene, model, tmp_path / "o.tif", 64, mode=Mode.OVERWRITE)


def test_failure_before_the_first_pack_leaves_nothing(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scene, "read_inputs", lambda *a: (_ for _ in ()).throw(DeepLightError("damaged")))
    with pytest.raises(DeepLightError, match="damaged"):
        run(scene, model, tmp_path / "o.tif", 8)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_share_an_output(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    parts = parts_folder(tmp_path / "o.tif")
    parts.mkdir()
    with (parts / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mode in Mode:
            with pytest.raises(InputError, match="another run is writing"):
                run(scene, model, tmp_path / "o.tif", 8, mode=mode)
    run(scene, model, tmp_path / "o.tif", 8, mode=Mode.OVERWRITE)


def test_overwrite_replaces_a_link_not_its_target(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim.tif", tmp_path / "o.tif"
    victim.write_text("precious")
    out.symlink_to(victim)
    with pytest.raises(InputError, match="exists: use `overwrite=True`"):
        run(scene, model, out)
    run(scene, model, out, mode=Mode.OVERWRITE)
    assert victim.read_text() == "precious" and not out.is_symlink()


def test_output_must_not_be_an_input(scene: SceneOptions, model: str) -> None:
    with pytest.raises(InputError, match="is also an input"):
        run(scene, model, Path(scene.ntl), mode=Mode.OVERWRITE)


def test_output_that_cannot_fit_is_refused(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("deeplight.engine.output.parts.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="free some space"):
        run(scene, model, tmp_path / "o.tif")
    assert list(tmp_path.iterdir()) == []
