"""The evaluation on places that are known: what counts, what does not, and that tiles and blocks leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import Sample
from deeplight.train.evaluation import evaluate as evaluation
from deeplight.train.evaluation.bicubic import bicubic
from deeplight.train.evaluation.blocks import ScoreSettings
from deeplight.train.evaluation.evaluate import Evaluation, evaluate
from deeplight.train.evaluation.models import (
    BICUBIC,
    NEAREST,
    NETWORK,
    NO_AUXILIARY,
    Inputs,
    Interpolation,
    NetworkMethod,
    methods_of,
)
from deeplight.train.evaluation.report import summary, to_json, to_markdown
from deeplight.train.evaluation.showcase import SHOWN, along, find_street
from deeplight.train.evaluation.sources import HeldOutCountries, read_padded
from deeplight.train.evaluation.strata import STRATA, Strata


def place(h: int, w: int, seed: int) -> Sample:
    """Lights on one half, dark on the other; auxiliary layers of ones."""
    rng = np.random.default_rng(seed)
    truth = rng.lognormal(0.5, 1.0, (SCALE * h, SCALE * w)) * (np.arange(SCALE * w) > 4 * w)
    lr = truth.reshape(h, SCALE, w, SCALE).mean(axis=(1, 3))
    hr, one = np.ones((1, SCALE * h, SCALE * w), np.float32), np.ones((1, h, w), np.float32)
    return Sample(
        lr[None].astype(np.float32),
        one,
        np.repeat(hr, 7, 0),
        hr,
        np.ones(7, np.float32),
        hr,
        hr,
        truth[None].astype(np.float32),
        hr,
        hr * 0,
        hr * 0,
        None,
    )


class Places:
    """Samples in memory as a source that notes the largest window read."""

    def __init__(self, *samples: Sample, bad: tuple[int, ...] = ()) -> None:
        self.samples, self.bad, self.largest = samples, bad, 0

    def __len__(self) -> int:
        return len(self.samples)

    def size(self, index: int) -> tuple[int, int]:
        h, w = self.samples[index].ntl.shape[1:]
        return h, w

    def name(self, index: int) -> str:
        return f"place {index}"

    def key(self, index: int) -> str:
        return self.name(index)

    def read(self, index: int, window: Window) -> Sample:
        if index in self.bad:
            raise InputError("dmo.tif is damaged")
        self.largest = max(self.largest, window.height * window.width)
        return self.samples[index].cut(window)

    def fingerprint(self) -> str:
        return "0" * 64


class Blur:
    """A network with a halo of 2: the mean of 5 × 5 LR pixels, plus the first DMO band."""

    def __init__(self) -> None:
        self.seen: list[Inputs] = []

    def window(self, wanted: Window) -> Window:
        return wanted.grown(2)

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        self.seen.append(inputs)
        mean = F.avg_pool2d(torch.from_numpy(inputs["ntl"]), 5, 1, padding=2)[0, 0].numpy()
        up = np.kron(mean, np.ones((SCALE, SCALE))) + 0.5 * inputs["dmo"][0, 0]
        return np.asarray(up, np.float32)

    def describe(self) -> dict[str, Any]:
        return {}


class Told(Silent):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.total, self.parts = 0, list[int]()

    def start(self, total: int, unit: str = "", what: str = "") -> None:
        self.total = total

    def advance(self, done: int = 1) -> None:
        self.parts.append(done)


def report(result: Evaluation) -> dict[str, Any]:
    return summary(result, {"model": "blur"}, {"data": "places"}, "nW/cm²/sr", seed=0)


def numbers(values: dict[str, Any], method: str = NETWORK, stratum: str = "all") -> dict[str, Any]:
    found: dict[str, Any] = values["methods"][method]["strata"][stratum]
    return found


@pytest.mark.parametrize("block", [8, 11])
def test_blocks_and_tiles_leave_no_trace(block: int) -> None:
    """The same pixels and the same SSIM windows whatever the blocks are: here, one block for all against many."""
    source = Places(place(37, 29, 1))
    methods = methods_of(Blur())
    many = report(evaluate(source, methods, ScoreSettings(block=block)))
    one = report(evaluate(source, methods, ScoreSettings(block=64)))
    assert many["settings"]["bootstrap"]["blocks"] > 9 and one["settings"]["bootstrap"]["blocks"] == 1
    for method in methods:
        for stratum in STRATA:
            a, b = numbers(many, method, stratum), numbers(one, method, stratum)
            for name in ("n", "psnr", "psnr_log1p", "rmse", "mae", "r2", "ssim", "ssim_log1p"):
                # float32 inside SSIM and the network
                wanted = None if b[name] is None else pytest.approx(b[name], rel=1e-5)
                assert a[name] == wanted, (method, stratum, name)
        for name in ("iou_lit", "reaggregation_rmse"):
            assert many["methods"][method][name] == pytest.approx(one["methods"][method][name], rel=1e-5)


def test_a_clip_of_one_tile_shows_progress_from_its_first_method_on() -> None:
    """Methods and blocks take seconds each, and a clip may be one tile; one without any data counts too."""
    empty = replace(place(16, 24, 1), ntl_valid=np.zeros((1, 16, 24), np.float32))
    told = Told()
    evaluate(Places(place(16, 24, 0), empty), methods_of(Blur()), ScoreSettings(block=8), told)
    assert told.total == sum(told.parts) == 2 * 16 * 24 * SCALE**2
    pixels = 16 * 24 * SCALE**2
    assert told.parts[:4] == [pixels // 8] * 4 and told.parts[4:10] == [pixels // 12] * 6


def test_the_numbers_are_those_of_the_whole_image() -> None:
    sample = place(20, 24, 2)
    values = report(evaluate(Places(sample), methods_of(Blur()), ScoreSettings(block=8)))
    truth = sample.ntl_hr[0].astype(float)
    nearest = np.kron(sample.ntl[0], np.ones((SCALE, SCALE)))
    error = float(np.sqrt(((nearest - truth) ** 2).mean()))
    found = numbers(values, NEAREST)
    assert found["rmse"] == pytest.approx(error, rel=1e-6)
    assert found["psnr"] == pytest.approx(20 * math.log10(200 / error), abs=1e-4)
    assert found["n"] == truth.size == values["pixels"]["scored"] == values["pixels"]["in_blocks"]
    lit = truth > 1
    assert values["pixels"]["lit"] == lit.sum() and values["pixels"]["unlit"] == (~lit).sum()
    both, either = (lit & (nearest > 1)).sum(), (lit | (nearest > 1)).sum()
    assert values["methods"][NEAREST]["iou_lit"] == pytest.approx(both / either)
    assert values["methods"][NEAREST]["reaggregation_rmse"] == pytest.approx(0, abs=1e-6)
    assert values["truth"]["reaggregation_rmse"] == pytest.approx(0, abs=1e-5), "LR is its exact mean here"


def test_only_pixels_that_are_valid_everywhere_count() -> None:
    sample = place(20, 24, 3)
    truth_valid, lr_valid = sample.ntl_hr_valid.copy(), sample.ntl_valid.copy()
    truth_valid[0, 10:30, 50:60] = 0
    lr_valid[0, 12:14, 3] = 0
    truth, lr = sample.ntl_hr * truth_valid, sample.ntl * lr_valid
    holed = replace(sample, ntl_hr=truth, ntl_hr_valid=truth_valid, ntl=lr, ntl_valid=lr_valid)
    values = report(evaluate(Places(holed), methods_of(Blur()), ScoreSettings(block=8)))
    assert values["pixels"]["scored"] == 20 * 24 * 64 - 200 - 2 * 64

    class Partly(NetworkMethod):
        def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
            out = super().radiance(place, wanted, read, inputs)
            rows = np.arange(wanted.row * SCALE, (wanted.row + wanted.height) * SCALE)
            out[rows == 100] = np.nan
            return out

    methods = {**methods_of(Blur()), NETWORK: Partly(Blur())}
    again = report(evaluate(Places(holed), methods, ScoreSettings(block=8)))
    assert again["pixels"]["scored"] == values["pixels"]["scored"] - 24 * 8 + 8, "8 of that row were invalid"
    assert numbers(again, BICUBIC)["n"] == numbers(again, NETWORK)["n"], "the same pixels for all"


def test_saturated_pixels_are_scored_apart() -> None:
    sample = place(16, 16, 4)
    ceiling = float(np.quantile(sample.ntl, 0.9))
    settings = ScoreSettings(strata=Strata(1.0, ceiling), block=8)
    values = report(evaluate(Places(sample), methods_of(Blur()), settings))
    count = int((sample.ntl >= np.float32(ceiling)).sum())
    assert values["pixels"]["saturated"] == 64 * count
    assert sum(values["pixels"][s] for s in STRATA[1:]) == values["pixels"]["scored"]
    assert values["methods"][NEAREST]["reaggregation_lr_pixels"] == 256 - count


def test_no_auxiliary_means_none() -> None:
    network = Blur()
    values = report(evaluate(Places(place(16, 16, 5)), methods_of(network), ScoreSettings(block=8)))
    given, bare = network.seen[:2]
    for name in ("dmo", "dmo_valid", "dmo_bands", "dem", "dem_valid"):
        assert given[name].any() and not bare[name].any(), name
    assert (given["ntl"] == bare["ntl"]).all()
    assert numbers(values)["mae"] != numbers(values, NO_AUXILIARY)["mae"]


def test_bicubic_is_that_of_the_whole_image() -> None:
    sample = place(18, 15, 6)
    source = Places(sample)
    whole = bicubic(torch.from_numpy(sample.ntl[None]).double())[0, 0]
    wanted = Window(5, 4, 7, 6)
    method = Interpolation("bicubic")
    read = method.window(wanted)
    inputs, _, _ = read_padded(source, 0, read)
    found = method.radiance(0, wanted, read, inputs)
    np.testing.assert_allclose(found, whole[40:96, 32:80], rtol=1e-12, atol=1e-12)


def test_holes_and_edges_do_not_darken_the_interpolations() -> None:
    sample = place(16, 16, 7)
    valid = np.ones_like(sample.ntl)
    valid[0, 5, 9] = 0
    even = replace(sample, ntl=np.full_like(sample.ntl, 7.0) * valid, ntl_valid=valid)
    for kind in ("bicubic", "nearest"):
        method = Interpolation(kind)
        wanted = Window(0, 0, 16, 16)
        inputs, _, _ = read_padded(Places(even), 0, method.window(wanted))
        out = method.radiance(0, wanted, method.window(wanted), inputs)
        np.testing.assert_allclose(out, 7.0, rtol=1e-9)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are no larger than a tile and its halo, and the blocks kept apart are limited."""
    monkeypatch.setattr(evaluation, "MOST_GROUPS", 4)
    source = Places(place(36, 44, 8))
    result = evaluate(source, methods_of(Blur()), ScoreSettings(block=8))
    assert source.largest <= (8 * evaluation.TILE_BLOCKS + 2 * (1 + 4)) ** 2
    assert len(result.groups) <= 9, "blocks of a place's last row and column may be left over"
    apart = evaluate(source, methods_of(Blur()), ScoreSettings(block=64))
    np.testing.assert_allclose(sum(result.groups.values()), sum(apart.groups.values()), rtol=1e-9)
    assert len(result.showcase.pictures) == SHOWN


