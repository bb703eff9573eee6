"""The contact sheet of a clip tree shows a whole clip, not a part of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from deeplight.train.data_cli import cli
from tests.field.lights import put

SIDE, THUMB, LEFT, TOP = 96, 176, 24 + 204, 24 + 28
"""LR pixels of the clip; and of the sheet the size and the place of the first picture."""


def corners(side: int, edge: int) -> np.ndarray:
    """True (side, side) in squares of `edge` at the four corners."""
    outer = np.minimum(np.arange(side), np.arange(side)[::-1]) < edge
    return outer[:, None] & outer


def test_the_sheet_of_inspect_shows_the_four_corners_of_a_large_clip(tmp_path: Path) -> None:
    values = np.where(corners(SIDE, 8), np.float32(100), np.float32(0.1))
    ntl, tree, sheet = put(tmp_path, values, units=["nW/cm2/sr"]), tmp_path / "tree", tmp_path / "s.png"
    plan = ["--clip", str(SIDE), "--block", str(SIDE), "--buffer", "0", "--shares", "1,0,0", "--min-lit", "0"]
    done = CliRunner().invoke(cli, ["clip", "--place", "here", "--ntl", ntl, "--out", str(tree), *plan])
    assert done.exit_code == 0, done.exception
    done = CliRunner().invoke(cli, ["inspect", str(tree), "--sheet", str(sheet)])
    assert done.exit_code == 0 and str(sheet) in done.output, done.exception
    with Image.open(sheet) as image:
        drawn = np.asarray(image)[TOP : TOP + THUMB, LEFT : LEFT + THUMB].astype(int).sum(axis=2)
    wanted = corners(THUMB, THUMB * 8 // SIDE)
    assert ((drawn > 500) == wanted).mean() > 0.98
    assert 0.02 < wanted.mean() < 0.05
