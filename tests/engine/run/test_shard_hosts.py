"""Shards in processes of their own, and on hosts that differ."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.parts import parts_folder
from deeplight.engine.run import preparation
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import AUTOMATIC, TileRequest
from tests.engine.processes import arguments, slow
from tests.engine.run.wholes import PACKS, Whole


def test_a_host_with_less_memory_takes_the_plan_of_the_first(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin at once: neither sees the other's record when it plans."""
    automatic = dataclasses.replace(whole, request=dataclasses.replace(whole.request, tiles=AUTOMATIC))
    planned = []
    original = preparation.plan_tiles

    def plan(request: TileRequest, *rest: object, **more: object) -> object:
        found = original(request, *rest, **more)  # type: ignore[arg-type]
        planned.append(found.core)
        if len(planned) == 1:
            with monkeypatch.context() as m:
                m.setattr(preparation, "plan_tiles", original)
                infer(automatic.shard(0, 2))
            return dataclasses.replace(found, core=64)
        return found

    monkeypatch.setattr(preparation, "plan_tiles", plan)
    infer(automatic.shard(1, 2))
    assert len(planned) == 2
    whole.request.out.unlink(missing_ok=True)
    automatic.check_finished(kept=PACKS)


def test_a_copy_of_the_inputs_on_another_host_is_the_same_and_a_changed_one_is_not(
    whole: Whole, tmp_path: Path
) -> None:
    infer(whole.shard(0, 2))
    original = Path(whole.request.scene.ntl)
    (tmp_path / "local").mkdir()
    shutil.copyfile(original, copied := tmp_path / "local" / "ntl.tif")
    os.utime(copied, ns=(0, 10**18))
    scene = dataclasses.replace(whole.request.scene, ntl=str(copied))
    infer(whole.shard(1, 2, scene=scene))
    data = bytearray(copied.read_bytes())
    for place in range(len(data) // 3, len(data), 997):  # each is seen, between samples too
        data[place] ^= 1
        copied.write_bytes(data)
        data[place] ^= 1
        with pytest.raises(
            InputError, match=r"cannot be (resumed|shared): the file of `ntl` was .* and is now"
        ):
            infer(whole.shard(1, 2, scene=scene))
    whole.check_finished(kept=PACKS)


def test_a_large_input_is_compared_by_its_time(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight.engine.run.inputs.MOST_READ", 100)
    shutil.copy2(whole.request.scene.ntl, copied := tmp_path / "ntl.tif")
    scene = dataclasses.replace(whole.request.scene, ntl=str(copied))
    infer(whole.shard(0, 2))
    infer(whole.shard(1, 2, scene=scene))
    os.utime(copied, ns=(0, 10**18))
    with pytest.raises(InputError, match=r"the file of `ntl` was .*modified .* and is now"):
        infer(whole.shard(1, 2, scene=scene))


def test_another_processor_or_version_is_refused_by_name(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer(whole.shard(0, 2))
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.run.provenance.processor", lambda: "x86_64 Other avx")
        with pytest.raises(
            InputError, match=r"cannot be (resumed|shared): the processor was .* and is now x86_64 Other avx"
        ):
            infer(whole.shard(1, 2))
    with monkeypatch.context() as m:
        m.setattr("deeplight.engine.run.provenance.deeplight_version", lambda: "9")
        with pytest.raises(InputError, match=r"the version of deeplight was .* and is now 9"):
            infer(whole.shard(1, 2))


@pytest.mark.slow
def test_processes_killed_and_started_again(whole: Whole, tmp_path: Path) -> None:
    """Three shards at once, one killed twice; then the last run."""
    plain = dataclasses.replace(whole.request, out=tmp_path / "plain.tif")
    main = [sys.executable, "-m", "deeplight.engine.cli"]
    subprocess.run([*main, *arguments(plain)], check=True, capture_output=True)

    def start(index: int) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", slow(0.3), *arguments(whole.request, "--shard", f"{index}/3")]
        return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)

    folder = parts_folder(whole.request.out)
    others = [start(0), start(2)]
    for kill in range(2):
        victim = start(1)
        while victim.poll() is None and len(list(folder.rglob("*.pack"))) < 1 + kill:
            time.sleep(0.01)
        victim.kill()
        victim.communicate()
    refused = subprocess.run(
        [*main, *arguments(whole.request, "--resume")], capture_output=True, text=True, timeout=100
    )
    running = any(p.poll() is None for p in others)
    assert not running or (refused.returncode == 2 and "are still at work" in refused.stderr), refused.stderr
    for process in (*others, start(1)):
        text = process.communicate(timeout=100)[1]
        assert process.returncode == 0 or "there is nothing to do" in text or "complete" in text, text
    subprocess.run(
        [*main, *arguments(whole.request, "--resume")], check=True, capture_output=True, timeout=100
    )
    assert whole.request.out.read_bytes() == plain.out.read_bytes()
    assert not folder.exists()