def test_unreadable_places_are_named_and_too_many_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Places(*(place(8, 8, k) for k in range(4)), bad=(1, 3))
    result = evaluate(source, methods_of(Blur()), ScoreSettings(block=8))
    assert result.skipped == [f"place {k}: dmo.tif is damaged" for k in (1, 3)]
    assert list(result.places) == ["place 0", "place 2"]
    assert "- place 3: dmo.tif is damaged" in to_markdown(report(result))
    monkeypatch.setattr(evaluation, "MOST_UNREADABLE", 1)
    with pytest.raises(InputError, match="more than 1 places cannot be read, the last one place 3"):
        evaluate(source, methods_of(Blur()), ScoreSettings(block=8))


class HalfRead(Places):
    """The second place fails below its 30th row."""

    def read(self, index: int, window: Window) -> Sample:
        if index == 1 and window.row + window.height > 30:
            raise InputError("ntl.tif ends early")
        return super().read(index, window)


def test_nothing_counts_of_a_place_that_turns_out_to_be_unreadable() -> None:
    samples = place(8, 8, 0), replace(place(56, 8, 1), ntl_hr=9 * place(56, 8, 1).ntl_hr), place(8, 9, 2)
    settings, source = ScoreSettings(block=8), HalfRead(*samples)
    result = evaluate(source, methods_of(Blur()), settings)
    assert source.largest > 100 and result.skipped == ["place 1: ntl.tif ends early"]
    alone = evaluate(Places(samples[0]), methods_of(Blur()), settings)
    alone = evaluate(
        Places(samples[2], samples[2], samples[2], bad=(0, 1)), methods_of(Blur()), settings, into=alone
    )
    assert set(result.places) == {"place 0", "place 2"} == set(alone.places)
    assert result.groups.keys() == alone.groups.keys()
    for name in ("pixels", "ssim", "counts", "reaggregation", "blocks"):
        assert np.array_equal(result.total[name], alone.total[name]), name
    assert all(p.place != "place 1" for _, p in result.showcase.pictures)
    assert all(np.array_equal(n, alone.clouds.counts[m]) for m, n in result.clouds.counts.items())
    with pytest.raises(InputError, match=r"no place could be scored; .* place 0: dmo\.tif is damaged"):
        evaluate(Places(samples[0], bad=(0,)), methods_of(Blur()), settings)


