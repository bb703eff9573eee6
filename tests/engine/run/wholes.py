"""A run by one process, for tests of runs that several processes share."""

from __future__ import annotations

import dataclasses

from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.shards import Shard
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer

PACKS = 5


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run by one process, and the bytes of its output."""

    request: RunOptions
    expected: bytes

    def shard(self, index: int, count: int = 3, **changes: object) -> RunOptions:
        return dataclasses.replace(self.request, shard=Shard(index, count), **changes)  # type: ignore[arg-type]

    @property
    def last(self) -> RunOptions:
        """The options of the last run, which finishes the output."""
        return dataclasses.replace(self.request, mode=Mode.RESUME)

    def packs(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in parts_folder(self.request.out).rglob("*.pack")}

    def check_finished(self, kept: int) -> None:
        """Check that the last run computes only what is missing, and leaves nothing but the output."""
        report = infer(self.last)
        assert report is not None and report.packs["kept_from_earlier_run"] == kept
        assert self.request.out.read_bytes() == self.expected
        assert not parts_folder(self.request.out).exists()
