"""Other worlds from a window: physics that holds whatever is drawn, and what is told of the sensor."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from deeplight.engine.network.consistency import blur_weights
from deeplight.kernels.agree.reference import seen
from deeplight.train.fit.augment import augmented, turned
from deeplight.train.fit.config import AugmentConfig, VarietyConfig
from deeplight.train.fit.parts import Parts
from deeplight.train.fit.variety import _materials, gaps, varied

NONE = VarietyConfig(**{f.name: 0.0 for f in fields(VarietyConfig)})
NOTHING = AugmentConfig(0, 0, 0, 0, 0, 0, 0, 0, (0, 0))
H, W = 12, 14


def window(offset: float = 0.0) -> Parts:
    """A window whose truth is known everywhere, of a sensor that is known."""
    g = torch.Generator().manual_seed(0)
    truth = torch.exp(2.0 * torch.randn(1, 8 * H, 8 * W, generator=g))
    one_lr, one_hr = torch.ones(1, H, W), torch.ones(1, 8 * H, 8 * W)
    return {
        "ntl": torch.nn.functional.avg_pool2d(truth, 8),
        "ntl_valid": one_lr,
        "dmo": torch.rand(7, 8 * H, 8 * W, generator=g) * 0.4,
        "dmo_valid": one_hr,
        "dmo_bands": torch.ones(7),
        "dem": torch.rand(1, 8 * H, 8 * W, generator=g) * 900,
        "dem_valid": one_hr,
        "ntl_hr": truth,
        "ntl_hr_valid": one_hr,
        "isp": torch.rand(1, 8 * H, 8 * W, generator=g).round(),
        "isp_valid": one_hr,
        "offset": torch.full((2, H, W), offset),
        "psf": torch.tensor([1.2, 1.2]),
        "limits": torch.tensor([-1.0, 0.05]),
        "weight": one_lr,
    }


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_drawn_is_nothing_changed() -> None:
    parts = window()
    out = varied(parts, NONE, rng(0))
    assert all(torch.equal(out[name], parts[name]) for name in parts)


def test_the_same_numbers_give_the_same_world() -> None:
    one, two = (varied(window(), VarietyConfig(), rng(5)) for _ in range(2))
    other = varied(window(), VarietyConfig(), rng(6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["ntl"], other["ntl"])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_drawn_is_finite_and_physical(seed: int) -> None:
    parts = window(0.7)
    out = varied(parts, VarietyConfig(), rng(seed))
    assert all(torch.isfinite(v).all() and v.shape == parts[name].shape for name, v in out.items())
    assert (out["ntl_hr"] >= 0).all() and out["ntl_hr"].max() < 1e5
    told = out["psf"]
    assert (told == -1).all() or ((told >= 0) & (told < 3.4 * 1.21)).all()


def test_the_coarse_lights_are_the_truth_through_what_is_told() -> None:
    """Told blurs are off by up to a fifth, so the lights agree closely with the sensor of some FWHM near by."""
    exact = 0
    for seed in range(30):
        out = varied(window(), replace(NONE, sensor=1.0), rng(seed))
        if float(out["psf"].min()) < 0 or float(out["limits"][0]) > 0:
            continue

        def misfit(factor: float, out: Parts = out) -> float:
            rows, columns = (blur_weights(out["psf"][i : i + 1] * factor) for i in (0, 1))
            gap = seen(out["ntl_hr"][None], rows, columns)[0] - out["ntl"]
            return float(gap.abs().mean() / out["ntl"].mean())

        exact += min(misfit(f) for f in np.linspace(0.8, 1.25, 19)) < 0.06
    assert exact >= 15


def test_blurs_and_what_is_told_of_them_are_spread_as_documented() -> None:
    told = np.array([varied(window(), replace(NONE, sensor=1.0), rng(s))["psf"].numpy() for s in range(500)])
    unknown = (told == -1).all(1)
    known = told[~unknown]
    assert unknown.mean() == pytest.approx(0.15, abs=0.05)
    assert (known == 0).all(1).mean() == pytest.approx(0.2, abs=0.06)
    assert 2.8 < known.max() < 3.4 * 1.2
    wide = known[known.min(1) > 0.2]
    ratio = wide.max(1) / wide.min(1)
    assert np.median(ratio) < 1.15 and 1.2 < ratio.max() < 1.4 * 1.3, "nearly round, few of them not"
    high = np.histogram(wide.mean(1), bins=4, range=(0.2, 3.2))[0]
    assert high.min() > 0.6 * high.max(), "evenly spread"


def test_lights_of_an_unknown_sensor_stay() -> None:
    parts = window()
    parts["psf"] = torch.full((2,), -1.0)
    out = varied(parts, replace(VarietyConfig(), colours=0.0, foreign=0.0, void=0.0), rng(1))
    assert all(torch.equal(out[name], parts[name]) for name in ("ntl", "ntl_hr", "psf", "limits"))


def test_truth_with_holes_is_seen_through_the_sensor_as_the_degradation_has_it() -> None:
    """Even lights stay even beside a hole, whatever the blur; what is not known stays 0 and invalid."""
    for seed in range(12):
        holed = window()
        holed["ntl_hr_valid"] = holed["ntl_hr_valid"].clone()
        holed["ntl_hr_valid"][:, 16:50, 40:] = 0
        holed["ntl_hr"] = 50.0 * holed["ntl_hr_valid"]
        holed["ntl_valid"] = (torch.nn.functional.avg_pool2d(holed["ntl_hr_valid"], 8) >= 0.5).float()
        out = varied(holed, replace(NONE, sensor=1.0), rng(seed))
        assert torch.equal(out["ntl_valid"], holed["ntl_valid"])
        assert (out["ntl"] * (1 - out["ntl_valid"]) == 0).all()
        known = out["ntl"][out["ntl_valid"] > 0]
        assert (known - 50.0).abs().max() < 0.1 * 50.0, "noise alone, five standard deviations of 2 %"
        other = varied(holed, replace(VarietyConfig(), lights=1.0), rng(seed))
        assert (other["ntl_hr"] * (1 - other["ntl_hr_valid"]) == 0).all()


def test_even_lights_have_no_detail() -> None:
    """One level or a gentle slope: neighbouring pixels differ by less than a twentieth, whatever the truth was."""
    levels = []
    for seed in range(12):
        light = varied(window(), replace(NONE, lights=1.0, even=1.0), rng(seed))["ntl_hr"].log()
        assert light.diff(dim=1).abs().max() < 0.05
        assert light.diff(dim=2).abs().max() < 0.05
        levels.append(float(light.mean()))
    assert np.ptp(levels) > 2.0, "dark and bright ones"


def test_absent_layers_and_bands_stay_absent() -> None:
    for seed in range(10):
        parts = window()
        parts["dmo_bands"][5] = 0
        out = varied(parts, VarietyConfig(), rng(seed))
        assert (out["dmo"][5] == 0).all()
        parts["dmo_valid"], parts["dmo"] = (
            torch.zeros_like(parts["dmo_valid"]),
            torch.zeros_like(parts["dmo"]),
        )
        assert (varied(parts, VarietyConfig(), rng(seed))["dmo"] == 0).all()


def test_built_up_land_takes_another_reflectance() -> None:
    parts = window()
    parts["dmo"] = torch.full_like(parts["dmo"], 0.15)
    differences = []
    for seed in range(40):
        out = varied(parts, replace(NONE, colours=1.0), rng(seed))["dmo"]
        built = parts["isp"][0] > 0.5
        differences.append([float(out[b][built].mean() - out[b][~built].mean()) for b in (4, 5)])
    swir = np.array(differences)[:, 1]
    assert swir.min() < -0.01 and swir.max() > 0.1, "dark and bright in SWIR"


def test_a_foreign_layer_lies_elsewhere_with_its_mask() -> None:
    parts = window()
    parts["dmo_valid"] = parts["dmo_valid"].clone()
    parts["dmo_valid"][:, :8, :8] = 0
    parts["dmo"] = parts["dmo"] * parts["dmo_valid"]
    out = varied(parts, replace(NONE, foreign=1.0), rng(3))
    assert out["dmo_valid"].sum() == parts["dmo_valid"].sum()
    assert not torch.equal(out["dmo_valid"], parts["dmo_valid"])
    assert (out["dmo"][:, out["dmo_valid"][0] == 0] == 0).all()


def test_a_foreign_layer_may_come_from_another_place() -> None:
    here, there = window(), window()
    there["dmo"], there["dem"] = torch.full_like(there["dmo"], 0.77), torch.full_like(there["dem"], -3.0)
    taken = {"dmo": 0, "dem": 0}
    for seed in range(40):
        out = varied(here, replace(NONE, foreign=1.0), rng(seed), lambda: there)
        for name in taken:
            taken[name] += torch.equal(out[name], there[name])
    assert 10 < taken["dmo"] < 30 and 3 < taken["dem"] < 20
    empty = {**there, "dmo_valid": torch.zeros_like(there["dmo_valid"])}
    for other in (lambda: None, lambda: empty):
        for seed in range(6):
            out = varied(here, replace(NONE, foreign=1.0), rng(seed), other)
            assert torch.equal(out["dmo"].flatten().sort().values, here["dmo"].flatten().sort().values)
            assert not torch.equal(out["dmo"], here["dmo"]) and bool(out["dmo_valid"].all())


def test_built_up_land_is_recoloured_where_the_bands_have_it() -> None:
    """The lights' frame shows at p what lies on the ground at p + offset: two LR pixels further east here."""
    parts = window()
    parts["dmo"] = torch.zeros_like(parts["dmo"])
    parts["isp"] = torch.zeros_like(parts["isp"])
    parts["isp"][:, 40:48, 32:40] = 1.0
    parts["offset"] = torch.stack([torch.full((H, W), 2.0), torch.full((H, W), -1.0)])
    changed = _materials(parts, rng(2))[5] != 0
    rows, cols = torch.nonzero(changed, as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (32, 39, 48, 55)


def test_gaps_come_to_each_layer() -> None:
    seen = {"ntl_valid": 0, "dmo_valid": 0, "dem_valid": 0}
    for seed in range(60):
        out = augmented(window(), NOTHING, rng(seed), replace(NONE, gaps=0.5))
        for name in seen:
            seen[name] += not bool(out[name].all())
            assert (out[name[:3]] * (1 - out[name]) == 0).all()
        assert (out["weight"] * (1 - out["ntl_valid"]) == 0).all()
    assert all(15 < count < 45 for count in seen.values())


def test_gaps_take_single_pixels_swaths_and_coasts() -> None:
    shares = [1 - float(gaps(torch.ones(1, 40, 40), rng(seed)).mean()) for seed in range(40)]
    assert min(shares) < 0.02 and max(shares) > 0.2
    assert all(set(gaps(torch.ones(1, 9, 7), rng(s)).unique().tolist()) <= {0.0, 1.0} for s in range(9))


def test_the_blur_turns_with_the_image() -> None:
    parts = window()
    parts["psf"] = torch.tensor([0.5, 2.0])
    assert turned(parts, False, False, True)["psf"].tolist() == [2.0, 0.5]
    assert turned(parts, True, True, False)["psf"].tolist() == [0.5, 2.0]


def test_brightness_takes_the_limits_along() -> None:
    for seed in range(5):
        out = augmented(window(), AugmentConfig(cut=0, hole=0), rng(seed))
        gain = float(out["ntl_hr"].sum() / window()["ntl_hr"].sum())
        assert out["limits"][1] == pytest.approx(0.05 * gain, rel=1e-4) and out["limits"][0] < 0
