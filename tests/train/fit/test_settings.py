"""One TOML file, `--set` and options become settings, or one sentence that names what is wrong."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.config import PRESETS
from deeplight.train.fit.config import TrainConfig
from deeplight.train.fit.settings import FINE_TUNING, Settings, differences, load_settings, settings_from
from tests.conftest import ROOT


def test_the_file_then_set_then_options(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[model]\npreset = "base"\nbody = 2\n[training]\nbatch = 6\ncrop = 32\nseed = 5\n'
        "[objective]\nbeta = [0, 1, 1]\n[augment]\ndrop_dem = 1\n[data]\nworkers = 3\n"
    )
    s = load_settings(
        file, ["training.crop=28", "training.batch=7"], {"training.batch": 8, "training.seed": None}
    )
    assert (s.training.batch, s.training.crop, s.training.seed) == (8, 28, 5)
    assert s.model.body == 2 and s.model.main == PRESETS["base"].main
    assert s.objective.beta == (0.0, 1.0, 1.0) and s.augment.drop_dem == 1.0 and s.data.workers == 3
    assert load_settings() == Settings()


def test_other_stages_keep_their_share_unless_given() -> None:
    s = load_settings(None, ["training.finish_steps=7"], {"training.steps": 420}).training
    others = (s.light_steps, s.localise_steps, s.told_steps, s.simple_steps, s.early_steps, s.finish_steps)
    assert (s.steps, *others) == (420, 20, 50, 40, 160, 340, 7)
    assert TrainConfig().scaled(4_200) == TrainConfig()


def test_fine_tuning_has_defaults_of_its_own_below_everything_that_is_given() -> None:
    network = replace(PRESETS["tiny"], body=1)
    plain = load_settings(start=network)
    assert plain.model == network
    assert plain.training == replace(TrainConfig(), **FINE_TUNING)
    given = load_settings(sets=["training.told_steps=7"], options={"training.steps": 450}, start=network)
    assert (given.training.steps, given.training.told_steps, given.training.light_steps) == (450, 7, 0)
    assert load_settings(options={"model.preset": "base"}, start=network).model == PRESETS["base"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("training.bath=8", "unknown setting training.bath: did you mean batch?"),
        ("trainin.batch=8", "unknown setting trainin: did you mean training?"),
        ("augment.qqqq=1", "unknown setting augment.qqqq: known are turn"),
        ("training.batch=0", "training.batch must be 1 or more, not 0"),
        ("training.batch=2.5", "training.batch must be a whole number, not 2.5"),
        ("training.batch=true", "training.batch must be a whole number, not True"),
        ("training.learning_rate=0", "training.learning_rate must be more than 0, not 0.0"),
        ("training.learning_rate=nan", "training.learning_rate must be a number, not nan"),
        ("training.average=1.0", "training.average must be less than 1, not 1.0"),
        ("training.precision=fp8", "must be one of 32-true, bf16-mixed, 16-mixed, not 'fp8'"),
        ("training.margin=22", "training.margin = 22 leaves nothing of training.crop = 44"),
        ("objective.beta=[1, 2]", "objective.beta must be a list of 3 values"),
        ("objective.literal_isp=1", "objective.literal_isp must be true or false, not 1"),
        ("augment.hole=1.5", "augment.hole must be 1 or less, not 1.5"),
        ("model.preset=huge", "model.preset is 'huge': choose one of tiny, base"),
        ("model.main=[1, 2]", "model.main must be 4 integers"),
        ("model.mian=[1, 2]", "unknown setting model.mian: did you mean main?"),
        (
            "model.normalisation.dem_sdt=1",
            "unknown setting model.normalisation.dem_sdt: did you mean dem_std?",
        ),
        ("training=3", "'training' lacks its table"),
        ("nothing", "is not TABLE.KEY=VALUE"),
        ('model.preset=["tiny"]', "model.preset is ['tiny']: choose one of tiny, base"),
        (
            f"training.learning_rate=1{'0' * 400}",
            "training.learning_rate must be less than 2^64; it has 1329 bits",
        ),
        (f"training.steps=1{'0' * 400}", "training.steps must be less than 2^64"),
        (f"training.steps=1{'0' * 5000}", "training.steps must be a whole number, not '1000"),
        (f"model.d_max=1{'0' * 400}", "model.d_max must be a number above 0 that fits float32, not 1000"),
        ("augment.dem_shift=[600, -200]", "augment.dem_shift must be [lowest, highest], not [600.0, -200.0]"),
        ("degradation.psf=1.2", "setting degradation belongs to data.protocol = wald"),
    ],
)
def test_what_cannot_be_is_named(given: str, words: str) -> None:
    with pytest.raises(InputError) as e:
        load_settings(None, [given])
    assert words in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 300


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(file)
    file.write_text("[training\n")
    with pytest.raises(InputError, match="is not TOML"):
        load_settings(file)
    file.write_text("training = 3\n")
    with pytest.raises(InputError, match="must be a table"):
        load_settings(file)


def test_differences_name_what_decides_the_weights() -> None:
    then = json.loads(json.dumps(Settings().to_dict()))
    assert differences(Settings(), then) == []
    free = load_settings(None, ["data.workers=2", "training.log_every=3", "training.steps=3000"])
    assert differences(free, then) == []
    other = load_settings(None, ["training.batch=5", "model.main=[8, 8, 8, 8]"])
    assert differences(other, then) == ["model.main: [64, 32, 32, 8] → [8, 8, 8, 8]", "training.batch: 4 → 5"]


def test_the_documented_settings_are_all_with_their_defaults() -> None:
    text = (ROOT / "docs" / "training.md").read_text().partition("```toml\n")[2].partition("```")[0]
    tables = tomllib.loads(text)
    assert settings_from(tables) == Settings()
    every = Settings().to_dict()
    for table in ("training", "objective", "augment", "data"):
        assert list(tables[table]) == list(every[table])


def test_settings_survive_json() -> None:
    s = load_settings(None, ["training.seed=3", "augment.dem_shift=[0, 1]"])
    assert settings_from(json.loads(json.dumps(s.to_dict()))) == s


def test_the_degradation_takes_the_short_keys_too() -> None:
    tables = {"data": {"protocol": "wald"}, "degradation": {"psf": 1.2, "shift": 0.5, "noise": 0.1}}
    assert dict(settings_from(tables).degradation) == {"psf_fwhm_lr": 1.2, "shift_lr": 0.5, "noise": 0.1}
    twice = {"data": {"protocol": "wald"}, "degradation": {"psf": 1.2, "psf_fwhm_lr": 1.0}}
    with pytest.raises(InputError, match="given twice"):
        settings_from(twice)
