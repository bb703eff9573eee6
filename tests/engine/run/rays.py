"""deeplight-infer with workers in processes of their own, which are slowed down, killed and frozen."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deeplight.engine.output.parts import parts_folder
from tests.engine.processes import arguments
from tests.engine.run.wholes import Whole

PATIENCE_S = 120.0
FAULTS = '''
import importlib.util, os, signal, sys, threading, time

class Hook:
    """Changes a module when it is imported."""
    def __init__(self, name, change):
        self.name, self.change = name, change
    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), self.change(module))
        return spec

def took(ticket):
    try:
        os.close(os.open(ticket, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def change_packs(module):
    write = module.PackStore.write
    def at_gate(store, key, *given):
        if os.environ["POISON"] == "%d,%d" % tuple(key):
            os.kill(os.getpid(), signal.SIGKILL)
        gate, tickets = os.environ["GATE"], range(int(os.environ["TICKETS"]))
        if os.path.exists(gate) and not any(took(f"{gate}-ticket{number}") for number in tickets):
            open(f"{gate}-{os.getpid()}", "w").close()
            while os.path.exists(gate):
                time.sleep(0.02)
        return write(store, key, *given)
    module.PackStore.write = at_gate

def change_copying(module):
    blocks, module.ALIGN = module.placed_blocks, 1024
    def held(*given):
        path, where = os.environ["HELD"], os.environ["WHERE"]
        assembles = any(thread.name == "finish" for thread in threading.enumerate())
        part = given[2].start % module.ALIGN == 0
        here = part and assembles == (where == "finisher") if where != "head" else not part
        if path and here and took(path + "-ticket"):
            with open(path + "-", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + "-", path)
            time.sleep(600)
        yield from blocks(*given)
    module.placed_blocks = held

sys.meta_path[:0] = [
    Hook("deeplight.engine.output.packs", change_packs), Hook("deeplight.engine.output.copying", change_copying)
]
'''
"""For Python's sitecustomize: a gate that so many packs pass on their way to the disk before all others wait, one pack
that kills who computes it, small parts of the output, and one of them at which the first that copies it stays."""


@dataclass
class Led:
    """A run that is led by a process. voice: the file of what it says. seen: the processes that it started, so far as
    anyone looked."""

    process: subprocess.Popen[str]
    out: Path
    gate: Path
    voice: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def open_gate(self) -> None:
        self.gate.unlink(missing_ok=True)

    def packs(self) -> set[str]:
        return {p.name for p in parts_folder(self.out).rglob("*.pack")}

    def look(self) -> list[psutil.Process]:
        """Its processes, and theirs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return [p for p in self.seen if alive(p)]

    def ray_folder(self) -> Path:
        """Where Ray's sockets are."""
        lines = [" ".join(process.cmdline()) for process in self.look()]
        return next(Path(found[0]) for line in lines if (found := re.search(r"/tmp/deeplight-\w+", line)))

    def wait(self, ready: Callable[[], bool]) -> None:
        wait_for(lambda: self.look() is not None and (ready() or self.process.poll() is not None))
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """What it has said so far."""
        return self.voice.read_text()

    def wait_at_gate(self, packs: int, workers: int) -> list[psutil.Process]:
        """The workers that wait, once so many packs are stored and so many workers wait."""
        self.wait(lambda: len(self.packs()) >= packs and len(self.at_gate()) >= workers)
        return [psutil.Process(number) for number in self.at_gate()]

    def at_gate(self) -> list[int]:
        """Numbers of the processes that wait."""
        found = [path.name.rpartition("-")[2] for path in self.gate.parent.glob("gate-*")]
        return [int(number) for number in found if number.isdigit()]

    def end(self, status: int = 0) -> str:
        """What it said, when it ended with this status."""
        while self.process.poll() is None:
            self.look()
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        text = self.said()
        assert self.process.returncode == status, text
        return text

    def check_alone(self) -> None:
        """None of its processes is left."""
        wait_for(lambda: not [p for p in self.seen if alive(p)], 1.0)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sites(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of them that are workers of ours."""
    found = []
    for process in processes:
        try:
            if "".join(process.cmdline()).startswith("ray::Site"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(ready: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def lead(
    whole: Whole,
    folder: Path,
    *more: str,
    workers: str = "local:2",
    gate_at: int | None = None,
    poison: str = "",
    hold: str = "",
) -> Led:
    """Start a run by workers. folder: for files that hold them up. gate_at: packs that are stored before all others
    wait until `Led.open_gate`. poison: row and column of a pack. hold: stay where the output is assembled, at its
    "head" or at a part, which the "finisher" or an "other" worker copies; the file `held` says who does."""
    environment = {**os.environ, **faults(folder, gate_at, poison)}
    environment["HELD"], environment["WHERE"] = str(folder / "held") if hold else "", hold
    line = [sys.executable, "-m", "deeplight.engine.cli"]
    line += arguments(whole.request, "--workers", workers, *more)
    voice = folder / "said"
    with voice.open("w") as said:
        process = subprocess.Popen(
            line, stdout=said, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
    return Led(process, whole.request.out, folder / "gate", voice)


def faults(folder: Path, gate_at: int | None, poison: str = "") -> dict[str, str]:
    """The environment in which FAULTS acts."""
    (folder / "faults").mkdir(exist_ok=True)
    (folder / "faults/sitecustomize.py").write_text(FAULTS)
    gate = folder / "gate"
    if gate_at is not None:
        for old in folder.glob("gate-*"):
            old.unlink()
        gate.touch()
    return {
        "PYTHONPATH": str(folder / "faults"),
        "GATE": str(gate),
        "TICKETS": str(gate_at or 0),
        "POISON": poison,
        "HELD": "",
        "WHERE": "",
    }


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
