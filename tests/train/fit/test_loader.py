"""Windows, their split over processes, the independence of workers, and clips that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.train.fit.batch import Batch, FixedBatches
from deeplight.train.fit.loader import Loaded, WindowDataset, probe, stage_batches
from deeplight.train.fit.parts import window_parts
from deeplight.train.fit.sampler import StepSampler, Windows
from deeplight.train.fit.settings import Settings, load_settings
from deeplight.train.fit.stages import DataFacts, TrainingStage, plan
from tests.train.fit.fake_source import FakeSource, small_settings


def stage(steps: int = 3, batch: int = 4, **changes: object) -> TrainingStage:
    stages, _ = plan(small_settings(batch=batch, steps=steps), probe(FakeSource()))
    return replace(next(s for s in stages if s.name == "whole"), **changes)  # type: ignore[arg-type]


def tensors(batch: Batch) -> list[torch.Tensor]:
    rest = [batch.ntl_hr, batch.isp, batch.weight, batch.offset, batch.ntl_hr_valid, batch.isp_valid]
    return [*batch.inputs, *(t for t in rest if t is not None)]


def same(a: Loaded, b: Loaded) -> bool:
    pairs = zip(tensors(a.batch), tensors(b.batch), strict=True)
    return a.where == b.where and all(torch.equal(x, y) for x, y in pairs)


def test_workers_do_not_change_the_data() -> None:
    source = FakeSource(broken=frozenset({1}))
    one = list(stage_batches(source, stage(), (), 7, 0))
    two = list(stage_batches(source, stage(), (), 7, 0, workers=2))
    assert len(one) == 3 and all(same(a, b) for a, b in zip(one, two, strict=True))
    assert [a.unreadable for a in one] == [b.unreadable for b in two]
    other = list(stage_batches(source, stage(), (), 8, 0))
    assert not same(one[0], other[0])


def test_a_sampler_taken_up_later_goes_on_as_if_it_had_not_stopped() -> None:
    whole = list(stage_batches(FakeSource(), stage(5), (), 7, 0))
    rest = list(stage_batches(FakeSource(), stage(5), (), 7, 3))
    assert len(rest) == 2 and all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.parametrize("batch", [4, 5])
def test_processes_share_the_windows_of_one(batch: int) -> None:
    windows = Windows(FakeSource(), 16)
    alone = list(StepSampler(windows, batch, (1, 2), range(3)))
    shares = [list(StepSampler(windows, batch, (1, 2), range(3), rank, 2)) for rank in range(2)]
    for step in range(3):
        a, b = shares[0][step], shares[1][step]
        assert not set(a) & set(b) and {*a, *b} == set(alone[step])
        assert len(set(alone[step])) == batch


def test_windows_fill_places_in_proportion_to_their_area() -> None:
    source = FakeSource(sizes=((20, 20), (20, 60), (7, 9)))
    windows = Windows(source, 16)
    draws = [windows.draw((0, k)) for k in range(2000)]
    share = np.bincount([d.place for d in draws], minlength=3) / 2000
    # binomial, standard deviation at most 0.011
    assert np.abs(share - np.array([400, 1200, 63]) / 1663).max() < 0.05
    for d in draws:
        h, w = source.size(d.place)
        assert d.window == d.window.clipped(h, w) and d.window.shape == (min(h, 16), min(w, 16))
    reached = {(d.window.row, d.window.col) for d in draws if d.place == 0}
    assert {(0, 0), (4, 4)} <= reached, "the last positions count too"


def test_a_place_smaller_than_the_crop_is_padded_with_nodata_and_has_no_margin() -> None:
    source = FakeSource(sizes=((7, 40),))
    window = Window(0, 3, 7, 16)
    parts = window_parts(source.read(0, window), (7, 40), 16, 3)
    assert parts["ntl"].shape == (1, 16, 16) and parts["dmo"].shape == (7, 128, 128)
    assert parts["ntl_valid"][:, 7:].sum() == 0 and parts["dmo_valid"][:, 56:].sum() == 0
    weight = parts["weight"][0]
    assert weight[:7, 3:13].min() == 1 and weight.sum() == 70


def test_unreadable_clips_are_replaced_and_named() -> None:
    source = FakeSource(broken=frozenset({0, 2}))
    loaded = list(stage_batches(source, stage(), (), 7, 0))
    assert {name for step in loaded for name in step.unreadable} == {"place 0", "place 2"}
    assert all("place 1" in where for step in loaded for where in step.where)
    attempts = [index for index, _ in source.reads if index != 1]
    assert sorted(attempts) == [0, 2], "a clip known to be broken is not read again"


def test_nothing_readable_is_an_error_that_names_a_clip() -> None:
    source = FakeSource(broken=frozenset({0, 1, 2}))
    dataset = WindowDataset(source, Windows(source, 16), stage().augment, 2)
    with pytest.raises(InputError, match=r"no clip can be read.*clip \d is damaged"):
        dataset[Windows(source, 16).draw((0,))]


@pytest.mark.parametrize(
    ("source", "names", "words"),
    [
        (FakeSource(), ["lights", "offset", "told", "simple", "early", "whole", "finish"], []),
        (
            FakeSource(isp=False),
            ["offset", "told", "simple", "early", "whole", "finish"],
            ["lights", "no impervious"],
        ),
        (
            FakeSource(offset="none"),
            ["simple", "early", "whole", "finish"],
            ["lights", "offset", "told", "misplaced"],
        ),
        (
            FakeSource(sizes=((9, 9), (9, 9)), offset="zero"),
            ["lights", "offset", "told", "simple", "early", "whole", "finish"],
            [],
        ),
    ],
)
def test_stages_that_the_data_do_not_allow_are_left_out_with_a_reason(
    source: FakeSource, names: list[str], words: list[str]
) -> None:
    stages, notes = plan(small_settings(), probe(source))
    assert [s.name for s in stages] == names
    text = " ".join(notes)
    assert all(word in text for word in words) and bool(notes) == bool(words)
    assert [s.name for s in stages if s.holds_sums] == ["finish"]
    frozen = [s.localise_rate == 0 for s in stages if s.name in ("early", "whole")]
    assert frozen == [source.offset != "none"] * 2, "untrained layers must not stay frozen"


def test_the_early_world_is_easier_and_the_later_one_is_as_it_is_set() -> None:
    settings = Settings()
    stages = {s.name: s for s in plan(settings, DataFacts(True, True, (0,)))[0]}
    assert list(stages) == ["lights", "offset", "told", "simple", "early", "whole", "finish"]
    for name in ("told", "simple", "early"):
        stage = stages[name]
        assert (stage.objective.linear, stage.variety.even) == (0.0, 0.0)
        assert stage.variety.foreign == pytest.approx(0.6 * settings.variety.foreign)
    later = {"whole": replace(settings.objective, pattern=0.0), "finish": settings.objective}
    for name, objective in later.items():
        assert (stages[name].objective, stages[name].variety) == (objective, settings.variety)
    assert [s.name for s in stages.values() if s.told] == ["told"]
    assert [s.name for s in stages.values() if s.simple] == ["told", "simple"]


def test_lights_are_learnt_where_nothing_is_misplaced() -> None:
    facts = probe(FakeSource(sizes=((9, 9),) * 7))
    assert facts.aligned == (0, 3, 6)


@pytest.mark.parametrize(("source", "known"), [("some", False), ("known", True), ("none", False)])
def test_an_offset_counts_as_known_where_every_place_knows_it(source: str, known: bool) -> None:
    facts = probe(FakeSource(sizes=((9, 9),) * 4, offset=source))
    assert facts.offset is known and facts.isp
    assert facts.aligned == (() if source == "none" else (0,) if source == "some" else (0, 3))
    assert probe(FakeSource(broken=frozenset({0, 1, 2}))).offset is False


def test_batches_carry_no_offset_where_it_is_not_known() -> None:
    loaded = next(stage_batches(FakeSource(offset="none", valid=0.5), stage(), (), 7, 0))
    assert loaded.batch.offset is None and loaded.batch.ntl_hr_valid is not None
    full = next(stage_batches(FakeSource(), stage(), (), 7, 0)).batch
    assert full.ntl_hr_valid is None and full.offset is not None


@pytest.mark.parametrize("halo", [3, 18, 32])
def test_validation_scores_the_middle_within_the_rim_that_it_needs(halo: int) -> None:
    source = FakeSource(sizes=((100, 120), (100, 120), (100, 120)))
    (batch,) = list(FixedBatches(source, 4, halo))
    crop, checked = batch.weight.shape[-1], min(40, 96 - 2 * halo)
    assert crop == checked + 2 * halo <= 96
    assert batch.weight.sum() == 3 * checked**2 and batch.weight[..., halo:-halo, halo:-halo].min() == 1


def test_validation_passes_over_what_it_cannot_read_and_stays_small() -> None:
    checks = FixedBatches(FakeSource(sizes=((9, 9),) * 10, broken=frozenset({4})), 2, 3, limit=5)
    assert [b.weight.shape[0] for b in checks] == [2, 2]
    assert checks.unreadable == {"place 4": "clip 4 is damaged"}


def test_a_worker_says_nothing_when_the_main_process_goes_amid_a_hand_over() -> None:
    """Python's thread that serves file descriptors prints a traceback of any connection that ends early."""
    code = """
import socket, sys, time
from multiprocessing import AuthenticationError, resource_sharer
if sys.argv[1] == "quiet":
    from deeplight.train.fit.loader import _quiet_worker
    _quiet_worker(0)
address, _ = resource_sharer.DupFd(0)._id
with socket.socket(socket.AF_UNIX) as early:
    early.connect(address)
resource_sharer.stop(timeout=10)
"""
    said = {
        how: subprocess.run(
            [sys.executable, "-c", code, how], check=True, capture_output=True, text=True
        ).stderr
        for how in ("quiet", "plain")
    }
    assert said["quiet"] == "" and "Traceback" in said["plain"]


@pytest.mark.parametrize(
    ("steps", "warm_up", "average"), [(1500, 100, 0.995), (53, 5, 1 - 5 / 53), (2, 0, 0.0)]
)
def test_a_short_last_stage_still_moves_the_averaged_weights(
    steps: int, warm_up: int, average: float
) -> None:
    settings = load_settings(sets=[f"training.finish_steps={steps}", "objective.totals=0.3"])
    last = plan(settings, probe(FakeSource()))[0][-1]
    assert (last.name, last.warm_up, last.average) == ("finish", warm_up, pytest.approx(average))
    assert last.objective == settings.objective, "what is asked for holds in every stage"
