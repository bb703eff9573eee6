"""How bench/gpu.sh divides its time among stages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.gpu import __main__ as program


def test_seconds_are_divided_as_those_of_all_stages_are(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--here", str(time.time())]
    given = program.parse([*options, "--seconds", "900"])
    limits = [program.settings_of(given, stage).seconds for stage in program.SECONDS]
    assert limits == [3 * seconds for seconds in program.SECONDS.values()]
    given = program.parse([*options, "--seconds", "500", "--only", "engine", "--max-autotune"])
    assert program.settings_of(given, "engine").seconds == 500


def test_what_a_stage_leaves_over_goes_to_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(program, "run_stage", lambda _, seconds: given.append(seconds) or "")
    options = [
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--only",
        "facts,network,engine",
        "--seconds",
        "400",
    ]
    assert program.main(options) == 0
    first, second, last = given
    assert first == pytest.approx(400 * 12 / (12 + 73 + 115), abs=1)
    assert second == pytest.approx(400 * 73 / (73 + 115), abs=1) and last == pytest.approx(400, abs=1)


def test_a_stage_counts_from_the_start_of_its_process(tmp_path: Path) -> None:
    limit = program.SECONDS["network"]
    options = ["--out", str(tmp_path), "--device", "cpu", "--here", str(time.time() - limit + 5)]
    settings = program.settings_of(program.parse(options), "network")
    assert settings.seconds == limit and settings.late
    assert 1 <= settings.left < 4