def test_nothing_to_score_is_an_error() -> None:
    sample = place(8, 8, 0)
    dark = replace(sample, ntl_hr_valid=sample.ntl_hr_valid * 0)
    with pytest.raises(DeepLightError, match="no pixel could be scored"):
        evaluate(Places(dark), methods_of(Blur()), ScoreSettings(block=8))


def test_tables_hold_every_method_beside_the_network() -> None:
    source = Places(place(24, 24, 1), place(9, 11, 2))
    values = report(evaluate(source, methods_of(Blur()), ScoreSettings(block=8)))
    text = to_markdown(values)
    for stratum in ("All", "Unlit", "Lit"):
        section = text.split(f"## {stratum} pixels")[1].split("##")[0]
        assert [line.split(" | ")[0][2:] for line in section.splitlines()[4:8]] == [
            NETWORK, NO_AUXILIARY, BICUBIC, NEAREST,
        ]  # fmt: skip
    assert "## Saturated pixels (0)\n\nNone." in text
    assert "data range of PSNR and SSIM 200" in text and "| place 1 | 6,336 |" in text
    between = numbers(values)["interval"]["psnr"]
    assert between[0] < numbers(values)["psnr"] < between[1]
    assert '"psnr"' in to_json(values)


def test_a_perfect_output_is_written_without_infinities() -> None:
    class Oracle(Blur):
        def window(self, wanted: Window) -> Window:
            return wanted

    sample = place(16, 16, 9)
    flat = np.kron(sample.ntl, np.ones((1, SCALE, SCALE), np.float32))
    values = report(
        evaluate(Places(replace(sample, ntl_hr=flat)), methods_of(Oracle()), ScoreSettings(block=8))
    )
    assert numbers(values, NEAREST)["psnr"] is None and numbers(values, NEAREST)["rmse"] == 0
    assert "| nearest | – |" in to_markdown(values)
    to_json(values)


