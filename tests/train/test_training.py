"""Samples, augmentation, objective, loop and checkpoints, on a handful of pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplight.engine.errors import DeepLightError, InputError
from deeplight.train import pool as pools
from deeplight.train.checkpoint import load_checkpoint, save_checkpoint
from deeplight.train.config import ModelConfig
from deeplight.train.loop import TrainConfig, learning_rate, train
from deeplight.train.losses import ObjectiveConfig, Truth, objective
from deeplight.train.metrics import psnr, validate
from deeplight.train.model import DeepLightSR
from deeplight.train.pool import AugmentConfig, Batch, Region, batches, build_pool, fixed_batches
from deeplight.train.scores import LAYERS, by_layers, table
from tests.kernels.test_reference import plain_sample

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4, 4), localise_width=8)


@pytest.fixture(scope="module")
def region() -> Region:
    return build_pool(range(5, 6), 1)[0]


def smooth_region(side: int) -> Region:
    """A region whose truth is its ground seen through a smooth offset: ISP (NTL frame) = dem (ground) at p + offset."""
    y, x = np.meshgrid(np.arange(8 * side), np.arange(8 * side), indexing="ij")
    ground = np.sin(x / 9.0) * np.cos(y / 7.0) + x / 200 + y / 300
    yl, xl = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    offset = np.stack([0.6 + 0.3 * np.sin(yl / 5), -0.4 + 0.2 * np.cos(xl / 6)]).astype(np.float32)
    hr = F.interpolate(torch.from_numpy(offset)[None], scale_factor=8, mode="bilinear")[0].numpy() * 8
    truth = plain_sample(ground[None], hr)

    def t(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).float()

    return Region(
        t(np.ones((1, side, side))),
        t(truth),
        t(truth),
        t(np.repeat(ground[None], 7, 0)),
        t(ground[None]),
        t(offset),
    )


@pytest.mark.parametrize(
    "turn", [(x, y, t) for x in (False, True) for y in (False, True) for t in (False, True)]
)
def test_the_offset_turns_with_the_image(
    turn: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 14
    monkeypatch.setattr(pools, "REGION", side)
    parts = pools._turn(pools._sample(smooth_region(side), 0, 0, side, 0), *turn)
    hr = F.interpolate(parts[10][None], scale_factor=8, mode="bilinear")[0].numpy() * 8
    again = plain_sample(parts[5].numpy(), hr)[0]
    inner = slice(16, -16)  # clamped taps at the edge are not symmetric
    assert np.abs(again[inner, inner] - parts[8][0].numpy()[inner, inner]).max() < 1e-4


def test_batches_are_reproducible_and_bounded(region: Region) -> None:
    one = next(batches([region], 2, 24, 3, AugmentConfig(), seed=4))
    two = next(batches([region], 2, 24, 3, AugmentConfig(), seed=4))
    other = next(batches([region], 2, 24, 3, AugmentConfig(), seed=5))
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, two.inputs, strict=True))
    assert not torch.equal(one.inputs[0], other.inputs[0])
    assert one.inputs[2].shape == (2, 7, 192, 192)
    assert one.weight[..., :3, :].sum() == 0 and one.weight.sum() > 0
    for value, mask in ((0, 1), (2, 3), (5, 6)):
        assert (one.inputs[value] * (1 - one.inputs[mask])).abs().sum() == 0


def test_dropout_tells_the_network(region: Region) -> None:
    augment = AugmentConfig(drop_dmo=1.0, drop_dem=1.0, drop_both=0.0, hole=1.0)
    batch = next(batches([region], 2, 24, 3, augment, seed=0))
    assert all(batch.inputs[i].abs().sum() == 0 for i in (2, 3, 4, 5, 6))
    assert (batch.weight * (1 - batch.inputs[1])).sum() == 0, "no loss where NTL is nodata"


def toy_batch(seed: int = 0) -> Batch:
    region = smooth_region(12)
    torch.manual_seed(seed)
    inputs = (
        torch.rand(1, 1, 12, 12) * 20,
        torch.ones(1, 1, 12, 12),
        region.dmo[None] * 0.1,
        torch.ones(1, 1, 96, 96),
        torch.ones(1, 7),
        region.dem[None],
        torch.ones(1, 1, 96, 96),
    )
    truth = F.interpolate(inputs[0], scale_factor=8, mode="nearest")
    return Batch(inputs, truth, torch.rand(1, 1, 96, 96), torch.ones(1, 1, 12, 12), region.offset[None])


def test_objective_is_the_stated_sum() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p = model.predict(*batch.inputs)
    truth = Truth(batch.ntl_hr, batch.isp, batch.weight, batch.offset)
    config = ObjectiveConfig(alpha=0.7, beta=(0.1, 0.2, 0.9), consistency=0.0, squared=0.0, offset=0.0)
    loss, _ = objective(model, p, truth, config)
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
    one = objective(model, p, Truth(batch.ntl_hr, batch.isp, weight, None), config)[0]
    two = objective(model, p, Truth(spoiled, batch.isp, weight, None), config)[0]
    assert torch.equal(one, two)


def test_optional_terms_react() -> None:
    torch.manual_seed(0)
    model, batch = DeepLightSR(SMALL), toy_batch()
    p = model.predict(*batch.inputs)
    truth = Truth(batch.ntl_hr, batch.isp, batch.weight, batch.offset)
    none = ObjectiveConfig(consistency=0, offset=0, squared=0)
    plain = float(objective(model, p, truth, none)[0].detach())
    for config in (
        replace(none, consistency=1),
        replace(none, offset=1),
        replace(none, squared=1),
        replace(none, totals=1),
        replace(none, literal_isp=True),
    ):
        assert float(objective(model, p, truth, config)[0].detach()) != pytest.approx(plain, rel=1e-6)


def test_schedule() -> None:
    config = TrainConfig(steps=1000, warm_up=100, learning_rate=1.0)
    rates = [learning_rate(s, config) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(1.0, abs=0.01)
    assert np.argmax(rates) in range(98, 102) and rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_validation_of_a_perfect_and_of_the_bicubic_answer() -> None:
    assert psnr(1.0, 10.0) == pytest.approx(20.0)
    model, batch = DeepLightSR(SMALL).eval(), toy_batch()
    scores = validate(model, [batch])
    with torch.no_grad():
        out = model(*batch.inputs)[0]
    assert scores["rmse"] == pytest.approx(float(((out - batch.ntl_hr) ** 2).mean().sqrt()), rel=1e-5)
    assert scores["sum_of_lights_error"] == pytest.approx(float(out.sum() / batch.ntl_hr.sum()) - 1, abs=1e-5)


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
    bare[2:] = [t * 0 for t in bare[2:]]
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


def test_known_offset_takes_the_estimate_s_place(region: Region) -> None:
    torch.manual_seed(0)
    model = DeepLightSR(SMALL).eval()
    batch = fixed_batches([region], 1, 24, 2)[0]
    with torch.no_grad():
        told = model.predict(*batch.inputs, known_offset=batch.offset)
        estimated = model.predict(*batch.inputs)
        again = model.predict(*batch.inputs, known_offset=estimated.offset)
    assert torch.equal(told.offset, batch.offset) and not torch.equal(told.offset, estimated.offset)
    assert torch.equal(again.ntl[-1], estimated.ntl[-1])


def test_a_cut_is_zero_in_lights_and_truth_alike(region: Region) -> None:
    augment = AugmentConfig(0, 0, 0, 0, 0, cut=1.0)
    batch = next(batches([region], 4, 24, 3, augment, seed=1))
    dark = F.interpolate((batch.inputs[0] == 0).float(), scale_factor=8, mode="nearest")
    assert 0.1 < dark.mean() < 0.9
    assert torch.equal(batch.ntl_hr == 0, dark > 0)
    assert batch.inputs[1].min() == 1, "cut, but not declared as nodata"


def test_training_learns_and_leaves_a_checkpoint(tmp_path: Path, region: Region) -> None:
    config = TrainConfig(
        steps=12,
        batch=1,
        crop=20,
        margin=2,
        warm_up=2,
        validate_every=6,
        localise_steps=2,
        light_steps=2,
        told_steps=6,
        finish_steps=4,
    )
    lines: list[str] = []
    model = train(SMALL, config, [region], [region], tmp_path / "run", {"kind": "test"}, lines.append)
    loaded, card = load_checkpoint(tmp_path / "run")
    again, _ = load_checkpoint(tmp_path / "run" / "model.safetensors")
    for a, b, c in zip(model.parameters(), loaded.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    assert card["step"] == 22 and card["data"] == {"kind": "test"} and len(card["history"]) == 4
    fresh = validate(DeepLightSR(SMALL).eval(), fixed_batches([region], 1, 20, 2))
    assert card["history"][-1]["isp_mae"] != fresh["isp_mae"]
    assert [
        s
        for s in ("offset_loss step 0/2", "step 0/6", "step 6/18", "step 18/22")
        if not any(x.startswith(s) for x in lines)
    ] == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, region: Region) -> None:
    config = TrainConfig(
        steps=30, batch=1, crop=16, margin=2, warm_up=1, learning_rate=1e30, localise_steps=0, told_steps=0
    )
    with pytest.raises(DeepLightError, match="loss became"):
        train(SMALL, config, [region], [region], tmp_path / "run", {}, lambda _: None)


def test_checkpoint_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "run", DeepLightSR(SMALL), {"step": 0})
    card = tmp_path / "run" / "checkpoint.json"
    values = json.loads(card.read_text())
    values["model"]["main"] = [16, 8, 4, 4]
    card.write_text(json.dumps(values))
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(tmp_path / "run")
    card.write_text("{}")
    with pytest.raises(InputError, match="not a checkpoint card"):
        load_checkpoint(tmp_path / "run")
