"""Wald's protocol, on a source whose arrays are known, on a synthetic scene's folder and on clip trees."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.warp import area_mean
from deeplight.train.clips.degrade import Degradation, degrade, place_seed
from deeplight.train.clips.samples import Sample
from deeplight.train.clips.tree import SceneSource, open_source
from deeplight.train.clips.wald import WaldSource
from deeplight.train.synth import CountryConfig
from deeplight.train.synth.write import write_country
from tests.train.clips.places import cut, ntl_place

NONE = Degradation(psf_fwhm_lr=0.0)


class Held:
    """Places held as arrays: one of 43 × 30 LR px with every layer, one too small."""

    def __init__(self, offset: bool = False) -> None:
        rng = np.random.default_rng(1)
        h, w = 43, 30
        ntl, dem, isp = (
            rng.gamma(0.5, 9, (1, h, w)),
            rng.normal(300, 50, (1, 8 * h, 8 * w)),
            rng.random((1, 8 * h, 8 * w)),
        )
        masks = [rng.random((1, k * h, k * w)) < 0.9 for k in (1, 8, 8, 8)]
        dmo = rng.random((7, 8 * h, 8 * w))
        parts = [ntl * masks[0], masks[0], dmo * masks[1], masks[1], np.array([1, 1, 0, 1, 1, 1, 1]), dem * masks[2],
                 masks[2], np.zeros_like(dem), np.zeros_like(dem), isp * masks[3], masks[3]]  # fmt: skip
        arrays = [np.asarray(a, np.float32) for a in parts]
        arrays[2][2] = 0
        self.sample = Sample(*arrays, np.full((2, h, w), 0.8, np.float32) if offset else None)

    def __len__(self) -> int:
        return 2

    def size(self, index: int) -> tuple[int, int]:
        return (7, 40) if index == 0 else (43, 30)

    def name(self, index: int) -> str:
        return f"place {index}"

    def key(self, index: int) -> str:
        return self.name(index)

    def read(self, index: int, window: Window) -> Sample:
        assert index == 1 and window.clipped(43, 30) == window
        rows, cols = window.slices_in(Window(0, 0, 43, 30))
        hr = window.scaled(8).slices_in(Window(0, 0, 8 * 43, 8 * 30))
        s, cut = self.sample, {}
        for name in Sample.__dataclass_fields__:
            array = getattr(s, name)
            if array is None or array.ndim == 1:
                cut[name] = array
            else:
                at = (rows, cols) if name in ("ntl", "ntl_valid", "offset") else hr
                cut[name] = array[:, at[0], at[1]]
        return Sample(**cut)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"held").hexdigest()


def test_what_becomes_what() -> None:
    held = Held()
    source = WaldSource(held, NONE)
    assert len(source) == 1 and source.size(0) == (5, 3) and source.name(0) == "place 1"
    sample = source.read(0, Window(0, 0, 5, 3))
    given = held.read(1, Window(0, 0, 40, 24))
    assert np.array_equal(sample.ntl_hr, given.ntl) and np.array_equal(sample.ntl_hr_valid, given.ntl_valid)
    mean, valid = area_mean(given.ntl, given.ntl_valid[0], 8, 8)
    np.testing.assert_allclose(sample.ntl, mean, rtol=2e-6)
    assert np.array_equal(sample.ntl_valid[0], valid)
    for name in ("dmo", "dem", "isp"):
        mean, valid = area_mean(getattr(given, name), getattr(given, f"{name}_valid")[0], 8, 8)
        assert np.array_equal(getattr(sample, name), mean) and np.array_equal(
            getattr(sample, f"{name}_valid")[0], valid
        )
    assert (
        sample.dmo.shape == (7, 40, 24)
        and not sample.dmo[2].any()
        and sample.dmo_bands.tolist() == [1, 1, 0, 1, 1, 1, 1]
    )
    assert sample.offset is None


@pytest.mark.parametrize(
    "degradation",
    [Degradation(1.2, noise=0.2), Degradation(1.0, shift_lr=0.7, shift_period=9.0)],
    ids=["noise", "shift"],
)
def test_a_window_is_the_crop_of_the_place(degradation: Degradation) -> None:
    source = WaldSource(Held(), degradation, seed=4)
    whole = source.read(0, Window(0, 0, 5, 3))
    for window in (Window(1, 1, 3, 2), Window(4, 0, 1, 1), Window(0, 2, 5, 1)):
        part = source.read(0, window)
        for name in Sample.__dataclass_fields__:
            outer = getattr(whole, name)
            if outer is None or outer.ndim == 1:
                continue
            factor = outer.shape[1] // 5
            rows, cols = window.scaled(factor).slices_in(Window(0, 0, 5 * factor, 3 * factor))
            assert np.array_equal(getattr(part, name), outer[:, rows, cols]), name
    with pytest.raises(ValueError, match="not inside"):
        source.read(0, Window(0, 0, 6, 3))


def test_seeds_and_known_offsets() -> None:
    noise = Degradation(0.0, noise=1.0)
    window = Window(0, 0, 5, 3)
    one, same, other = (WaldSource(Held(), noise, seed).read(0, window).ntl for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    given = Held().read(1, Window(0, 0, 40, 24))
    assert np.array_equal(one, degrade(given.ntl, given.ntl_valid, noise, place_seed(0, "place 1"))[0])
    known = WaldSource(Held(offset=True), NONE).read(0, window).offset
    assert known is not None
    np.testing.assert_allclose(known, 0.1, rtol=1e-6)  # 0.8 fine pixels are 0.1 coarse ones
    prints = {WaldSource(Held(), d, s).fingerprint() for d, s in ((NONE, 0), (noise, 0), (noise, 1))}
    assert len(prints) == 3


def test_places_that_are_too_small_are_refused() -> None:
    class Small(Held):
        def size(self, index: int) -> tuple[int, int]:
            return 7, 100

    with pytest.raises(InputError, match="no place has 8x8 LR pixels"):
        WaldSource(Small(), NONE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scene")
    write_country(CountryConfig(seed=2, lr_height=32, lr_width=48), out, overwrite=False, progress=Silent())
    return out


def test_a_synthetic_scene_is_a_source_of_its_strips(scene: Path) -> None:
    sizes = {
        split: open_source(str(scene), split, "paired", NONE).size(0)
        for split in ("train", "val", "test", "all")
    }
    assert sizes == {"train": (32, 29), "val": (32, 5), "test": (32, 6), "all": (32, 48)}
    source = pickle.loads(pickle.dumps(open_source(str(scene), "train", "paired", NONE)))
    whole = open_source(str(scene), "all", "paired", NONE)
    window = Window(3, 5, 8, 9)
    sample, same = source.read(0, window), whole.read(0, window)
    for name in Sample.__dataclass_fields__:
        assert np.array_equal(getattr(sample, name), getattr(same, name)), name
    assert (
        sample.dmo_bands.all()
        and sample.dem_valid.all()
        and sample.isp_valid.all()
        and sample.ntl_hr_valid.all()
    )
    assert sample.offset is not None and 0 < np.hypot(*sample.offset).max() <= 1.2
    # the LR lights are the blurred truth: they agree in the mean, up to what crosses the window's edge
    assert sample.ntl.mean() == pytest.approx(sample.ntl_hr.mean(), rel=0.35)
    assert source.fingerprint() != whole.fingerprint()
    with pytest.raises(InputError, match="no places to hold out"):
        open_source(str(scene), "test", "paired", NONE, hold_out_place=["x"])
    with pytest.raises(InputError, match="no split exam"):
        open_source(str(scene), "exam", "paired", NONE)


def test_wald_over_a_synthetic_scene(scene: Path) -> None:
    paired = SceneSource(scene, "all")
    source = open_source(str(scene), "all", "wald", Degradation(1.0))
    assert source.size(0) == (4, 6)
    sample = source.read(0, Window(1, 1, 2, 4))
    given = paired.read(0, Window(8, 8, 16, 32))
    assert np.array_equal(sample.ntl_hr, given.ntl)
    assert sample.dmo.shape == (7, 16, 32) and sample.offset is not None
    np.testing.assert_allclose(sample.dem, area_mean(given.dem, given.dem_valid[0], 8, 8)[0])


def test_a_tree_gives_the_same_data_whatever_its_path(tmp_path: Path) -> None:
    cut(tmp_path / "tree", ntl_place(tmp_path))
    shutil.copytree(tmp_path / "tree", tmp_path / "elsewhere" / "copy")
    noise = Degradation(noise=1.0, shift_lr=0.5)
    paths = (str(tmp_path / "tree"), str(tmp_path / "elsewhere" / ".." / "elsewhere" / "copy"))
    one, same = (open_source(path, "train", "wald", noise) for path in paths)
    assert one.fingerprint() == same.fingerprint() and one.key(1) != one.key(0) == same.key(0)
    a, b, other = (
        one.read(0, Window(0, 0, 1, 1)),
        same.read(0, Window(0, 0, 1, 1)),
        one.read(1, Window(0, 0, 1, 1)),
    )
    assert a.offset is not None and b.offset is not None and other.offset is not None
    assert (
        np.array_equal(a.ntl, b.ntl)
        and np.array_equal(a.ntl_hr, b.ntl_hr)
        and np.array_equal(a.offset, b.offset)
    )
    assert not np.array_equal(a.offset, other.offset), "places differ"


def test_a_scene_that_is_too_small_is_told_how_large_it_must_be(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"32x48 LR pixels is too small .* must have 59 LR pixels at least"):
        open_source(str(scene), "val", "wald", NONE)
    write_country(
        CountryConfig(seed=2, lr_height=59, lr_width=8), tmp_path, overwrite=False, progress=Silent()
    )
    sizes = [open_source(str(tmp_path), split, "wald", NONE).size(0) for split in ("train", "val", "test")]
    assert sizes == [(4, 1), (1, 1), (1, 1)]
