"""Several processes, on one host or many, compute packs of one output into its folder; a later run assembles them.

Hosts that share the folder may not see each other's locks, so nothing depends on locks; they only avoid that work is
done twice. A pack is published by a link. If two processes publish the same pack, the first one stays, and equal pixels
have equal bytes. The folder of the packs is named by the record of what they depend on, whose first copy stays too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import DISK, Disk, disk_errors, make_folder, write_file
from deeplight.engine.core.locks import exclusive, shared
from deeplight.engine.output.parts import (
    LOCK,
    RECORD,
    Record,
    busy,
    check_ours,
    exists,
    packs_folder,
    parts_folder,
    stored_record,
)

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shard:
    """Share number `index`, counted from 0, of `count` shares of the packs."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The share of ordered items. It consists of neighbours, since these share blocks of the sources."""
        start, end = (len(items) * n // self.count for n in (self.index, self.index + 1))
        return items[start:end]


class AnotherPlan(InputError):
    """Another process with more or less memory was first and has chosen other tiles for the scene."""


@contextlib.contextmanager
def joined_parts(out: Path, record: Record, shard: Shard, *, disk: Disk = DISK) -> Iterator[Path]:
    """The folder for packs, which this process uses together with other shards while the block runs. It stays.

    Raises InputError where a run that is no shard, or the same shard, is at work, and where the folder belongs to
    another run or the output has just been finished; AnotherPlan where only the tiles differ; DeepLightError where the
    folder is removed meanwhile.
    """
    parts = parts_folder(out)
    check_ours(parts)
    make_folder(parts, disk=disk)
    with contextlib.ExitStack() as held:
        with disk_errors(parts / LOCK):
            held.enter_context(shared(parts / LOCK, busy(out)))
            mine = parts / f".shard-{shard.index}-of-{shard.count}.lock"
            again = f"another process computes shard {shard} of {out}: wait for it or stop it"
            held.enter_context(exclusive(mine, again))
        _join(out, record, disk)
        packs = packs_folder(out, record)
        make_folder(packs, disk=disk)
        try:
            yield packs
        except DeepLightError as error:
            if packs.is_dir():
                raise
            raise DeepLightError(
                f"{packs} was removed while shard {shard} was computed: another run has finished {out}, or began anew"
            ) from error


def _join(out: Path, record: Record, disk: Disk) -> None:
    """Begin the folder, or check that it was begun by a run with the same record."""
    if stored_record(out) is None:
        if exists(out):
            raise InputError(f"{out} was finished by another run just now: there is nothing to do")
        write_file(parts_folder(out) / RECORD, [record.to_json()], first_stays=True, disk=disk)
    first = stored_record(out)
    if first is None:
        raise InputError(busy(out))
    if first.core != record.core:
        try:
            replace(record, core=first.core).check_same(first, out, shard=True)
        except InputError:
            pass  # something besides the tiles differs, which the next check names
        else:
            raise AnotherPlan(
                f"another shard cut {out} into tiles of {first.core} LR pixels and here it would be {record.core}: "
                "give the same `tiles` to all"
            )
    record.check_same(first, out, shard=True)
