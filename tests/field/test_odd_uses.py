"""Wrong and odd uses of every command: one sentence, exit status 2 and nothing left behind, or a right result.

odd_uses.txt has one use a line, and after " => " what its sentence must hold: the option, or what to do.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.field.odd_folder import write_odd_folder

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
MAINS = {
    "infer": ("deeplight.engine.cli", "main"),
    "data": ("deeplight.train.data_cli", "main"),
    "train": ("deeplight.train.cli", "main"),
    "score": ("deeplight.train.cli", "score_main"),
    "eval": ("deeplight.train.eval_cli", "main"),
    "export": ("deeplight.export.cli", "main"),
}
USES = [
    tuple(line.split(" => ")) for line in (Path(__file__).parent / "odd_uses.txt").read_text().splitlines()
]
PLAIN = "infer --ntl n.tif --out o.tif"
SAME = [
    "infer --ntl '[n].tif' --out o.tif",
    "infer --ntl './folder/../n.tif' --out ./o.tif",
    "infer --ntl '[n].tif' --out o.tif",
    "infer --ntl n.tif --out o.tif --overwrite",
    "infer --ntl n.tif --out o.tif --resume",
    "infer --ntl n.tif --out o.tif --ntl-scale 1,0",
    "infer --ntl n.tif --out o.tif --ntl-nodata inf",
    "infer --ntl n.tif --out o.tif --ntl-unit ''",
    "infer --ntl n.tif --out o.tif --ntl-unit ' nW cm^{−2} sr^{−1} '",
    "infer --ntl n.tif --out o.tif --bands isp,isp",
    "infer --ntl n.tif --out 'o of (mine).TIFF'",
    "infer --ntl n.tif --out o.tif --ntl-crs OGC:CRS84",
    "infer --ntl n.tif --out o.tif --streams 64 --threads 1024",
    "infer --ntl nocrs.tif --ntl-crs '+proj=longlat +datum=WGS84' --out o.tif",
    "infer --tiles --ntl n.tif --out o.tif",
]
"""Odd, but each gives the lights of PLAIN."""

Listing = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("odd")
    write_odd_folder(place)
    return place


def listing(folder: Path) -> Listing:
    found = ((str(p.relative_to(folder)), p.stat()) for p in folder.rglob("*"))
    return sorted((name, s.st_size, s.st_mtime_ns) for name, s in found)


def call(use: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """(exit status, stderr) of a use in this process; deeplight-infer runs the analytic model where none is named."""
    program, *arguments = shlex.split(use)
    if program == "infer" and "--model" not in arguments:
        arguments += ["--model", "model"]
    monkeypatch.setattr(sys, "argv", [f"deeplight-{program}", *arguments])
    module, main = MAINS[program]
    with pytest.raises(SystemExit) as exit_:
        getattr(import_module(module), main)()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capfd.readouterr().err


@pytest.mark.parametrize(("use", "says"), USES, ids=[use for use, _ in USES])
def test_a_wrong_use_is_one_sentence(
    use: str,
    says: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "cuda" in use:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has such a device")
    monkeypatch.chdir(folder)
    before = listing(folder)
    status, said = call(use, capfd, monkeypatch)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and said.splitlines()[-1] == errors[0], said
    assert says in errors[0]
    assert not any(word in said for word in ("Traceback", "Warning", "ERROR", "defect")), said
    assert listing(folder) == before, "something is left behind"


def test_there_are_many_and_all_commands_are_among_them() -> None:
    assert len({use for use, _ in USES}) == len(USES) >= 200
    assert {use.split()[0] for use, _ in USES} == set(MAINS)


@pytest.mark.parametrize("use", SAME)
def test_an_odd_use_gives_the_right_lights(
    use: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name in ("n.tif", "m.tif", "nocrs.tif", "model", "folder"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy2
        copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    results = []
    for each in (PLAIN.replace("o.tif", "plain.tif"), use):
        before = {name for name, *_ in listing(tmp_path)}
        status, said = call(each, capfd, monkeypatch)
        assert status == 0 and "Traceback" not in said, said
        (made,) = {name for name, *_ in listing(tmp_path)} - before
        with rasterio.open(made) as d:
            results.append(d.read(1))
    np.testing.assert_array_equal(*results)


def test_a_group_without_a_command_shows_its_help(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = call("data", capfd, monkeypatch)
    assert (status, said) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 1, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_is_stopped_while_regions_are_made_says_one_sentence(
    tmp_path: Path, number: signal.Signals, seconds: int
) -> None:
    """The key, and a scheduler's signal, reach the whole group of processes: while they start and when they work."""
    command = [sys.executable, "-m", "deeplight.train.cli", "--out", "r", "--threads", "2"]
    started = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stderr is not None
    first = started.stderr.readline()
    assert "making 320 regions" in first
    time.sleep(seconds)
    os.killpg(started.pid, number)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 128 + number and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith(
        f"error: interrupted by {number.name}: there is no checkpoint yet"
    )
    assert list(tmp_path.iterdir()) == []
