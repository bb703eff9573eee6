"""python -m bench.gate tells whether a stage has become slower. It is for CI and takes under a minute on one core.

Each stage is compared with a plain piece of work of the same kind in the same process (another implementation, a direct
call of the same library, or a matrix product of as many FLOPs). Only this ratio is judged, never a time. Stage and
reference take turns, and both are timed in CPU seconds of one thread, so that other work on the machine hardly matters.
The expected ratios are in gate.json; `--write` replaces them by the present ones. If a ratio is more than 1.5 times the
expected one in three measurements, the stage is named and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).with_name("gate.json")
LIMIT = 1.5
ROUNDS = 5
RETRIES = 2
Work = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Pair:
    """A stage and the work with which it is compared. They are called in turn."""

    stage: str
    work: Work
    reference: Work


@dataclass(frozen=True)
class Measured:
    """ratio: median over the rounds of stage over reference. control: seconds of the fixed work in each round."""

    ratios: Mapping[str, float]
    control: list[float]

    @property
    def drift(self) -> float:
        """The control's median in the slower half of the rounds, divided by that in the faster half."""
        half = len(self.control) // 2
        if not half:
            return 1.0
        halves = [statistics.median(part) for part in (self.control[:half], self.control[half:])]
        return max(halves) / min(halves)


Measure = Callable[[list[str] | None], Measured]


def measured(pairs: list[Pair], rounds: int = ROUNDS, clock: Clock = time.thread_time) -> Measured:
    """Measure the ratios of all pairs, round by round."""
    block = bytes(1 << 24)
    taken: dict[str, list[float]] = {pair.stage: [] for pair in pairs}
    control = []
    for number in range(rounds + 1):
        for pair in pairs:
            stage, reference = (_seconds(work, clock) for work in (pair.work, pair.reference))
            if number:  # the first round only warms up
                taken[pair.stage].append(stage / reference)
        if number:
            control.append(_seconds(lambda: zlib.crc32(block), clock))
    return Measured({name: statistics.median(each) for name, each in taken.items()}, control)


def _seconds(work: Work, clock: Clock) -> float:
    start = clock()
    work()
    return max(clock() - start, 1e-9)


def slower(ratios: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    """Return the stages beyond the limit, and those without an expected ratio."""
    return [name for name, ratio in ratios.items() if ratio > LIMIT * expected.get(name, 0.0)]


def judged(measure: Measure, expected: Mapping[str, float], say: Callable[[str], None] = print) -> bool:
    """Return whether no stage is slower than expected.

    A stage beyond the limit is measured again, at most RETRIES times, and the best result counts, since other work on a
    machine ends and a regression does not. measure: gives the ratios of the named stages, or of all stages for None.
    """
    found = measure(None)
    ratios = dict(found.ratios)
    say(f"control: {_span(found)}")
    for _ in range(RETRIES):
        suspects = slower(ratios, expected)
        if not suspects:
            break
        found = measure(suspects)
        say(f"measured again ({', '.join(suspects)}); control: {_span(found)}")
        ratios |= {name: min(ratios[name], found.ratios[name]) for name in suspects}
    bad = slower(ratios, expected)
    for name, ratio in ratios.items():
        wanted = expected.get(name)
        over = (
            f"{ratio / wanted:.2f} of the expected {wanted:.3f}" if wanted else "no expectation in gate.json"
        )
        say(f"{'SLOWER' if name in bad else 'ok':6} {name:12} {ratio:8.3f}  {over}")
    for name in sorted(set(expected) - set(ratios)):
        bad.append(name)
        say(f"SLOWER {name}: expected, but not measured")
    if bad:
        say(f"regression: {', '.join(bad)} beyond {LIMIT} times the expected ratio; if that is meant, "
            "python -m bench.gate --write")  # fmt: skip
    return not bad


def _span(found: Measured) -> str:
    times = [1e3 * s for s in found.control]
    return f"median {statistics.median(times):.1f} ms, {min(times):.1f} to {max(times):.1f}, drift {found.drift:.2f}"


def stage_pairs(folder: Path) -> list[Pair]:
    """The small set."""
    from bench import gate_stages

    return gate_stages.pairs(folder)


def main(argv: list[str] | None = None) -> int:
    """The entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("--write", action="store_true", help="expect the present ratios from now on")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        pairs = stage_pairs(Path(scratch))

        def measure(names: list[str] | None) -> Measured:
            return measured([p for p in pairs if names is None or p.stage in names], given.rounds)

        if not given.write:
            return 0 if judged(measure, json.loads(EXPECTED.read_text())) else 1
        found = measured(pairs, 2 * given.rounds)
        rounded = {name: round(ratio, 4) for name, ratio in found.ratios.items()}
        EXPECTED.write_text(json.dumps(rounded, indent=1) + "\n")
        print(f"{EXPECTED}: {rounded}; control: {_span(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
