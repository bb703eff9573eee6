"""deeplight-train and deeplight-export refuse, in one sentence and before any work, what cannot end well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
        ("export", "torch", "PyTorch"),
        ("export", "onnx", "onnx"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    program: str, blocked: str, title: str, tmp_path: Path
) -> None:
    arguments = ("--out", tmp_path / "out", *([tmp_path] if program == "export" else []))
    done = run(program, *arguments, blocked=(blocked,))
    refused(done, f"deeplight-{program} needs {title}: pip install 'deeplight[train]'")
    assert list(tmp_path.iterdir()) == []


def test_out_is_checked_before_any_work(tmp_path: Path) -> None:
    """Without torch: these refusals come even before it is loaded."""
    (tmp_path / "file").write_text("")
    refused(run("train", "--out", tmp_path / "file"), "is not a folder")
    refused(run("train", "--out", tmp_path / ("x" * 300)), "too long")
    refused(run("train", "--out", ""), "empty")
    for seed in (-1, 2**63):
        refused(run("train", "--out", tmp_path / "run", "--seed", seed), "--seed")
    held = tmp_path / "held"
    held.mkdir()
    (held / "model.safetensors").write_bytes(b"precious")
    refused(run("train", "--out", held), "already holds model.safetensors; give --overwrite")
    refused(run("train", "--out", held, "--overwrite"), "needs PyTorch")
    assert (held / "model.safetensors").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made_is_refused_before_the_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("train", "--out", tmp_path / "file" / "run", blocked=()), "cannot create the folder")
