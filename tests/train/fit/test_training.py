"""Augmentation, objective, schedule, validation and the whole recipe on synthetic data, on a handful of pixels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS
from deeplight.engine.core.windows import Window
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.train.clips.samples import Sample
from deeplight.train.evaluation.bicubic import bicubic
from deeplight.train.evaluation.scores import LAYERS, by_layers, table
from deeplight.train.evaluation.validation import validate
from deeplight.train.fit.augment import augmented, turned
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.checkpoint import load_checkpoint, save_checkpoint
from deeplight.train.fit.config import AugmentConfig, ObjectiveConfig
from deeplight.train.fit.loop import TrainingData, train
from deeplight.train.fit.losses import Truth, objective
from deeplight.train.fit.parts import Parts, window_parts
from deeplight.train.fit.pool import SyntheticSource, build_pool
from deeplight.train.fit.settings import Settings, settings_from
from deeplight.train.fit.stages import schedule
from tests.kernels.test_reference import plain_sample
from tests.train.fit.test_resume import StopAfter

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)
PLAIN = AugmentConfig(0, 0, 0, 0, 0, 0, 0, 0, (0, 0))


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    """A corner of one region, so that validation stays small."""
    (region,) = build_pool(range(5, 6), 1)
    return SyntheticSource([region.cut(Window(0, 0, 48, 48))], range(5, 6))


def drawn(source: SyntheticSource, augment: AugmentConfig, seed: int, side: int = 24) -> Parts:
    window = Window(10 + seed, 20, side, side)
    parts = window_parts(source.read(0, window), (48, 48), side, 3)
    return augmented(parts, augment, np.random.default_rng(seed))


def smooth_region(side: int) -> Sample:
    """A region whose truth is its ground seen through a smooth offset: ISP (NTL frame) = dem (ground) at p + offset."""
    y, x = np.meshgrid(np.arange(8 * side), np.arange(8 * side), indexing="ij")
    ground = np.sin(x / 9.0) * np.cos(y / 7.0) + x / 200 + y / 300
    yl, xl = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    offset = np.stack([0.6 + 0.3 * np.sin(yl / 5), -0.4 + 0.2 * np.cos(xl / 6)]).astype(np.float32)
    hr = F.interpolate(torch.from_numpy(offset)[None], scale_factor=8, mode="bilinear")[0].numpy() * 8
    truth = plain_sample(ground[None], hr)

    layers = (np.ones((1, side, side)), truth, truth, np.repeat(ground[None], 7, 0), ground[None], offset)
    return Sample.complete(*(a.astype(np.float32) for a in layers))


TURNED = 10
"""LR pixels along the sides of the region that is turned."""


@pytest.fixture(scope="module")
def plain() -> Sample:
    window = Window(0, 0, TURNED, TURNED)
    return SyntheticSource([smooth_region(TURNED)], range(1)).read(0, window)


@pytest.mark.parametrize(
    "turn", [(x, y, t) for x in (False, True) for y in (False, True) for t in (False, True)]
)
@pytest.mark.parametrize("axes", [0, 1], ids=["sample", "batch"])
def test_the_offset_turns_with_the_image(plain: Sample, turn: tuple[bool, bool, bool], axes: int) -> None:
    parts = window_parts(plain, (TURNED, TURNED), TURNED, 0)
    if axes:
        parts = {name: p[None] for name, p in parts.items() if p.ndim > 1}
    parts = turned(parts, *turn)
    if axes:
        parts = {name: p[0] for name, p in parts.items()}
    hr = F.interpolate(parts["offset"][None], scale_factor=8, mode="bilinear")[0].numpy() * 8
    again = plain_sample(parts["dem"].numpy(), hr)[0]
    inner = slice(16, -16)  # clamped taps at the edge are not symmetric
    assert np.abs(again[inner, inner] - parts["isp"][0].numpy()[inner, inner]).max() < 1e-4


def test_augmentation_is_reproducible_and_keeps_invalid_pixels_zero(source: SyntheticSource) -> None:
    one, two, other = (drawn(source, AugmentConfig(), seed) for seed in (4, 4, 5))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["ntl"], other["ntl"])
    assert one["dmo"].shape == (7, 192, 192)
    for seed in range(8):
        parts = drawn(source, replace(AugmentConfig(), hole=1.0), seed)
        assert parts["weight"][..., :3, :].sum() == 0 and parts["weight"].sum() > 0
        assert (parts["weight"] * (1 - parts["ntl_valid"])).sum() == 0, "no loss where NTL is nodata"
        for value in ("ntl", "dmo", "dem"):
            assert (parts[value] * (1 - parts[f"{value}_valid"])).abs().sum() == 0


def test_without_augmentation_the_sample_stays(source: SyntheticSource) -> None:
    sample = source.read(0, Window(10, 20, 24, 24))
    parts = drawn(source, PLAIN, 0)
    assert all(np.array_equal(parts[spec.name].numpy(), getattr(sample, spec.name)) for spec in INPUTS)


def test_dropout_tells_the_network(source: SyntheticSource) -> None:
    parts = drawn(source, replace(PLAIN, drop_dmo=1.0, drop_dem=1.0), 0)
    assert all(parts[n].abs().sum() == 0 for n in ("dmo", "dmo_valid", "dmo_bands", "dem", "dem_valid"))
    bands = drawn(source, replace(PLAIN, drop_bands=1.0), 1)
    gone = bands["dmo_bands"] == 0
    assert 0 < gone.sum() < 7 and bands["dmo"][gone].abs().sum() == 0 and bands["dmo_valid"].min() == 1


def test_brightness_goes_to_lights_and_truth_alike(source: SyntheticSource) -> None:
    plain, bright = drawn(source, PLAIN, 2), drawn(source, replace(PLAIN, gain_octaves=2.0), 2)
    ratio = bright["ntl"].sum() / plain["ntl"].sum()
    assert abs(float(ratio) - 1) > 0.05
    assert float(bright["ntl_hr"].sum() / plain["ntl_hr"].sum()) == pytest.approx(float(ratio), rel=1e-5)


def test_a_cut_is_zero_in_lights_and_truth_alike(source: SyntheticSource) -> None:
    parts = drawn(source, replace(PLAIN, cut=1.0), 1)
    dark = F.interpolate((parts["ntl"] == 0).float()[None], scale_factor=8, mode="nearest")[0]
    assert 0.1 < dark.mean() < 0.9
    assert torch.equal(parts["ntl_hr"] == 0, dark > 0)
    assert parts["ntl_valid"].min() == 1, "cut, but not declared as nodata"


def toy_batch(seed: int = 0) -> Batch:
    region = smooth_region(12)
    torch.manual_seed(seed)
    inputs = (
        torch.rand(1, 1, 12, 12) * 20,
        torch.ones(1, 1, 12, 12),
        torch.from_numpy(region.dmo)[None] * 0.1,
        torch.ones(1, 1, 96, 96),
        torch.ones(1, 7),
        torch.from_numpy(region.dem)[None],
        torch.ones(1, 1, 96, 96),
        torch.full((1, 2), -1.0),
        torch.full((1, 2), -1.0),
    )
    truth = F.interpolate(inputs[0], scale_factor=8, mode="nearest")
    offset = torch.from_numpy(region.offset)[None]
    return Batch(truth, torch.rand(1, 1, 96, 96), torch.ones(1, 1, 12, 12), offset, inputs=inputs)


def test_objective_is_the_stated_sum() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p = model.predict(*batch.inputs)
    config = ObjectiveConfig(
        alpha=0.7, beta=(0.1, 0.2, 0.9), consistency=0.0, squared=0.0, linear=0.0, interval=0.0, offset=0.0
    )
    loss, _ = objective(model, p, batch, config)
    want = 0.0
    for j, (value, logit) in enumerate(zip(p.ntl, p.isp_logits, strict=True)):
        down = (4, 2, 1)[j]
        target = torch.log1p(F.avg_pool2d(batch.ntl_hr, down)) / 2.0
        fraction = F.avg_pool2d(batch.isp, down)
        q = torch.sigmoid(logit)
        bce = -(fraction * torch.log(q) + (1 - fraction) * torch.log(1 - q)).mean()
        want = want + 0.7 * config.beta[j] * (value - target).abs().mean() + 0.3 * bce / 3
    assert abs(float(loss.detach()) - float(want.detach())) < 1e-5  # type: ignore[union-attr]


def test_pixels_without_weight_do_not_count() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    weight = batch.weight.clone()
    weight[..., 6:] = 0
    spoiled = batch.ntl_hr.clone()
    spoiled[..., 48:] = 1e4
    p = model.predict(*batch.inputs)
    config = ObjectiveConfig(offset=0.0)
    one = objective(model, p, replace(batch, weight=weight), config)[0]
    two = objective(model, p, replace(batch, ntl_hr=spoiled, weight=weight), config)[0]
    assert torch.equal(one, two)


ALL_TERMS = ObjectiveConfig(totals=0.3)


def test_masks_that_are_all_valid_change_nothing() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p, ones = model.predict(*batch.inputs), torch.ones_like(batch.isp)
    plain = objective(model, p, batch, ALL_TERMS)[0]
    masked = replace(batch, ntl_hr_valid=ones, isp_valid=ones)
    assert torch.equal(objective(model, p, masked, ALL_TERMS)[0], plain)


def test_truth_that_is_not_known_does_not_count() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p = model.predict(*batch.inputs)
    lights, built = (torch.rand_like(batch.isp) > 0.4 for _ in range(2))

    def loss(spoil: float) -> torch.Tensor:
        hr = torch.where(lights, batch.ntl_hr, spoil)
        isp = torch.where(built, batch.isp, min(spoil, 1.0))
        truth = Truth(hr, isp, batch.weight, batch.offset, lights.float(), built.float())
        return objective(model, p, truth, ALL_TERMS)[0]

    assert float(loss(0.0).detach()) == pytest.approx(float(loss(1e3).detach()), rel=1e-6)
    none = torch.zeros_like(batch.isp)
    dark = objective(model, p, Truth(none, none, batch.weight, None, none, none), ALL_TERMS)[0]
    assert float(dark.detach()) == 0.0


def test_optional_terms_react() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p = model.predict(*batch.inputs)
    none = ObjectiveConfig(consistency=0, offset=0, squared=0, linear=0, interval=0)
    plain = float(objective(model, p, batch, none)[0].detach())
    for config in (
        replace(none, consistency=1),
        replace(none, offset=1),
        replace(none, squared=1),
        replace(none, linear=1),
        replace(none, totals=1),
        replace(none, interval=1),
        replace(none, literal_isp=True),
    ):
        assert float(objective(model, p, batch, config)[0].detach()) != pytest.approx(plain, rel=1e-6)


def test_schedule() -> None:
    rates = [schedule(s, 1.0, 1000, 100, 0.01) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(1.0, abs=0.01)
    assert np.argmax(rates) in range(98, 102) and rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert rates[550] == pytest.approx(0.505, abs=1e-3), "half of the cosine"
    assert schedule(0, 1.0, 10, 0, 0.5) == 1.0 and schedule(99, 1.0, 10, 0, 0.5) == 0.5


def test_validation_of_the_network_and_of_bicubic() -> None:
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    scores = validate(model, [batch])
    with torch.no_grad():
        out = model(*batch.inputs)[0].double()
    for image, ending in ((out, ""), (bicubic(batch.inputs[0]).double(), "_bicubic")):
        error = image - batch.ntl_hr
        assert scores[f"rmse{ending}"] == pytest.approx(float((error**2).mean().sqrt()), rel=1e-5)
        assert scores[f"mae{ending}"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
        logs = torch.log1p(image) - torch.log1p(batch.ntl_hr)
        psnr = 20 * math.log10(math.log1p(200)) - 10 * math.log10(float((logs**2).mean()))
        assert scores[f"psnr_log1p{ending}"] == pytest.approx(psnr, rel=1e-5)
        total = float(image.sum() / batch.ntl_hr.sum()) - 1
        assert scores[f"sum_of_lights_error{ending}"] == pytest.approx(total, abs=1e-5)


def test_validation_leaves_out_what_does_not_exist() -> None:
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    nothing = by_layers(model, [replace(batch, weight=batch.weight * 0, offset=None)], {"none": (0, 0)})
    assert set(nothing["none"]) == {"isp_mae", "offset_epe_lit_px", "offset_epe_lit_px_if_zero"}
    assert table(nothing).splitlines()[2:] == [
        "| none | – | – | – | – | – | – |", "| bicubic | – |  |  |  | – | – |",
    ]  # fmt: skip


def test_validation_counts_valid_pixels_alone_and_needs_no_offset() -> None:
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    known = torch.ones_like(batch.isp)
    known[..., 48:] = 0
    part = replace(batch, ntl_hr=batch.ntl_hr * known, ntl_hr_valid=known, isp_valid=known, offset=None)
    weight = batch.weight.clone()
    weight[..., 6:] = 0
    want = validate(model, [replace(batch, weight=weight)])
    got = validate(model, [part])
    assert all(got[k] == pytest.approx(want[k], rel=1e-6) for k in got if "offset" not in k)
    assert got["rmse"] != validate(model, [batch])["rmse"]
    below = replace(batch, ntl_hr=batch.ntl_hr - 30.0)  # noise: log1p is not defined below −1
    assert np.isfinite(list(validate(model, [below]).values())).all()


def test_scores_take_layers_away_and_name_every_row() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    for fusion in model.fusions:  # at its start the fusion is the identity, whatever is given
        fusion.film_weight.data *= 20.0  # type: ignore[operator, union-attr]
        fusion.film_bias.data += 0.3  # type: ignore[operator, union-attr]
    for refine in model.refines:
        refine.residual.weight.data.normal_()  # type: ignore[operator, union-attr]
    scores = by_layers(model, [batch])
    assert len({s["rmse"] for s in scores.values()}) == len(LAYERS), "each set of layers must matter"
    bare = list(batch.inputs)
    bare[2:7] = [t * 0 for t in bare[2:7]]  # the sensor stays
    alone = validate(model, [replace(batch, inputs=tuple(bare))])
    assert scores["none"] == alone
    lines = table(scores).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*LAYERS, "bicubic"]
    assert f"{alone['psnr_log1p'] - alone['psnr_log1p_bicubic']:+.2f} dB" in lines[5]


def test_a_scene_gain_is_the_ratio_of_its_errors() -> None:
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    scores = validate(model, [batch])
    gain = scores["psnr_log1p"] - scores["psnr_log1p_bicubic"]
    assert scores["psnr_log1p_gain_scene_mean"] == pytest.approx(gain, abs=1e-3), (
        "one scene: pooled and mean agree"
    )


def test_known_offset_takes_the_estimate_s_place(source: SyntheticSource) -> None:
    torch.manual_seed(0)
    model = DeepLightSR(SMALL).eval()
    batch = next(iter(FixedBatches(source, 1, 10)))
    with torch.no_grad():
        told = model.predict(*batch.inputs, known_offset=batch.offset)
        estimated = model.predict(*batch.inputs)
        again = model.predict(*batch.inputs, known_offset=estimated.offset)
    assert batch.offset is not None
    assert torch.equal(told.offset, batch.offset) and not torch.equal(told.offset, estimated.offset)
    assert torch.equal(again.ntl[-1], estimated.ntl[-1])


def few_steps(**training: object) -> Settings:
    steps = {"steps": 12, "told_steps": 6, "finish_steps": 4, "localise_steps": 2}
    steps |= dict.fromkeys(("light_steps", "simple_steps", "early_steps"), 0)
    config = {"batch": 1, "crop": 20, "margin": 2, "warm_up": 2, "validate_every": 6}
    model = {"main": [8, 8, 4, 4], "aux": [8, 4, 4], "localise_width": 8}
    return settings_from({"model": model, "training": {**steps, **config, **training}})


def test_training_learns_and_leaves_a_checkpoint(tmp_path: Path, source: SyntheticSource) -> None:
    out, said = tmp_path / "run", StopAfter()
    data = TrainingData(source, source, {"kind": "test"})
    model = train(few_steps(), data, out, device="cpu", reporter=said)
    loaded, card = load_checkpoint(out)
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    assert card["step"] == 22 and card["data"]["kind"] == "test" and len(card["history"]) == 4
    fresh = validate(DeepLightSR(SMALL).eval(), FixedBatches(source, 1, halo(SMALL)))
    assert card["history"][-1]["isp_mae"] < fresh["isp_mae"], "it learns"
    rows = said.lines[-1].splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == [*LAYERS, "bicubic"]
    assert "-100.0 %" not in said.lines[-1], "every row has pixels"


def test_the_offset_s_layers_are_frozen_unless_they_have_a_rate(
    tmp_path: Path, source: SyntheticSource
) -> None:
    data, short = TrainingData(source, source, {}), {"steps": 1, "told_steps": 0, "finish_steps": 0}
    torch.manual_seed(0)
    start = DeepLightSR(SMALL).localise.state_dict()
    for rate in (0.0, 0.5):
        settings = few_steps(**short, localise_steps=0, localise_rate=rate)
        model = train(settings, data, tmp_path / str(rate), device="cpu")
        same = all(torch.equal(v, start[k]) for k, v in model.localise.state_dict().items())
        assert same == (rate == 0)
        assert not torch.equal(model.first.weight, DeepLightSR(SMALL).first.weight)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, source: SyntheticSource) -> None:
    settings = few_steps(learning_rate=1e30, localise_steps=0, told_steps=0, warm_up=1)
    with pytest.raises(DeepLightError, match=r"the loss became .* of stage whole, on synthetic region 0"):
        train(settings, TrainingData(source, source, {}), tmp_path / "run", device="cpu")


def test_reduced_precision_stays_near_full(tmp_path: Path, source: SyntheticSource) -> None:
    """In all stages, those of the offset too."""
    short = {"steps": 2, "told_steps": 1, "finish_steps": 1, "localise_steps": 2, "localise_rate": 0.5}
    data = TrainingData(source, source, {})
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        train(few_steps(**short, precision=precision, log_every=1), data, out, device="cpu")
        rows = [r.split(",") for r in (out / "metrics.csv").read_text().splitlines()]
        losses.append([float(r[3]) for r in rows if r[2] == "loss"])
    # bfloat16 keeps 8 bits: 0.4 % a value; the loss averages thousands
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]
    with pytest.raises(InputError, match='`precision="16-mixed"` needs a GPU'):
        train(few_steps(precision="16-mixed"), data, tmp_path / "half", device="cpu")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", DeepLightSR(SMALL), {"step": 0})
    manifest = tmp_path / "run" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["configuration"]["main"] = [16, 8, 4, 4]
    manifest.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"do not fit .*: main is \(16, 8, 4, 4\) there, \(8, 8, 4, 4\) in the"
    ):
        load_checkpoint(tmp_path / "run")
