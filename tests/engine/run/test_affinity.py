"""The CPUs beside a GPU, on made-up hosts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from deeplight.engine.run.workers.affinity import GpuPlace, bind, cpu_list, gpu_place

ALL = range(64)


def host(root: Path, gpus: dict[str, str], siblings: int | None = None) -> Path:
    """A host with GPUs: address → its CPUs. siblings: CPU n and n + siblings are threads of one core."""
    for number, (address, cpus) in enumerate(gpus.items()):
        told = root / "proc/driver/nvidia/gpus" / address
        told.mkdir(parents=True)
        (told / "information").write_text(
            f"Model: \t\t NVIDIA Test\nGPU UUID: \t GPU-{number}abc\nDevice Minor: 0\n"
        )
        device = root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "local_cpulist").write_text(cpus + "\n")
        (device / "numa_node").write_text("0\n")
    for cpu in ALL if siblings else ():
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        assert siblings is not None
        (topology / "thread_siblings_list").write_text(f"{cpu % siblings},{cpu % siblings + siblings}\n")
    return root


FOUR = {"0000:17:00.0": "0-31", "0000:65:00.0": "0-31", "0000:ca:00.0": "32-63", "0000:e3:00.0": "32-63"}


@pytest.mark.parametrize(
    ("visible", "threads", "beside", "cpus"),
    [
        ("0", 16, 4, "0-15"),
        ("1", 16, 4, "16-31"),
        ("2", 16, 4, "32-47"),
        ("3", 16, 4, "48-63"),
        ("GPU-3abc", 16, 4, "48-63"),
        ("GPU-1", 8, 4, "16-31"),
        ("1,2", 16, 4, "16-31"),
        ("0", 8, 8, "0-15"),  # two workers on each GPU
        ("0", 16, 8, ""),
        ("0", 16, 1, "0-31"),  # of the four one is at work, and nobody else here
        ("3", 16, 1, "32-63"),
        ("0", 32, 2, ""),  # both may be on the same side, with threads for all CPUs
    ],
)
def test_workers_share_the_cpus_beside_their_gpus(
    tmp_path: Path, visible: str, threads: int, beside: int, cpus: str
) -> None:
    place = gpu_place(visible, threads, beside, ALL, host(tmp_path, FOUR))
    assert place is not None and cpu_list(place.cpus) == cpus


def test_a_core_is_not_divided(tmp_path: Path) -> None:
    root = host(tmp_path, {"0000:17:00.0": "0-15,32-47", "0000:65:00.0": "0-15,32-47"}, siblings=32)
    first, second = (gpu_place(str(n), 16, 2, ALL, root) for n in range(2))
    assert first == GpuPlace("0000:17:00.0", frozenset([*range(8), *range(32, 40)]))
    assert second == GpuPlace("0000:65:00.0", frozenset([*range(8, 16), *range(40, 48)]))


def test_only_cpus_that_the_process_may_use(tmp_path: Path) -> None:
    """As in a job that was given one GPU of a host, and CPUs beside it or elsewhere."""
    root = host(tmp_path, FOUR)
    assert gpu_place("2", 8, 1, range(40, 48), root) == GpuPlace("0000:ca:00.0", frozenset(range(40, 48)))
    assert gpu_place("2", 8, 1, range(8), root) == GpuPlace("0000:ca:00.0", frozenset())


@pytest.mark.parametrize("visible", ["", "7", "MIG-0", "NoDevFiles"])
def test_a_gpu_that_is_not_known_says_nothing(tmp_path: Path, visible: str) -> None:
    assert gpu_place(visible, 1, 1, ALL, host(tmp_path, FOUR)) is None


@pytest.mark.parametrize("missing", ["proc", "sys"])
def test_where_files_are_missing_the_system_chooses(tmp_path: Path, missing: str) -> None:
    root = host(tmp_path, FOUR)
    (root / missing).rename(root / "elsewhere")
    place = gpu_place("0", 1, 4, ALL, root)
    assert place is None or not place.cpus
    assert gpu_place("0", 1, 4, ALL, tmp_path / "nowhere") is None


def test_cpus_as_linux_writes_them() -> None:
    assert cpu_list([]) == "" and cpu_list([3]) == "3" and cpu_list({9, 0, 1, 2, 8, 5}) == "0-2,5,8-9"


def test_all_threads_are_bound_and_so_are_new_ones() -> None:
    before = os.sched_getaffinity(0)
    one = {min(before)}
    found: list[set[int]] = []
    go, looked = threading.Event(), threading.Barrier(2)

    def older() -> None:
        go.wait()
        newer = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        newer.start()
        newer.join()
        found.append(os.sched_getaffinity(0))
        looked.wait()

    thread = threading.Thread(target=older)
    thread.start()
    try:
        bind(one)
        go.set()
        looked.wait()
        assert [os.sched_getaffinity(0), *found] == [one] * 3
    finally:
        bind(before)
    thread.join()
