"""bench/gate.py: ratios, not times; a slow stage fails by name, a busy moment does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gate, gate_stages
from bench.gate import EXPECTED, LIMIT, Measured, Pair, judged, measured, slower


class Turns:
    """A clock that work moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def work(self, name: str, seconds: float) -> Any:
        def run() -> None:
            self.order.append(name)
            self.now += seconds

        return run

    def __call__(self) -> float:
        return self.now


def test_ratios_are_medians_of_interleaved_rounds() -> None:
    clock = Turns()
    pairs = [
        Pair("a", clock.work("a", 3.0), clock.work("ra", 1.5)),
        Pair("b", clock.work("b", 1.0), clock.work("rb", 4.0)),
    ]
    found = measured(pairs, rounds=3, clock=clock)
    assert found.ratios == {"a": 2.0, "b": 0.25} and len(found.control) == 3
    assert clock.order == ["a", "ra", "b", "rb"] * 4


def test_a_slower_stage_fails_by_name_after_three_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[list[str] | None] = []

    def measure(names: list[str] | None) -> Measured:
        asked.append(names)
        return Measured({"decode": 1.0, "align": 1.6}, [1.0] * 4)

    assert not judged(measure, {"decode": 1.0, "align": 1.0})
    assert asked == [None, ["align"], ["align"]]
    out = capsys.readouterr().out
    assert (
        "SLOWER align" in out and "regression: align beyond 1.5" in out and "control: median 1000.0 ms" in out
    )
    assert "SLOWER decode" not in out


def test_a_busy_moment_is_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Measured({"decode": 3.0}, [1.0, 1.0, 2.0, 2.0]), Measured({"decode": 1.1}, [1.0] * 4)]
    assert judged(lambda _: found.pop(0), {"decode": 1.0}) and not found
    out = capsys.readouterr().out
    assert "drift 2.00" in out and "measured again (decode)" in out


def test_stages_and_expectations_must_be_the_same() -> None:
    assert slower({"new": 0.1}, {}) == ["new"]
    assert not judged(lambda _: Measured({"a": 1.0}, [1.0] * 4), {"a": 1.0, "gone": 1.0}, say=lambda _: None)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return gate_stages.pairs(tmp_path_factory.mktemp("gate"))


def test_every_stage_has_an_expectation(pairs: list[Pair]) -> None:
    expected = json.loads(EXPECTED.read_text())
    assert list(expected) == [pair.stage for pair in pairs]
    assert all(0.01 < ratio < 100 for ratio in expected.values())


def test_a_stage_made_slower_is_found(pairs: list[Pair]) -> None:
    """For real: decoding done twice, judged by what decoding once takes now."""
    once = [pair for pair in pairs if pair.stage == "decode"]
    twice = [Pair("decode", lambda: (once[0].work(), once[0].work()), once[0].reference)]
    expected = measured(once, rounds=5).ratios
    assert judged(lambda _: measured(once, rounds=5), expected, say=lambda _: None)
    said: list[str] = []
    assert not judged(lambda _: measured(twice, rounds=5), expected, say=said.append)
    assert any(line.startswith("regression: decode") for line in said)


def test_the_command_says_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Turns()
    now = [Pair("decode", clock.work("d", 2.0), clock.work("r", 1.0))]
    monkeypatch.setattr(gate, "stage_pairs", lambda folder: now)
    monkeypatch.setattr(gate, "measured", lambda pairs, rounds: measured(pairs, rounds, clock))
    monkeypatch.setattr(gate, "EXPECTED", tmp_path / "gate.json")
    assert gate.main(["--write"]) == 0
    assert json.loads((tmp_path / "gate.json").read_text()) == {"decode": 2.0}
    assert gate.main([]) == 0
    (tmp_path / "gate.json").write_text(json.dumps({"decode": 2.0 / LIMIT - 0.1}))
    assert gate.main([]) == 1
