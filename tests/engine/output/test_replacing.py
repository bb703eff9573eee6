"""A file that is replaced is the old one or the new one, whenever the power fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deeplight.engine.core.files import Disk, write_file


class RecordingDisk(Disk):
    """Notes the operations in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []

    def create(self, path: Path) -> BinaryIO:
        self.log.append(("create", path.name, ""))
        return super().create(path)

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        self.log.append(("sync", Path(file.name).name, ""))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.log.append(("replace", source.name, target.name))

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.log.append(("sync folder", "", ""))


def states_after_power_loss(log: list[tuple[str, str, str]]) -> Iterator[dict[str, str]]:
    """Each state a disk may hold after a crash at any point: name → "old", "new" or "torn".

    A file's bytes are safe after its sync, a name after the folder's; before, each may or may not be there.
    """
    for stop in range(len(log) + 1):
        seen = log[:stop]
        synced = {name for what, name, _ in seen if what == "sync"}
        last_folder_sync = max((n for n, entry in enumerate(seen) if entry[0] == "sync folder"), default=-1)
        renames = [n for n, entry in enumerate(seen) if entry[0] == "replace"]
        pending = [n for n in renames if n > last_folder_sync]
        for arrived in itertools.product((False, True), repeat=len(pending)):
            applied = [n for n in renames if n <= last_folder_sync]
            applied += [n for n, there in zip(pending, arrived, strict=True) if there]
            state = {"file": "old"}
            for n in applied:
                _, source, target = seen[n]
                state[target] = "new" if source in synced else "torn"
            yield state


def test_power_loss_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    disk = RecordingDisk()
    (tmp_path / "file").write_bytes(b"old")
    write_file(tmp_path / "file", [b"new"], disk=disk)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert {state["file"] for state in states_after_power_loss(disk.log)} == {"old", "new"}
    assert [state["file"] for state in states_after_power_loss(disk.log)][-1] == "new"
    unsynced = [entry for entry in disk.log if entry[0] != "sync"]
    assert "torn" in {state["file"] for state in states_after_power_loss(unsynced)}
