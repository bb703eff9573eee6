"""What this process has: memory, CPUs, bytes read and written. Linux; control groups v1 and v2."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_VECTOR = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "sme", "bf16", "i8mm")
"""Beginnings of the names that /proc/cpuinfo gives vector extensions, of x86 and ARM."""
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that can be taken without swapping or being killed, by the machine and the control groups.

    root: folder with `proc` and `sys`, for tests.
    """
    limits = [_meminfo(root), *_group_room(root)]
    known = [x for x in limits if x is not None]
    return max(min(known), 0) if known else 1 << 30


def available_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process may use: its affinity, cut to the control groups' quota, ≥ 1."""
    cpus = len(os.sched_getaffinity(0))
    for folder in _group_folders(root, "cpu"):
        quota = _cpu_quota(folder)
        if quota is not None:
            cpus = min(cpus, max(1, math.ceil(quota)))
    return cpus


def processor(root: Path = _ROOT) -> str:
    """The CPU's maker and vector extensions: by these libraries choose code, whose sums differ in their last bits."""
    fields = _cpuinfo(root)
    maker = fields.get("vendor_id") or fields.get("CPU implementer") or "unknown"
    flags = _flags(fields)
    vector = sorted({flag for flag in flags if flag.startswith(_VECTOR)})
    return " ".join([os.uname().machine, maker, *vector])


def cpu_has_bf16(root: Path = _ROOT) -> bool:
    """Whether the CPU multiplies bfloat16; without, libraries emulate it and float32 is faster."""
    return not _BF16.isdisjoint(_flags(_cpuinfo(root)))


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # getrusage comes second: its figure starts at the size of the process that started this one.
    high_water = _stat(Path("/proc/self/status"), "VmHWM:")
    return 1024 * (high_water or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def return_memory() -> None:
    """Give memory that nothing uses back to the system, where its C library keeps it: glibc does, in pieces that every
    further run with threads of its own adds to (12 dates of 300×400 LR pixels: a peak of 2.5 GB in place of 1.7)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bytes_moved() -> tuple[int, int] | None:
    """(read, written) by this process's system calls so far; None where the system does not count them."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"]), int(fields["wchar"])
    except (OSError, ValueError, KeyError):
        return None


def thread_bytes_read() -> int:
    """Bytes read by the calling thread's system calls so far; 0 where the system does not count them."""
    try:
        # asked before and after every read of a raster: a file object takes twice as long
        file = os.open("/proc/thread-self/io", os.O_RDONLY)
        try:
            return int(os.read(file, 64).split()[1])
        finally:
            os.close(file)
    except (OSError, ValueError, IndexError):
        return 0


def _cpuinfo(root: Path) -> dict[str, str]:
    """What is known of the first CPU; empty where the system says nothing."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def _flags(cpuinfo: dict[str, str]) -> list[str]:
    return (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()


def _meminfo(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _group_folders(root: Path, controller: str) -> list[Path]:
    """This process's control group folders for a controller, and their parents: every one limits."""
    folders: list[Path] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        folders += [mount / p for p in (inside, *inside.parents) if (mount / p).is_dir()]
    return folders


def _group_room(root: Path) -> list[int]:
    """Limit minus use of every control group that limits memory; droppable file cache is not use."""
    rooms = []
    for folder in _group_folders(root, "memory"):
        for limit_name, use_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, use = _number(folder / limit_name), _number(folder / use_name)
            if limit is not None and use is not None:
                rooms.append(limit - use + _stat(folder / "memory.stat", cache_key))
    return rooms


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _stat(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            name, *values = line.split()
            if name == key:
                return int(values[0])
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _cpu_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota_us is None or not period_us or quota_us <= 0:
        return None
    return quota_us / period_us
