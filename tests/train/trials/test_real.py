"""Trials on real lights, on places made up: folds, pooling, and a verdict that can be no."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.checkpoint import save_checkpoint
from deeplight.train.fit.settings import settings_from
from deeplight.train.trials import real as real_trials
from deeplight.train.trials.real import Trial, in_words, training_settings, verdict
from deeplight.train.trials.training import train_once
from tests.train.evaluation.test_evaluate import Blur, Places, place


class Oracle(Blur):
    """Knows the truth of two places with blocks of light, to a thousandth."""

    def run(self, inputs: Any) -> Any:
        return np.kron(inputs["ntl"][0, 0], np.ones((8, 8))).astype(np.float32) * np.float32(1.001)


def block_lights(h: int, w: int, seed: int) -> Any:
    """A place whose lights are even within each LR pixel, so that the nearest neighbour is right."""
    sample = place(h, w, seed)
    return replace(sample, ntl_hr=np.kron(sample.ntl, np.ones((1, 8, 8), np.float32)))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Two places; notes what each network was trained without."""
    held_out: list[tuple[str, ...]] = []
    tests = {("north",): Places(block_lights(17, 19, 1)), ("south",): Places(block_lights(16, 9, 2))}

    def trained(trial: Trial, degradation: Any, held: tuple[str, ...], *_: Any) -> Oracle:
        held_out.append(held)
        return Oracle()

    monkeypatch.setattr(real_trials, "_places", lambda data: ["north", "south"])
    monkeypatch.setattr(real_trials, "_trained", trained)
    monkeypatch.setattr(real_trials, "_opened", lambda trial, split, degradation, held: tests[held])
    for name, source in zip(("north", "south"), tests.values(), strict=True):
        monkeypatch.setattr(source, "name", lambda index, name=name: name, raising=False)
    return held_out


def test_each_place_is_scored_by_a_network_that_has_not_seen_it(
    world: list[tuple[str, ...]], tmp_path: Path
) -> None:
    values = real_trials.run(Trial("tree"), tmp_path, seed=0, say=lambda text: None)
    assert world == [("north",), ("south",)]
    assert set(values["places"]) == {"north", "south"}
    assert values["pixels"]["scored"] == (17 * 19 + 16 * 9) * 64, "pooled"
    assert "network, no auxiliary" not in values["methods"]
    stored = json.loads((tmp_path / "trial.json").read_text())["verdict"]
    assert stored["places"] == {"number": 2, "better_psnr": 2}
    text = (tmp_path / "trial.md").read_text()
    assert (
        text.startswith("# Trial on real lights\n\nPooled over 29,888 pixels") and "| south | 9,216 |" in text
    )


def values(mine: tuple[float, float], base: tuple[float, float]) -> dict[str, Any]:
    def method(psnr: float, total: float) -> dict[str, Any]:
        numbers = {"n": 100, "psnr": psnr, "psnr_log1p": psnr, "sum_of_lights_error": total}
        return {"strata": {"all": {**numbers, "interval": {"psnr_gain": [0.1, 0.4]}}}}

    return {
        "methods": {"network": method(*mine), "bicubic": method(*base)},
        "settings": {"bootstrap": {"blocks": 9}},
        "places": {"a": {"network": {"rmse": 2.0}, "bicubic": {"rmse": 1.9}}},
    }


@pytest.mark.parametrize(
    ("total", "kept"), [(0.0, True), (0.029, True), (-0.029, True), (0.031, False), (-0.031, False)]
)
def test_sums_may_be_one_percent_worse_than_bicubic_s(total: float, kept: bool) -> None:
    found = verdict(values((30.0, total), (29.0, -0.02)))
    assert found["sums_kept"]["met"] is kept and found["better_psnr"]["met"]
    assert ("**not met**" in "\n".join(in_words(found))) is not kept


def test_a_verdict_can_be_no() -> None:
    found = verdict(values((28.9, 0.0), (29.0, 0.0)))
    lines = in_words(found)
    assert found["better_psnr"]["value"] == pytest.approx(-0.1) and not found["better_psnr"]["met"]
    assert lines[2] == "- PSNR over bicubic: -0.10 dB (95 % interval +0.10 … +0.40 dB): **not met**"
    assert lines[-1] == "- PSNR over bicubic in 0 of 1 clips"


def test_one_place_cannot_be_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(real_trials, "_places", lambda data: ["alone"])
    with pytest.raises(InputError, match="one place, alone: to leave one out takes two or more"):
        real_trials.run(Trial("tree"), tmp_path, 0, lambda text: None)


def test_the_settings_are_those_of_deeplight_train() -> None:
    settings = settings_from(training_settings(steps=50, seed=4, rate=1e-3, crop=16))
    assert (settings.training.steps, settings.training.crop, settings.training.told_steps) == (50, 16, 0)


def test_a_start_of_another_network_is_told_apart(tmp_path: Path) -> None:
    tables = training_settings(steps=5, seed=4, rate=1e-3, crop=16)
    model = settings_from(tables).model
    other = replace(model, body=model.body + 1, d_max=1.5)
    save_checkpoint(tmp_path / "start", DeepLightSR(other), {})
    source = Places(place(8, 8, 0))
    with pytest.raises(InputError, match=r"another network \(body 3, not 2; d_max 1\.5, not 2\.0\)"):
        train_once(tables, source, source, tmp_path / "run", lambda text: None, tmp_path / "start")
    assert not (tmp_path / "run").exists()


def test_a_degradation_without_wald_is_refused(tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--protocol", "paired"]
    done = CliRunner().invoke(real_trials.command, [*arguments, "--degradation", "psf=1"])
    assert isinstance(done.exception, InputError) and "belongs to --protocol wald" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_saturated_pixels_are_those_of_the_source() -> None:
    source = Places(place(8, 8, 0))
    setattr(source, "ceiling", 2.0)  # noqa: B010
    result = real_trials.score(Oracle(), source, Trial("tree", protocol="paired"), None)
    assert result.settings.strata.ceiling == 2.0 and result.total["pixels"][0, 3, 0] > 0
