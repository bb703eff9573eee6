"""A run that is stopped and taken up again ends with the bits of one that was not; what does not fit is refused."""

from __future__ import annotations

import contextlib
import csv
import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.runtime.manifest import MANIFEST_NAME, WEIGHTS
from deeplight.train.fit.checkpoint import load_checkpoint
from deeplight.train.fit.logs import Reporter
from deeplight.train.fit.loop import TrainingData, train
from deeplight.train.fit.run_folder import BEST, EVENTS, METRICS, STATE, check_unused
from deeplight.train.fit.settings import Settings
from tests.train.fit.fake_source import FakeSource, small_settings


class Stopped(Exception):
    """Stands for a kill."""


class StopAfter(Reporter):
    """Stops the run in the middle of a step, after so many; keeps what is said."""

    def __init__(self, steps: int = 10**9) -> None:
        self.left, self.lines = steps, list[str]()

    def advance(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def log(self, text: str) -> None:
        self.lines.append(text)


def data(salt: str = "", **faults: object) -> TrainingData:
    places = FakeSource(sizes=((18, 16), (16, 20), (17, 17)), salt=salt, **faults)  # type: ignore[arg-type]
    simple = partial(FakeSource, sizes=((20, 18), (19, 21)))
    return TrainingData(places, FakeSource(sizes=((12, 12),)), {"kind": "fake"}, simple)


def run(
    out: Path, settings: Settings, stop: int = 10**9, resume: bool = False, **faults: object
) -> list[str]:
    reporter = StopAfter(stop)
    with contextlib.suppress(Stopped):
        train(settings, data(**faults), out, device="cpu", resume=resume, reporter=reporter)  # type: ignore[arg-type]
    return reporter.lines


def same_state(a: Path, b: Path) -> bool:
    one, two = load_file(a / STATE), load_file(b / STATE)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


ONE_STAGE = {"light_steps": 0, "localise_steps": 0, "told_steps": 0, "simple_steps": 0, "early_steps": 0}
"""`whole` and a short `finish`."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    lines = run(out, small_settings(localise_rate=0.1))
    assert any(line.startswith("validation") for line in lines)
    return out


# 16 steps: 2 lights, 2 offset, 2 told, 2 simple, 2 early, 4 whole, 2 finish
@pytest.mark.parametrize(
    "stops", [*(pytest.param(one, marks=pytest.mark.slow) for one in ((1,), (7,))), (2, 5, 13)], ids=str
)
def test_stopped_and_resumed_equals_straight(straight: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    settings, out, made = small_settings(localise_rate=0.1), tmp_path / "run", 0
    for stop in stops:
        run(out, settings, stop - made, resume=made > 0)
        made = stop
    torch.manual_seed(99)  # the random state must come from the run
    lines = run(out, settings, resume=True)
    assert f"resumed after {made} steps" in lines
    assert same_state(straight, out)
    for name in (WEIGHTS, f"{BEST}/{WEIGHTS}", MANIFEST_NAME, f"{BEST}/{MANIFEST_NAME}"):
        assert (straight / name).read_bytes() == (out / name).read_bytes()
    assert load_checkpoint(out)[1] == load_checkpoint(straight)[1]
    assert (out / METRICS).read_text() == (straight / METRICS).read_text()


def test_simple_places_are_made_once_and_only_for_the_stages_that_ask_for_them(tmp_path: Path) -> None:
    made: list[weakref.ref[FakeSource]] = []
    alive: dict[str, bool] = {}

    def simple() -> FakeSource:
        source = FakeSource(sizes=((20, 18), (19, 21)))
        made.append(weakref.ref(source))
        return source

    class Watching(Reporter):
        def step(self, stage: str, *_: object) -> None:
            alive[stage] = bool(made) and made[0]() is not None

    train(small_settings(), replace(data(), simple=simple), tmp_path, device="cpu", reporter=Watching())
    assert len(made) == 1
    assert [name for name, there in alive.items() if there] == ["told", "simple"]
    assert alive.keys() == {"lights", "offset", "told", "simple", "early", "whole", "finish"}


def test_at_most_the_steps_since_the_last_checkpoint_are_made_again(tmp_path: Path) -> None:
    settings = small_settings(**ONE_STAGE, steps=9, checkpoint_every=4)
    run(tmp_path, settings, 7)
    lines = run(tmp_path, settings, resume=True)
    assert "resumed after 4 steps" in lines


def test_a_finished_run_resumes_to_nothing(straight: Path, tmp_path: Path) -> None:
    before = (straight / STATE).read_bytes()
    lines = run(straight, small_settings(localise_rate=0.1), resume=True)
    assert not any(line.startswith("validation") for line in lines)
    assert (straight / STATE).read_bytes() == before


def test_fine_tuning_keeps_the_trained_offset_and_starts_from_the_weights(
    straight: Path, tmp_path: Path
) -> None:
    """Also where the data do not know the offset: there a network from nothing would have to learn it along."""
    first, _ = load_checkpoint(straight)
    settings = small_settings(**ONE_STAGE, steps=2, learning_rate=1e-6, finish_rate=1e-6)
    places = TrainingData(FakeSource(offset="none"), FakeSource(offset="none", salt="v"), {})
    tuned = train(settings, places, tmp_path, device="cpu", start=first).state_dict()
    for name, value in first.state_dict().items():
        assert torch.allclose(tuned[name], value, rtol=0, atol=1e-3), name
        assert torch.equal(tuned[name], value) or not name.startswith("localise."), name
    assert any(not torch.equal(tuned[name], value) for name, value in first.state_dict().items())
    anew = train(settings, places, tmp_path / "anew", device="cpu").state_dict()
    assert any(not torch.allclose(anew[n], v, rtol=0, atol=1e-3) for n, v in first.state_dict().items())


def test_steps_may_grow(tmp_path: Path) -> None:
    few = small_settings(**ONE_STAGE, steps=4)
    more = small_settings(**ONE_STAGE, steps=6)
    run(tmp_path, few)
    run(tmp_path, more, resume=True)
    card = load_checkpoint(tmp_path)[1]
    assert card["step"] == 8, "6 of the whole network and a finish of 2, made anew"
    with pytest.raises(InputError, match="may grow with `resume=True`, not shrink: 6 → 4"):
        run(tmp_path, few, resume=True)


def test_other_settings_or_data_are_refused_by_name(straight: Path) -> None:
    before = (straight / STATE).read_bytes()
    with pytest.raises(InputError, match=r"training\.batch: 2 → 3; training\.seed: 0 → 4"):
        run(straight, small_settings(localise_rate=0.1, batch=3, seed=4), resume=True)
    with pytest.raises(InputError, match=r"train data: fingerprint .* → "):
        run(straight, small_settings(localise_rate=0.1), resume=True, salt="other")
    assert (straight / STATE).read_bytes() == before


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path, small_settings(), 2)
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a state that can be resumed"):
        run(tmp_path, small_settings(), resume=True)


@pytest.mark.parametrize("stop", [2, 10**9], ids=["without weights", "with weights"])
def test_a_state_of_a_version_with_other_stages_is_refused(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a remedy that is possible: nobody can give a setting that this version does not know, and weights are there
    from the first validation on."""
    settings = small_settings()
    older = settings.to_dict()
    older["training"] = {**older["training"], "calm_steps": 3}
    del older["training"]["simple_steps"]
    with monkeypatch.context() as before:
        before.setattr(Settings, "to_dict", lambda _: older)
        run(tmp_path, settings, stop)
    with pytest.raises(
        InputError, match=r"\(training\.calm_steps, training\.simple_steps\) and cannot.*`overwrite=True`"
    ) as told:
        run(tmp_path, settings, resume=True)
    named = f'`start="{tmp_path}"` and another `out`' in str(told.value)
    assert named == (stop > 2)
    with contextlib.nullcontext() if named else pytest.raises(InputError, match="unknown model"):
        load_checkpoint(tmp_path)


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    run(tmp_path, small_settings())
    run(tmp_path, small_settings(seed=1), 1)
    assert not (tmp_path / WEIGHTS).exists() and not (tmp_path / BEST).exists()
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1


def test_nothing_is_a_pickle_and_the_card_tells_settings_and_data(straight: Path) -> None:
    names = {p.name for p in straight.iterdir()}
    assert names == {
        "model.safetensors", "manifest.json", "best", "state.safetensors", "metrics.csv", "tensorboard",
    }  # fmt: skip
    card = load_checkpoint(straight)[1]
    assert (
        card["data"]["kind"] == "fake"
        and card["data"]["fingerprint"]["train"] == data().fingerprints()["train"]
    )
    assert card["settings"]["training"]["batch"] == 2 and card["step"] == 12
    best, best_card = load_checkpoint(straight / BEST)
    scores = [h["psnr_log1p"] for h in card["history"] if not h["known_offset"]]
    assert best_card["history"][-1]["psnr_log1p"] == max(scores)
    assert best.config.main == (4, 4, 4, 4)


def test_a_run_of_an_older_version_is_written_anew_by_resume(straight: Path, tmp_path: Path) -> None:
    """Such a run has the state, and another file in the place of the manifest."""
    old = tmp_path / "old"
    shutil.copytree(straight, old)
    (old / MANIFEST_NAME).rename(old / "checkpoint.json")
    with pytest.raises(InputError, match="older version"):
        load_checkpoint(old)
    run(old, small_settings(localise_rate=0.1), resume=True)
    assert load_checkpoint(old)[1]["step"] == 12
    assert (old / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()


def test_csv_has_every_step_and_tensorboard_the_same(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (straight / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    losses = {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "loss"}
    assert sorted(losses) == list(range(1, 17))
    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    whole = {e.step: e.value for e in events.Scalars("whole/loss")}
    assert whole == pytest.approx({s: losses[s] for s in range(11, 15)}, rel=1e-6)


def test_a_stage_without_progress_ends_early(tmp_path: Path) -> None:
    settings = small_settings(
        **ONE_STAGE,
        steps=40,
        learning_rate=1e-30,  # what is zero moves, too, and a smaller step might improve with every validation
        patience=2,
        validate_every=2,
    )
    lines = run(tmp_path, settings)
    assert any("stage whole ends early" in line for line in lines)
    done = load_checkpoint(tmp_path)[1]["step"]
    assert done < 20


def test_a_loss_that_is_not_finite_names_the_window(tmp_path: Path) -> None:
    poisoned = FakeSource(poisoned=frozenset({2}))
    settings = small_settings(**ONE_STAGE, batch=6)
    with pytest.raises(
        DeepLightError, match=r"loss became nan .* at step \d of stage whole, on place 2 \[row"
    ) as e:
        train(settings, TrainingData(poisoned, FakeSource(), {}), tmp_path, device="cpu")
    assert "place 1" not in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / WEIGHTS).exists()


def test_unreadable_clips_are_named_once_up_to_the_limit(tmp_path: Path) -> None:
    lines = run(tmp_path, small_settings(), broken=frozenset({1}))
    assert lines.count("warning: skipped place 1: clip 1 is damaged") == 1
    strict = replace(small_settings(), data=replace(small_settings().data, unreadable=0))
    with pytest.raises(
        InputError, match=r"1 clips cannot be read, more than data\.unreadable = 0 \(place 1\)"
    ):
        run(tmp_path, strict, broken=frozenset({1}))


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    assert (
        run(tmp_path / "run", small_settings(), 1, resume=True)[0]
        == f"nothing to resume in {tmp_path / 'run'}: starting"
    )
    assert not any(
        line.startswith("nothing to resume") for line in run(tmp_path / "other", small_settings(), 1)
    )


@pytest.mark.parametrize("resume", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_that_a_training_writes_is_refused_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """In one sentence and before any work, also where the folder holds nothing yet; the first is not disturbed."""
    out, settings, told = tmp_path / "run", small_settings(localise_rate=0.1), list[str]()
    words = "another training is writing .*run: wait for it or stop it"

    class Second(StopAfter):
        def advance(self) -> None:
            if not told:
                with pytest.raises(InputError, match=words) as error:
                    train(settings, data(), out, device="cpu", resume=resume)
                told.append(str(error.value))
                with pytest.raises(InputError, match=words):
                    check_unused(out, overwrite=not resume, resume=resume)
                with monkeypatch.context() as patch:
                    patch.setenv("RANK", "1")  # one of the processes that train together
                    check_unused(out, overwrite=True)

    train(settings, data(), out, device="cpu", reporter=Second())
    assert len(told) == 1 and load_checkpoint(out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        (BEST, MANIFEST_NAME, METRICS, STATE, WEIGHTS, EVENTS)
    )


def test_what_killed_writers_and_older_versions_left_goes(tmp_path: Path) -> None:
    """Half-written files with every run, also a resumed one; files of version 0.2 where a run starts anew."""
    out, settings = tmp_path / "run", small_settings(localise_rate=0.1)
    (out / BEST).mkdir(parents=True)
    older = {"checkpoint.json", "best.safetensors", "best.json"}
    halves = {f".{name}.77-88.tmp" for name in (WEIGHTS, MANIFEST_NAME, f"{MANIFEST_NAME}.next", STATE)}
    mine = {"notes.tmp", ".notes.77-88.tmp"}

    def left() -> set[str]:
        return {p.name for folder in (out, out / BEST) for p in folder.iterdir()}

    for resume in (False, True):
        for name in older | halves | mine:
            (out / name).touch()
        (out / BEST / f".{WEIGHTS}.77-88.tmp").touch()
        run(out, settings, resume=resume)
        assert not left() & halves and left() >= mine
        assert not left() & older or resume
