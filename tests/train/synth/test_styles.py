"""The styles of settlement: windows agree, light and built surface belong together, the old countries stay."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.data_cli import synth
from deeplight.train.fit.pool import (
    STYLE_SHARES,
    SyntheticSource,
    build_pool,
    country_config,
    training_config,
)
from deeplight.train.synth import Country, CountryConfig, CountrySample
from deeplight.train.synth.spectra import MATERIALS, drawn_materials
from deeplight.train.synth.styles import SHAPES, TOWNS

OTHERS = [style for style in SHAPES if style != TOWNS]
HR_FIELDS = ("ntl_hr", "isp", "dmo", "dem")
QUIET = CountryConfig(seed=63, noise=0.0, relative_noise=0.0, own_materials=True)
PLACE = Window(400, 700, 40, 40)


@pytest.mark.parametrize("style", OTHERS)
def test_windows_agree_bit_for_bit(style: str) -> None:
    world = Country(replace(QUIET, style=style))
    outer, inner = Window(-9, 3, 25, 27), Window(-2, 11, 7, 5)
    large, small = world.sample(outer), world.sample(inner)
    for field in fields(CountrySample):
        k = SCALE if field.name in HR_FIELDS else 1
        part = (..., *inner.scaled(k).slices_in(outer.scaled(k)))
        np.testing.assert_array_equal(
            getattr(small, field.name), getattr(large, field.name)[part], field.name
        )


@pytest.mark.parametrize("style", OTHERS)
def test_light_and_built_surface_belong_together_but_do_not_tell_each_other(style: str) -> None:
    samples = []
    for seed in range(60, 68):
        sample = Country(replace(QUIET, seed=seed, style=style)).sample(PLACE)
        assert all(np.isfinite(getattr(sample, f.name)).all() for f in fields(CountrySample))
        assert sample.isp.min() >= 0 and sample.isp.max() <= 1 and sample.ntl_hr.min() > 0
        assert sample.dmo.min() > 0 and sample.dmo.max() < 1.6
        samples.append(sample)
    light = np.log1p(np.stack([s.ntl_hr for s in samples]))
    built = np.stack([s.isp for s in samples])
    assert np.corrcoef(light.ravel(), built.ravel())[0, 1] > 0.4
    assert 0.003 < built.mean() < 0.8
    assert light[built > 0.6].std() > 0.5
    assert (light[built > 0.6] < np.log1p(1.0)).mean() > 0.02, "built-up land without light"


def test_styles_lay_another_fabric_over_the_same_seed() -> None:
    built = [Country(replace(QUIET, style=style)).sample(PLACE).isp for style in SHAPES]
    for i, one in enumerate(built):
        for other in built[i + 1 :]:
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.7


@pytest.mark.parametrize("style", ["coast", "archipelago"])
def test_settled_shores_have_sea_and_no_houses_on_it(style: str) -> None:
    wet, built = [], []
    for seed in range(60, 66):
        world = Country(replace(QUIET, seed=seed, style=style))
        hr = PLACE.scaled(SCALE)
        water = world.relief(hr).water > 0.99
        wet.append(water.mean())
        built.append(world.ground(hr).isp[water])
    assert 0.1 < np.mean(wet) < 0.95
    assert np.concatenate(built).max() < 0.95 and np.concatenate(built).mean() < 0.02


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(InputError, match="style"):
        CountryConfig(style="villages")


def test_countries_of_the_usual_style_stay_as_they_were() -> None:
    """Means over a window of two held-out countries, from the generator before there were styles."""
    expected = {
        900_000: (0.338136515, 0.334881169, 0.0524897896, 0.162044053, 104.655594),
        900_011: (0.239417092, 0.244529405, 0.0539634954, 0.106615632, 150.303369),
    }
    for seed, (ntl, ntl_hr, isp, dmo, dem) in expected.items():
        sample = Country(country_config(seed)).sample(Window(1000, 500, 12, 12))
        means = [getattr(sample, n).astype(np.float64).mean() for n in ("ntl", "ntl_hr", "isp", "dmo", "dem")]
        # the last bits of float32 may differ between processors
        np.testing.assert_allclose(means, [ntl, ntl_hr, isp, dmo, dem], rtol=1e-5)


def test_materials_of_countries_differ_and_built_up_land_is_bright_or_dark_in_swir() -> None:
    tables = [drawn_materials(seed) for seed in range(200)]
    assert all(t.keys() == MATERIALS.keys() for t in tables)
    values = np.array([[t[name] for name in MATERIALS] for t in tables])
    assert np.isfinite(values).all() and values.min() > 0 and values.max() < 1
    built = np.mean([[t[n] for n in ("asphalt", "concrete", "tile")] for t in tables], axis=1)
    soil = np.array([t["soil"] for t in tables])
    nir, swir = DMO_SLOTS.index("nir"), DMO_SLOTS.index("swir1")
    ratio = built[:, swir] / built[:, nir]
    assert np.quantile(ratio, 0.1) < 1.0 < 1.15 < np.quantile(ratio, 0.9)
    brighter = (soil[:, swir] > built[:, swir]).mean()
    assert 0.2 < brighter < 0.8, (
        "bare soil is brighter than built-up land in some countries, darker in others"
    )


def test_training_countries_are_of_all_styles_and_held_out_ones_of_the_usual() -> None:
    assert STYLE_SHARES.keys() == SHAPES.keys() and sum(STYLE_SHARES.values()) == pytest.approx(1.0)
    drawn = [training_config(seed) for seed in range(320)]
    for style, share in STYLE_SHARES.items():
        assert sum(c.style == style for c in drawn) / 320 == pytest.approx(share, abs=0.08)
    assert {country_config(seed).style for seed in range(900_000, 900_012)} == {TOWNS}
    seed = next(c.seed for c in drawn if c.style == "ribbon")
    (plain,), (varied,) = (
        build_pool(range(seed, seed + 1), 1, config=c) for c in (country_config, training_config)
    )
    assert not np.array_equal(plain.isp, varied.isp)


def test_the_fingerprint_tells_other_bands_and_later_regions() -> None:
    regions = build_pool(range(60, 61), 2)
    seeds = range(60, 61)
    recoloured = replace(regions[1], dmo=regions[1].dmo * np.float16(0.9))
    prints = {
        SyntheticSource(made, seeds).fingerprint()
        for made in (regions, [regions[0], recoloured], [regions[0], regions[0]])
    }
    assert len(prints) == 3


def test_the_command_writes_a_style_and_refuses_others(tmp_path: Path) -> None:
    sizes = ["--lr-size", "9", "--seed", "60"]
    plain, coast = tmp_path / "plain", tmp_path / "coast"
    for out, extra in ((plain, []), (coast, ["--style", "coast", "--own-materials"])):
        told = CliRunner().invoke(synth, ["--out", str(out), *sizes, *extra])
        assert told.exit_code == 0, told.output
    with rasterio.open(plain / "isp.tif") as a, rasterio.open(coast / "isp.tif") as b:
        assert not np.array_equal(a.read(), b.read())
    config = CountryConfig(seed=60, lr_height=9, lr_width=9, style="coast", own_materials=True)
    with rasterio.open(coast / "ntl_hr.tif") as held:
        np.testing.assert_array_equal(held.read(1), Country(config).sample(Window(0, 0, 9, 9)).ntl_hr)
    wrong = CliRunner().invoke(synth, ["--out", str(tmp_path / "x"), "--style", "villages"])
    assert isinstance(wrong.exception, InputError) and "towns, grid" in str(wrong.exception)
    assert not (tmp_path / "x").exists()
