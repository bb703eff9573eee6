"""How far a result in reduced precision, or of another runtime, may lie from the float32 result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}
"""Largest relative L2 error in radiance. fp32: what reordered sums cost; fp16, bf16: half as much again as a
network of this kind showed with float32 islands (1.3e-3, 1e-2)."""

PSNR_TOLERANCE_DB = {"fp32": 0.05, "fp16": 0.05, "bf16": 0.05}
"""Largest change of the PSNR against the truth, where it is known."""

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Difference:
    """One case against the float32 reference, in the unit of the radiance unless named otherwise.

    psnr_change_db: None where the truth is not known.
    """

    case: str
    backend: str
    precision: str
    max_abs: float
    relative_l2: float
    psnr_change_db: float | None
    sum_of_lights_change: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the limits hold; a NaN fails."""
        within = self.psnr_change_db is None or abs(self.psnr_change_db) <= PSNR_TOLERANCE_DB[self.precision]
        return self.relative_l2 <= self.tolerance and within

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**asdict(self), "passed": self.passed}


def difference(
    case: str, backend: str, precision: str, got: Values, want: Values, truth: Values | None = None
) -> Difference:
    """Compare radiance of the same valid pixels, any shape."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    norm, error = float(np.linalg.norm(want)), float(np.linalg.norm(got - want))
    total = float(want.sum())
    return Difference(
        case=case,
        backend=backend,
        precision=precision,
        max_abs=float(np.abs(got - want).max(initial=0.0)),
        relative_l2=error / norm if norm > 0 else (0.0 if error == 0 else math.inf),
        psnr_change_db=None if truth is None else _psnr(got, truth) - _psnr(want, truth),
        sum_of_lights_change=float(got.sum()) / total - 1.0 if total > 0 else 0.0,
        tolerance=TOLERANCE[precision],
    )


def _psnr(value: Values, truth: Values) -> float:
    """In dB, the range being that of the truth."""
    error = float(np.mean((value - truth.astype(np.float64)) ** 2))
    return 10.0 * math.log10(max(float(np.ptp(truth)), 1e-30) ** 2 / max(error, 1e-30))


def failures(rows: Sequence[Difference]) -> str:
    """How many of the rows failed and by how much the worst did, for a sentence. At least one must have failed."""
    failed = [r for r in rows if not r.passed]
    # a NaN is worse than any number
    worst = max(failed, key=lambda r: (math.isnan(r.relative_l2), r.relative_l2 / r.tolerance))
    psnr = ""
    if worst.psnr_change_db is not None:
        psnr = f" and {worst.psnr_change_db:+.3f} dB of PSNR (at most {PSNR_TOLERANCE_DB[worst.precision]})"
    return (
        f"{len(failed)} of {len(rows)} comparisons failed, worst {worst.precision} on {worst.backend} in "
        f"{worst.case!r} with a relative L2 error of {worst.relative_l2:.1e} (at most {worst.tolerance:.1e}){psnr}"
    )


def table(rows: Sequence[Difference]) -> str:
    """The rows as aligned text."""
    head = f"{'case':<24}{'backend':<18}{'max |Δ|':>10}{'rel. L2':>10}{'ΔPSNR dB':>10}{'Δsum':>10}"
    lines = [head]
    for r in rows:
        mark = "" if r.passed else "  FAILED"
        change = "–" if r.psnr_change_db is None else f"{r.psnr_change_db:.5f}"
        lines.append(
            f"{r.case:<24}{r.backend + ' ' + r.precision:<18}{r.max_abs:>10.1e}{r.relative_l2:>10.1e}"
            f"{change:>10}{r.sum_of_lights_change:>10.1e}{mark}"
        )
    return "\n".join(lines)
