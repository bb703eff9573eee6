"""Which workers a run asks for. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(
    r"(?P<local>local):(?P<n>\d{1,4})|ray(?::(?P<address>[^,/\s]+:\d{1,5}))?(?:,(?P<count>\d{1,4}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Workers:
    """local: started on this host for the run; else on a Ray cluster that is there, of that `address`, None: the one
    that Ray finds. count: how many; None: one for each GPU of the cluster, or for each host."""

    local: bool
    address: str | None = None
    count: int | None = None

    def __str__(self) -> str:
        if self.local:
            return f"local:{self.count}"
        where = "ray" if self.address is None else f"ray:{self.address}"
        return where if self.count is None else f"{where},{self.count}"


def parse_workers(text: str) -> Workers:
    """`local:N` or `ray[:HOST:PORT][,N]`. Raises ValueError in one sentence."""
    match = _FORM.fullmatch(text)
    number = match and (match["n"] or match["count"])
    if match is None or (number is not None and int(number) < 1):
        raise ValueError(
            f"{text!r} names no workers: give local:N for N processes on this host, or ray, ray:HOST:PORT or "
            "ray:HOST:PORT,N for those of a Ray cluster"
        )
    return Workers(bool(match["local"]), match["address"], int(number) if number else None)
