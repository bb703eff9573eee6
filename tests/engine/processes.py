"""The command line of a run in a process of its own, and deeplight-infer with pauses between packs."""

from __future__ import annotations

from deeplight.engine.run.options import RunOptions


def arguments(request: RunOptions, *more: str) -> list[str]:
    """The arguments of deeplight-infer for `request`."""
    return [
        "--ntl", request.scene.ntl, "--out", str(request.out), "--model", request.model,
        "--tiles", "64", "--threads", "1", *more,
    ]  # fmt: skip


def slow(seconds: float) -> str:
    """A program that is deeplight-infer with a pause after each pack, so that other processes find it at work."""
    return f"""
import time
from deeplight.engine import cli
from deeplight.engine.output import packs
write = packs.PackStore.write
packs.PackStore.write = lambda *a, **k: (write(*a, **k), time.sleep({seconds}))[0]
cli.main()
"""
