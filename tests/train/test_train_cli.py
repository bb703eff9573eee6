"""deeplight-train and deeplight-export refuse, in one sentence and before any work, what cannot end well; a run that
is interrupted says how to go on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError, Interrupted
from deeplight.engine.core.extras import install_command
from deeplight.train import cli
from tests.conftest import ROOT
from tests.in_process import run_here

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from deeplight.{program}.cli import main
main()
"""
"""Runs a command line where some modules cannot be found."""


def run(
    program: str, *arguments: object, blocked: tuple[str, ...] = ("torch",)
) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(blocked=blocked, program=program)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("program", "blocked", "title"),
    [
        ("train", "torch", "PyTorch"),
        ("train", "safetensors", "safetensors"),
        ("train", "lightning", "Lightning"),
        ("train", "tensorboard", "TensorBoard"),
        ("export", "torch", "PyTorch"),
        ("export", "onnx", "onnx"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    program: str, blocked: str, title: str, tmp_path: Path
) -> None:
    arguments = ("--out", tmp_path / "out", *([tmp_path] if program == "export" else []))
    done = run(program, *arguments, blocked=(blocked,))
    refused(done, f"deeplight-{program} needs {title}: {install_command('train')}")
    assert list(tmp_path.iterdir()) == []


def test_out_is_checked_before_any_work(tmp_path: Path) -> None:
    """Without torch: these refusals come even before it is loaded."""
    (tmp_path / "file").write_text("")
    refused(run("train", "--out", tmp_path / "file"), "is not a folder")
    refused(run("train", "--out", tmp_path / ("x" * 300)), "too long")
    refused(run("train", "--out", ""), "empty")
    for seed in (-1, 2**63):
        refused(run("train", "--out", tmp_path / "run", "--seed", seed), "training.seed must be")
    held = tmp_path / "held"
    held.mkdir()
    (held / "model.safetensors").write_bytes(b"precious")
    refused(run("train", "--out", held), "already holds model.safetensors; give --overwrite")
    refused(run("train", "--out", held, "--resume"), "holds model.safetensors but no state.safetensors")
    refused(run("train", "--out", held, "--resume", "--overwrite"), "give one of them")
    refused(run("train", "--out", held, "--overwrite"), "needs PyTorch")
    assert (held / "model.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "huge"), "model.preset is 'huge': choose one of tiny, base"),
        (("--steps", "0"), "training.steps must be 1 or more"),
        (("--set", "training.btach=3"), "unknown setting training.btach: did you mean batch?"),
        (("--config", "no.toml"), "--config no.toml cannot be read"),
        (("--precision", "fp8"), "must be one of 32-true, bf16-mixed, 16-mixed"),
        (("--data", "nowhere"), "the data nowhere is not a folder"),
        (("--data", ","), "no data are given"),
    ],
)
def test_settings_are_checked_before_any_work(arguments: tuple[str, str], words: str, tmp_path: Path) -> None:
    refused(run("train", "--out", tmp_path / "run", *arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_help_fits_a_screen_and_needs_no_torch() -> None:
    done = run("train", "--help", blocked=("torch", "lightning", "numpy", "rasterio"))
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 40
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("held", "options", "words"),
    [
        ((), (), "there is no checkpoint yet, run the same command to start again"),
        (
            ("model.safetensors",),
            (),
            "no checkpoint yet, run the same command with --overwrite to start again",
        ),
        (("state.safetensors",), (), "run the same command with --resume to go on"),
        (("state.safetensors",), ("--overwrite",), "with --resume in place of --overwrite to go on"),
    ],
)
def test_an_interruption_only_promises_what_is_there(
    held: tuple[str, ...],
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "new" / "run"

    def stop(*_: object) -> None:
        assert out.is_dir(), "that it can be written is known before the data are read"
        for name in held:
            (out / name).write_bytes(b"")
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(cli, "_data", stop)
    with pytest.raises(Interrupted) as stopped:
        cli.command.main(["--out", str(out), *options], standalone_mode=False)
    assert stopped.value.exit_code == 143
    assert str(stopped.value).startswith("interrupted by SIGTERM: ") and words in str(stopped.value)
    assert out.exists() == (tmp_path / "new").exists() == bool(held), "nothing empty is left"


def test_data_that_cannot_be_used_leave_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = CliRunner().invoke(cli.command, ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, InputError) and "has no index.csv and no ntl.tif" in str(done.exception)
    assert not (tmp_path / "run").exists()


LONG = """
import deeplight.train.cli as cli
from deeplight.train.fit.loop import TrainingData
from tests.train.fit.fake_source import FakeSource
cli._data = lambda *_: TrainingData(FakeSource(((20, 20),)), FakeSource(((12, 12),)), {})
cli.main()
"""
"""A run on fake data that lasts until it is stopped."""


def stopped(out: Path, signum: int, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines of a long run that gets the signal after some steps."""
    small = ("model.main=[4,4,4,4]", "model.aux=[4,4,4]", "training.crop=16", "training.margin=2")
    stages = [
        f"training.{name}_steps=0" for name in ("told", "light", "localise", "simple", "early", "finish")
    ]
    sets = [f"--set={x}" for x in (*small, *stages, "training.log_every=1", "training.checkpoint_every=3")]
    command = [sys.executable, "-c", LONG, "--out", str(out), "--steps", "1000000", *sets, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if line.startswith("whole step") and sum(x.startswith("whole step") for x in lines) == 8:
                process.send_signal(signum)
    return process.returncode, lines


@pytest.mark.slow
def test_an_interrupted_run_names_resume_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    status, lines = stopped(tmp_path / "run", signal.SIGTERM, "--workers", "1")
    assert status == 143
    assert lines[-1].startswith("error: interrupted by SIGTERM: run the same command with --resume")
    made = int(lines[-2].split()[2].partition("/")[0])
    status, lines = stopped(tmp_path / "run", signal.SIGINT, "--resume")
    assert status == 130 and lines[-1].startswith("error: interrupted by SIGINT: run the same command")
    (resumed,) = [int(x.split()[2]) for x in lines if x.startswith("resumed after")]
    assert resumed % 3 == 0 and made + 1 - 3 <= resumed <= made + 1


def test_a_folder_that_cannot_be_made_is_refused_before_the_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    done = run_here("deeplight-train", "--out", tmp_path / "file" / "run", cwd=tmp_path)
    refused(done, "cannot create the folder")
    assert "making" not in done.stderr, "no region may be made for a run that cannot be written"
    assert (tmp_path / "file").read_text() == "kept"
