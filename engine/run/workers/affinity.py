"""Which CPUs a worker with a GPU runs on: those beside it, whose memory and PCI Express lanes are the nearest.

Linux with NVIDIA's driver. Where a file is missing, nothing is said, and the system goes on to choose.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True)
class GpuPlace:
    """Where a worker runs. gpu: its GPU's address on the PCI bus. cpus: empty where the system chooses."""

    gpu: str
    cpus: frozenset[int]


def gpu_place(
    visible: str, threads: int, beside: int, allowed: Collection[int], root: Path = _ROOT
) -> GpuPlace | None:
    """Where the process runs that CUDA_VISIBLE_DEVICES gives one GPU; None where that is not known.

    GPUs beside the same CPUs share these, in whole cores, if each worker on them then has as many CPUs as threads;
    workers on fewer GPUs than there are may use all of these, if they suffice for them; else the system chooses.

    threads: of each worker. beside: workers on this host. allowed: CPUs that this process may use. root: folder with
    `proc` and `sys`, for tests.
    """
    gpus = _gpus(root)
    own = _chosen(visible, gpus)
    if own is None:
        return None
    near = {gpu: _near(gpu, root) & frozenset(allowed) for gpu in gpus}
    peers = [gpu for gpu in gpus if near[gpu] == near[own]]
    of_each = -(-beside // len(gpus))
    at_work = min(len(peers), beside)
    if len(near[own]) < at_work * of_each * threads:
        return GpuPlace(own, frozenset())
    if at_work < len(peers):  # which of them is not known
        return GpuPlace(own, near[own])
    cores = _cores(near[own], root)
    first, last = (len(cores) * (peers.index(own) + end) // len(peers) for end in (0, 1))
    return GpuPlace(own, frozenset(itertools.chain.from_iterable(cores[first:last])))


def bind(cpus: Collection[int]) -> None:
    """Let all threads of this process, and those that they start, run on these CPUs only."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or may not be bound
            os.sched_setaffinity(int(thread.name), cpus)


def cpu_list(cpus: Iterable[int]) -> str:
    """CPUs as Linux writes them: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _gpus(root: Path) -> dict[str, str]:
    """Address of each GPU of NVIDIA's driver → its UUID, in the order of their numbers where CUDA counts by address."""
    found = {}
    with contextlib.suppress(OSError):
        for folder in sorted((root / "proc/driver/nvidia/gpus").iterdir()):
            lines = (folder / "information").read_text().splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            found[folder.name.lower()] = facts.get("GPU UUID", "").strip()
    return found


def _chosen(visible: str, gpus: dict[str, str]) -> str | None:
    """The address of the first GPU that CUDA_VISIBLE_DEVICES names, by number or by the beginning of its UUID."""
    name = visible.partition(",")[0].strip()
    if name.isdecimal():
        return next(itertools.islice(gpus, int(name), None), None)
    return next((gpu for gpu, uuid in gpus.items() if name and uuid.startswith(name)), None)


def _near(gpu: str, root: Path) -> frozenset[int]:
    return _listed(root / "sys/bus/pci/devices" / gpu / "local_cpulist")


def _cores(cpus: Iterable[int], root: Path) -> list[list[int]]:
    """CPUs by the core that they are threads of."""
    cores: dict[int, list[int]] = {}
    for cpu in sorted(cpus):
        siblings = _listed(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(min(siblings, default=cpu), []).append(cpu)
    return list(cores.values())


def _listed(path: Path) -> frozenset[int]:
    """The CPUs of a list such as 0-3,8; none where it is missing."""
    try:
        ends = [part.partition("-") for part in path.read_text().strip().split(",") if part]
        return frozenset(cpu for a, _, b in ends for cpu in range(int(a), int(b or a) + 1))
    except (OSError, ValueError):
        return frozenset()