def test_the_seam_of_tiles_that_do_not_fit_shows() -> None:
    class Map(Interpolation):
        """A map made before, in tiles of 16 LR pixels that are brighter by turns."""

        def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
            rows, cols = (
                np.arange(SCALE * start, SCALE * (start + length)) // (16 * SCALE) % 2
                for start, length in zip((wanted.row, wanted.col), wanted.shape, strict=True)
            )
            return super().radiance(place, wanted, read, inputs) + np.add.outer(rows, cols)

    source = Places(place(40, 36, 1))
    methods = {NETWORK: Map("bicubic"), BICUBIC: Interpolation("bicubic")}
    found = report(evaluate(source, methods, ScoreSettings(block=8), borders=lambda at: at % 16 == 0))[
        "methods"
    ]
    assert found[NETWORK]["seam"] > found[BICUBIC]["seam"] + 0.2
    assert report(evaluate(source, methods, ScoreSettings(block=8)))["methods"][NETWORK]["seam"] is None


def test_a_street_is_found_and_crossed() -> None:
    """A bright line at 30° to the rows: the profile crosses it at right angles and peaks in its middle."""
    y, x = np.mgrid[:160, :160].astype(float)
    angle = math.radians(30)
    away = (y - 80) * math.cos(angle) - (x - 80) * math.sin(angle)
    image = 0.2 + 20 * np.exp(-0.5 * (away / 2) ** 2)
    street = find_street(image)
    assert street is not None
    profile = along(image, street)
    assert abs(street.distance[profile.argmax()]) <= 1 and profile.max() > 19
    way = street.points[-1] - street.points[0]
    across = abs(way @ np.array([math.cos(angle), -math.sin(angle)])) / np.hypot(*way)
    assert across > math.cos(math.radians(3))
    assert find_street(np.ones((160, 160))) is None and find_street(image[:40]) is None


def test_held_out_countries_are_windows_of_one_place() -> None:
    source = HeldOutCountries(range(910_500, 910_501), side=24)
    whole, part = source.read(0, Window(0, 0, 24, 24)), source.read(0, Window(3, 5, 8, 7))
    assert (part.ntl_hr == whole.ntl_hr[:, 24:88, 40:96]).all() and (
        part.dmo == whole.dmo[:, 24:88, 40:96]
    ).all()
    assert part.offset is not None and part.offset.shape == (2, 8, 7)
    assert source.fingerprint() != HeldOutCountries(range(910_501, 910_502), side=24).fingerprint()
