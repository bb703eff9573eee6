"""Cutting clips: from which rasters, what is refused, what a stopped run leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.warp import area_mean
from deeplight.train.clips import cut as clip_cut
from deeplight.train.clips.coarsen import make_coarse
from deeplight.train.clips.cut import Rules, judge_lights
from deeplight.train.clips.degrade import Degradation, degrade, place_seed
from deeplight.train.clips.index import read_index
from deeplight.train.clips.place import PlaceOptions
from deeplight.train.clips.plan import ClipPlanOptions
from deeplight.train.clips.samples import ClipError
from deeplight.train.clips.tree import ClipTree, open_source
from deeplight.train.data_cli import cli
from tests.scenes import UTM, north_up, write_raster
from tests.train.clips.places import ANY, cut, ntl_place, scene_place

NONE = Degradation(psf_fwhm_lr=0.0)


def test_the_cutter_takes_one_file_per_band(tmp_path: Path) -> None:
    files, _ = scene_place(tmp_path)
    with rasterio.open(files.scene.dmo) as dataset:
        pixels, place = dataset.read(), dataset.transform
    names = {}
    for slot in ("green", "nir"):
        band = pixels[DMO_SLOTS.index(slot)]
        path = write_raster(
            tmp_path / f"{slot}.tif", band, UTM, place, nodata=0, scales=[1e-4], offsets=[-0.1]
        )
        names[slot] = str(path)
    alone = replace(files, scene=replace(files.scene, dmo=None, dmo_files=names))
    cut(tmp_path / "tree", alone)
    source = ClipTree.open(tmp_path / "tree", "all")
    with Scene.open(files.scene) as scene:
        for index, row in enumerate(source.rows):
            sample = source.read(index, Window(0, 0, row.height, row.width))
            expected = scene.read_inputs(Window(row.row, row.col, row.height, row.width))["dmo"][0]
            assert sample.dmo_bands.tolist() == [0, 0, 1, 0, 1, 0, 0]
            np.testing.assert_allclose(sample.dmo[[2, 4]], expected[[2, 4]], atol=1.4e-5)
    with pytest.raises(InputError, match="use one of them"):
        cut(tmp_path / "both", replace(files, scene=replace(files.scene, dmo_files=names)))


@pytest.mark.parametrize("kind", ["qa", "cloud_mask"])
def test_clouds_hide_daytime_and_are_counted(tmp_path: Path, kind: str) -> None:
    files, _ = scene_place(tmp_path, 16, 16)
    qa = np.full((130, 130), 21824, np.uint16)  # Landsat 8 and 9: clear
    if kind == "cloud_mask":
        qa[:] = 0
    for bit in range(5):  # fill, dilated cloud, cirrus, cloud, shadow: rows 20 … 69
        qa[20 + 10 * bit : 30 + 10 * bit, :] |= (1 << bit) if kind == "qa" else 1
    qa[100:110] |= (1 << 5) if kind == "qa" else 0  # snow is no cloud
    path = write_raster(tmp_path / "c.tif", qa, transform=north_up(1 / 1920))
    files = replace(files, **{kind: str(path)})
    plan = ClipPlanOptions(clip=16, clip_min=16, block=16, buffer=0, shares=(1, 0, 0))
    cut(tmp_path / "tree", files, plan=plan)
    source = ClipTree.open(tmp_path / "tree", "all")
    sample = source.read(0, Window(0, 0, 16, 16))
    bare = ClipTree.open(_tree_without_clouds(tmp_path, files, kind, plan), "all").read(
        0, Window(0, 0, 16, 16)
    )
    hidden = (bare.dmo_valid == 1) & (sample.dmo_valid == 0)
    # a cloudy pixel hides what it contributes to: with centres on centres, itself
    assert not sample.dmo_valid[0, 20:70].any() and hidden[0, 20:70].any()
    assert np.array_equal(sample.dmo_valid[0, 71:], bare.dmo_valid[0, 71:])
    assert np.array_equal(sample.dmo_valid[0, :19], bare.dmo_valid[0, :19])
    assert not sample.dmo[:, 20:70].any() and np.array_equal(sample.ntl, bare.ntl)
    assert source.rows[0].cloud == pytest.approx(50 / 128, abs=2.1 / 128)
    strict = replace(ANY, max_cloud=0.3)
    with pytest.raises(InputError, match=r"1 too cloudy"):
        cut(tmp_path / "strict", files, plan=plan, rules=strict)
    assert not (tmp_path / "strict").exists()


def _tree_without_clouds(folder: Path, files: PlaceOptions, kind: str, plan: ClipPlanOptions) -> Path:
    cut(folder / "bare", replace(files, **{kind: None}), plan=plan)
    return folder / "bare"


def test_rules_reject_and_are_counted(tmp_path: Path) -> None:
    values = np.full((32, 32), 5.0, np.float32)
    values[:16, :16] = np.nan
    values[16:, :16] = 0.2
    path = write_raster(tmp_path / "n.tif", values, nodata=float("nan"))
    files = PlaceOptions(SceneOptions(str(path)))
    plan = ClipPlanOptions(clip=8, clip_min=8, block=32, buffer=0, shares=(1, 0, 0))
    report = cut(tmp_path / "tree", files, plan=plan, rules=Rules())
    assert report.clips == {"train": 8}
    assert report.rejected == {"with too much NTL nodata": 4, "too dark": 4}
    assert list(report.lines()) == ["clips: 8 train", "rejected: 4 with too much NTL nodata, 4 too dark"]
    assert len(read_index(tmp_path / "tree")) == 8
    facts, reason = judge_lights(
        values, np.isfinite(values).astype(np.float32), Rules(min_valid=0.75, min_lit=0.7)
    )
    assert facts["valid"] == 0.75 and facts["lit"] == pytest.approx(2 / 3) and reason == "too dark"


def test_negatives_stay_and_nodata_is_no_number(tmp_path: Path) -> None:
    values = np.full((8, 8), -0.04, np.float32)
    values[0, 0] = -999.0
    files = PlaceOptions(SceneOptions(str(write_raster(tmp_path / "n.tif", values, nodata=-999.0))))
    plan = ClipPlanOptions(clip=8, clip_min=8, block=8, buffer=0, shares=(1, 0, 0))
    cut(tmp_path / "tree", files, plan=plan)
    sample = ClipTree.open(tmp_path / "tree", "all").read(0, Window(0, 0, 8, 8))
    assert sample.ntl[0, 0, 0] == 0 and sample.ntl_valid[0, 0, 0] == 0 and sample.ntl_valid.sum() == 63
    assert (sample.ntl[sample.ntl_valid == 1] == np.float32(-0.04)).all()


def test_lr_lights_are_made_from_hr_ones(tmp_path: Path) -> None:
    files, _ = scene_place(tmp_path, 24, 32)
    alone = PlaceOptions(SceneOptions(""), ntl_hr=files.ntl_hr, isp=files.isp, isp_scale=(0.01, 0.0))
    degradation = Degradation(psf_fwhm_lr=1.2, noise=0.2, shift_lr=0.8, shift_period=24.0)
    plan = ClipPlanOptions(clip=12, clip_min=6, block=12, buffer=2)
    cut(tmp_path / "tree", alone, degradation=degradation, plan=plan, unit="DN")
    source = ClipTree.open(tmp_path / "tree", "all")
    assert source.rows[0].layers == "ntl ntl_hr isp offset" and source.rows[0].unit == "DN"
    with rasterio.open(files.ntl_hr) as dataset:
        hr = dataset.read()
    lr, _, offset = degrade(hr, np.ones_like(hr), degradation, place_seed(0, "here"))
    for index, row in enumerate(source.rows):
        sample = source.read(index, Window(0, 0, row.height, row.width))
        rows, cols = slice(row.row, row.row + row.height), slice(row.col, row.col + row.width)
        assert np.array_equal(sample.ntl, lr[:, rows, cols])
        assert sample.offset is not None and np.array_equal(sample.offset, offset[:, rows, cols])
        assert sample.psf.tolist() == np.float32([1.2, 1.2]).tolist(), "the clip says what made its lights"
        assert sample.limits.tolist() == np.float32([-1.0, 0.2]).tolist()
    ntl = tmp_path / "tree" / source.rows[0].clip / "ntl.tif"
    with rasterio.open(ntl, "r+") as dataset:
        dataset.update_tags(DEEPLIGHT_PSF="1.2")
    with pytest.raises(ClipError, match="must be two numbers"):
        ClipTree.open(tmp_path / "tree", "all").read(0, Window(0, 0, 6, 6))
    assert not list((tmp_path / "tree").glob(".*"))  # what was made on the way is gone
    with pytest.raises(InputError, match="give `ntl`, or `ntl_hr` with `degrade`"):
        cut(tmp_path / "none", alone)
    with pytest.raises(InputError, match="leave one of them out"):
        cut(tmp_path / "both", files, degradation=degradation)


def test_without_displacement_the_truth_is_the_file_itself(tmp_path: Path) -> None:
    files, _ = scene_place(tmp_path, 24, 24)
    alone = PlaceOptions(SceneOptions(""), ntl_hr=files.ntl_hr)
    made = make_coarse(alone, NONE, 0, "", tmp_path, Silent())
    assert made.ntl_hr == files.ntl_hr and made.offset is None
    cut(tmp_path / "tree", alone, degradation=NONE)
    source = ClipTree.open(tmp_path / "tree", "train")
    height, width = source.size(0)
    sample = source.read(0, Window(0, 0, height, width))
    mean, _ = area_mean(sample.ntl_hr, sample.ntl_hr_valid[0], 8, 8)
    np.testing.assert_allclose(sample.ntl, mean, atol=1e-4)


def test_a_place_is_added_refused_and_cut_again(tmp_path: Path) -> None:
    tree, files = tmp_path / "tree", ntl_place(tmp_path)
    cut(tree, files)
    first = read_index(tree)
    far = tmp_path / "far"
    far.mkdir()
    cut(tree, ntl_place(far, west=20.0), "there")
    assert {row.place for row in read_index(tree)} == {"here", "there"}
    with pytest.raises(InputError, match="already holds here; give `overwrite=True`"):
        cut(tree, files)
    plan = ClipPlanOptions(clip=16, clip_min=8, block=16, buffer=2)
    cut(tree, files, plan=plan, mode=Mode.OVERWRITE)
    rows = read_index(tree)
    there = {f"{p.parent.name}/{p.name}" for p in tree.glob("*/*") if p.is_dir()}
    assert {row.clip for row in rows} == there
    assert [row for row in rows if row.place == "here"] != first


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, files = tmp_path / "tree", ntl_place(tmp_path)
    write = clip_cut.write_clip
    written: list[str] = []

    def stop_at_the_fifth(folder: Path, *rest: object) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(folder.name)
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_cut, "write_clip", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        cut(tree, files)
    with pytest.raises(InputError, match=r"has no index\.csv"):
        ClipTree.open(tree, "all")
    leftover = tree / "train" / ".here-r00024c00012.tmp"  # of a clip that was being written
    leftover.mkdir(exist_ok=True)
    (leftover / "ntl.tif").write_bytes(b"half")
    with pytest.raises(InputError, match="unfinished run of here"):
        cut(tree, files)
    with pytest.raises(InputError, match="other rasters or options"):
        cut(tree, files, mode=Mode.RESUME, rules=Rules())
    again: list[str] = []

    def count(folder: Path, *rest: object) -> None:
        again.append(folder.name)
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_cut, "write_clip", count)
    cut(tree, files, mode=Mode.RESUME)
    assert len(written) == 4 and len(again) == 8 and not set(written) & set(again)
    cut(tmp_path / "other", files)
    rows, undisturbed = read_index(tree), read_index(tmp_path / "other")
    assert rows == undisturbed
    for row in rows:
        assert (tree / row.clip / "ntl.tif").read_bytes() == (
            tmp_path / "other" / row.clip / "ntl.tif"
        ).read_bytes()


def test_nothing_is_left_of_a_run_that_cannot_begin(tmp_path: Path) -> None:
    files = ntl_place(tmp_path)
    missing = replace(files, isp=str(tmp_path / "none.tif"))
    with pytest.raises(InputError, match=r"none\.tif does not exist"):
        cut(tmp_path / "tree", missing)
    assert not (tmp_path / "tree").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no clip tree"):
        cut(other, files)
    assert sorted(p.name for p in other.iterdir()) == ["mine.txt"]


def test_percent_is_not_a_fraction(tmp_path: Path) -> None:
    files, _ = scene_place(tmp_path, 16, 16)
    with pytest.raises(InputError, match=r"`isp_scale=0\.01`"):
        cut(tmp_path / "tree", replace(files, isp_scale=None))


def test_vrt_mosaics_are_rasters_like_others(tmp_path: Path) -> None:
    """LR lights in two files under a VRT: the clips are those of the whole file."""
    files, _ = scene_place(tmp_path, 24, 24)
    with rasterio.open(files.scene.ntl) as dataset:
        pixels = dataset.read(1)
    parts = [(0, 10), (10, 24)]
    sources = ""
    for number, (first, last) in enumerate(parts):
        place = north_up(north=50.0 - first / 240)
        write_raster(tmp_path / f"part{number}.tif", pixels[first:last], transform=place, nodata=-999.0)
        sources += (
            f'<ComplexSource><SourceFilename relativeToVRT="1">part{number}.tif</SourceFilename>'
            f'<SrcRect xOff="0" yOff="0" xSize="24" ySize="{last - first}"/>'
            f'<SourceBand>1</SourceBand><DstRect xOff="0" yOff="{first}" xSize="24" ySize="{last - first}"/>'
            "<NODATA>-999</NODATA></ComplexSource>"
        )
    (tmp_path / "mosaic.vrt").write_text(
        '<VRTDataset rasterXSize="24" rasterYSize="24"><SRS>EPSG:4326</SRS>'
        f"<GeoTransform>6.0,{1 / 240!r},0,50.0,0,{-1 / 240!r}</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1"><NoDataValue>-999</NoDataValue>{sources}'
        "</VRTRasterBand></VRTDataset>"
    )
    mosaic = replace(files, scene=replace(files.scene, ntl=str(tmp_path / "mosaic.vrt")))
    cut(tmp_path / "one", files)
    cut(tmp_path / "two", mosaic)
    one, two = (ClipTree.open(tmp_path / name, "all") for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for index in range(4):
        window = Window(0, 0, *one.size(index))
        a, b = one.read(index, window), two.read(index, window)
        assert np.array_equal(a.ntl, b.ntl) and np.array_equal(a.ntl_valid, b.ntl_valid)
        assert np.array_equal(a.dmo, b.dmo) and np.array_equal(a.ntl_hr, b.ntl_hr)


def test_finer_truth_is_averaged_over_area(tmp_path: Path) -> None:
    """HR lights 3× finer than the HR grid, so 24 × 24 in an LR pixel: each HR pixel is the mean of its nine."""
    rng = np.random.default_rng(2)
    fine = rng.gamma(0.5, 9, (8 * 24, 8 * 24)).astype(np.float32)
    ntl = write_raster(tmp_path / "n.tif", np.ones((8, 8), np.float32))
    write_raster(tmp_path / "f.tif", fine, transform=north_up(1 / 240 / 24))
    files = PlaceOptions(SceneOptions(str(ntl)), ntl_hr=str(tmp_path / "f.tif"))
    plan = ClipPlanOptions(clip=8, clip_min=8, block=8, buffer=0, shares=(1, 0, 0))
    cut(tmp_path / "tree", files, plan=plan)
    sample = ClipTree.open(tmp_path / "tree", "all").read(0, Window(0, 0, 8, 8))
    expected = fine.reshape(64, 3, 64, 3).mean(axis=(1, 3), dtype=np.float64)
    np.testing.assert_allclose(sample.ntl_hr[0], expected, rtol=1e-4)


def test_the_command_holds_regions_out(tmp_path: Path) -> None:
    files = ntl_place(tmp_path)
    tree = str(tmp_path / "tree")
    command = ["clip", "--out", tree, "--place", "here", "--ntl", files.scene.ntl, "--block", "12", "--buffer", "2",
               "--hold-out", "corner=6.0,49.96,6.04,50.0"]  # fmt: skip
    done = CliRunner().invoke(cli, [*command, "--clip", "8", "--min-lit", "0"])
    assert done.exit_code == 0, done.exception
    splits = {row.split for row in read_index(tmp_path / "tree")}
    assert splits == {"train", "val", "test", "corner"}
    corner = open_source(tree, "corner", "wald", NONE)
    assert len(corner) == 1 and corner.size(0) == (1, 1)
    for options, message in (
        (["--resume", "--overwrite"], "exclude each other"),
        (["--clip", "8,9"], "LEAST between 1 and N"),
        (["--dmo-band", "purple=x.tif"], "not SLOT=FILE"),
        (["--min-lit", "2"], "SHARE or SHARE,ABOVE"),
    ):
        done = CliRunner().invoke(cli, [*command, *options])
        assert done.exit_code != 0 and message in f"{done.exception} {done.output}", message
